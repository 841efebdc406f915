"""Taking the winner out of a study file: nothing is trained, and nothing is written to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.data import load, load_whole
from shoal.errors import StorageError, StudyError, UsageError
from shoal.export import Exported, export
from shoal.preparing import PrepareArgument, described, prepared_whole
from shoal.records import StudyRecord, TrialRecord, TrialState
from shoal.replay import Define, fingerprint, replay
from shoal.storage import file_beside, load_study, place_of, shown
from shoal.weights import WeightStore, trained, weights_file


def export_study(
    storage: str,
    define: Define,
    folder: str | Path,
    *,
    study_name: str | None = None,
    train: Any,
    valid: Any = None,
    test: Any = None,
    prepare: PrepareArgument = None,
    formats: Sequence[str] = ("script", "weights"),
    check: bool = False,
    trial: int | None = None,
) -> Exported:
    """Export the best trial of a study file, or another one whose weights are kept.

    Args:
        storage: The study file.
        define: The code that made the study.
        folder: Where to.
        study_name: Which study, where the storage holds several.
        train, valid, test, prepare: What the study was started with.
        formats, check: As for `shoal.export.export`.
        trial: Its number, if not the best.

    Raises:
        StorageError: If the file belongs to other code or data, or the weights are gone.
        StudyError: If no trial has finished, or there are several objectives and no trial is named.
        UsageError: If there is no such trial that has finished.
    """
    record = load_study(storage, study_name)
    best, options = _named(record, trial), record.meta.get("options")
    if best is None or best.value is None:
        raise StudyError(f"no trial of {shown(storage)!r} has finished yet. Go on with it: shoal resume.")
    given = options.get("seed", 0) if isinstance(options, dict) else 0
    seed, folds = given if isinstance(given, int) else 0, record.meta.get("folds")
    folded = isinstance(folds, dict) and bool(folds.get("n"))
    raw = prepare is not None
    read = load_whole(train, test, seed=seed, raw=raw) if folded else load(train, valid, test, seed=seed, raw=raw)
    known = options.get("prepare") if isinstance(options, dict) else None
    if known != (described(prepare) if raw else None):
        raise StorageError(f"{shown(storage)!r} was made with prepare={known}; pass the same object.")
    for what, known, now in (
        ("code: define() has changed", record.meta.get("fingerprint"), fingerprint(define)),
        ("data: their fingerprint differs", record.meta.get("data"), read.fingerprint),
    ):
        if known not in (None, now):
            raise StorageError(
                f"{shown(storage)!r} was made with other {what}. Name the file that the study was started with."
            )
    data, preparation = prepared_whole(prepare, read, seed)
    number = best.spec.number
    kept = weights_file(file_beside(place_of(storage), record.name, ".weights"), number)
    weights = WeightStore(kept.parent, (1.0,) * len(best.values), {number: (best.values, str(kept))})
    recipe = trained(best.trained, lambda spec: replay(define, spec, data.train.n, data.train.form), weights)
    fresh = replay(define, best.trained, data.train.n, data.train.form)
    return export(
        record, best, define, recipe, fresh, data, folder, preparation=preparation, formats=formats, check=check
    )


def _named(record: StudyRecord, trial: int | None) -> TrialRecord | None:
    if trial is None:
        if len(record.directions) > 1 and (front := record.front()):
            raise StudyError(
                f"study {record.name!r} has several objectives, so no trial is best in all of them: choose one of the Pareto front "
                f"with --trial ({', '.join(str(t.spec.number) for t in front)})."
            )
        return record.best()
    found = next((t for t in record.trials if t.spec.number == trial and t.state is TrialState.FINISHED), None)
    if found is None:
        raise UsageError(f"study {record.name!r} has no trial {trial} that has finished.")
    return found
