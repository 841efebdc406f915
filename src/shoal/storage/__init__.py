"""Studies in a file or database: memory in front, batched writes behind, readable by Optuna without Shoal.

Optuna's own storage takes 92 ms for a trial with 20 reports, several times as long as a fused trial trains. Here the
same rows go into the same tables in bulk, from a background thread, one transaction per batch. What Optuna has no
place for (seeds, epochs' metrics, the journal) lies beside them in tables whose names begin with ``shoal_``.

Example:
    >>> import tempfile
    >>> from shoal.records import EpochRow, TrialResult, TrialSpec, TrialState
    >>> from shoal.storage import StudyStore, load_study
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     url = f"sqlite:///{folder}/digits.db"
    ...     with StudyStore.open(url, name="digits", direction="maximize") as store:
    ...         store.asked([TrialSpec(0, seed=7, params={}, distributions={})])
    ...         store.recorded([EpochRow(0, 1, train_loss=0.5, value=0.75, metrics={"loss": 0.4})])
    ...         store.ended([TrialResult(0, TrialState.FINISHED, value=0.75, epoch=1)])
    ...     load_study(url).trials[0].value
    0.75
"""

from __future__ import annotations

from shoal.storage._place import (
    DEFAULT_NAME,
    FilePlace,
    Place,
    file_beside,
    has_password,
    place_of,
    shown,
    title_of,
)
from shoal.storage._store import StudyStore, load_meta, load_study, study_stamp

__all__ = [
    "DEFAULT_NAME",
    "FilePlace",
    "Place",
    "StudyStore",
    "file_beside",
    "has_password",
    "load_meta",
    "load_study",
    "place_of",
    "shown",
    "study_stamp",
    "title_of",
]
