"""Nested cross-validation: a whole search inside each outer fold, scored on rows that no part of it has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from shoal.data import load_whole
from shoal.errors import StudyError, UsageError
from shoal.folds import FoldsArgument, Splitter, make_parts
from shoal.lanes.parts import Parts
from shoal.replay import Define
from shoal.study import Study
from shoal.tuning import tune


@final
@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """What `nested` returns: an estimate of what the whole way of searching gives on new data.

    Attributes:
        metric: What is estimated.
        scores: Each outer fold's winner, on the rows that were held out from its search.
        standard_error: Of their mean, over outer folds.
        studies: One per outer fold.
    """

    metric: str
    scores: tuple[float, ...]
    standard_error: float | None
    studies: tuple[Study, ...]

    @property
    def score(self) -> float:
        """The mean over outer folds."""
        return math.fsum(self.scores) / len(self.scores)

    def __repr__(self) -> str:
        error = "" if self.standard_error is None else f" (standard error {self.standard_error:.2g})"
        return f"<shoal.Nested {self.metric} {self.score:.6g}{error} over {len(self.scores)} outer folds>"


def nested(
    define: Define,
    *,
    train: Any,
    outer: FoldsArgument = 5,
    groups: Any = None,
    seed: int = 0,
    storage: str | Path | None = None,
    **options: Any,
) -> Nested:
    """Search once inside each outer fold, and score each winner on the rows that were held out from its search.

    The mean is an estimate of what the search gives on new data, free of the luck of the best of many trials; it costs as many
    searches as there are outer folds. It is not the score of any one model: for a model, search on all rows.

    Args:
        define: As for `shoal.tune`.
        train: All rows.
        outer: The outer folds, as for ``tune(folds=)``: a number, or a splitter of scikit-learn.
        groups: One group per row; rows of a group stay in one outer fold, and in one inner fold where there are ``folds``.
        seed: Everything random follows from it.
        storage: A study file per outer fold is written beside this path: ``digits.db`` gives ``digits_outer1.db`` and so on.
        options: Further keywords of `shoal.tune`; ``folds=`` makes the inner folds.

    Raises:
        UsageError: If an argument makes no sense.
        StudyError: If the search of an outer fold ended without a winner.
    """
    for name in ("valid", "test"):
        if name in options:
            raise UsageError(
                f"nested() has no {name}=: outer= holds rows out, and tune's folds= or its default splits the rest."
            )
    metric = options.get("metric")
    if isinstance(metric, list | tuple) and len(metric) > 1:
        raise UsageError(
            "nested() estimates the score of one winner, and several objectives have a front: give it one metric."
        )
    inner = options.get("folds")
    if inner is not None and not isinstance(inner, int | Splitter):
        raise UsageError(
            "nested() needs folds= as a number or a splitter: row indices of the inner folds differ by outer fold."
        )
    data = load_whole(train, None, seed=seed, raw=options.get("prepare") is not None).train
    parts = make_parts(outer, 1, groups, data, seed)
    if parts is None:
        raise UsageError("nested() needs outer=: a number of folds or a splitter of scikit-learn.")
    by_row = None if groups is None else np.asarray(groups)
    studies: list[Study] = []
    for k, (rows, held_out) in enumerate(parts.folds, 1):
        kept, left = data.take(rows), data.take(held_out)
        inside: dict[str, Any] = {"groups": by_row[rows]} if by_row is not None and inner is not None else {}
        file = None if storage is None else _beside(storage, k)
        studies.append(tune(define, train=kept, test=left, seed=seed, storage=file, **inside, **options))
    return _scored(studies, parts)


def _beside(storage: str | Path, k: int) -> str:
    text = str(storage)
    stem, dot, suffix = text.rpartition(".")
    return f"{stem}_outer{k}.{suffix}" if dot else f"{text}_outer{k}"


def _scored(studies: Sequence[Study], parts: Parts) -> Nested:
    metric = str(studies[0].record.meta["metric"])
    scores: list[float] = []
    for k, study in enumerate(studies, 1):
        if metric not in study.test_metrics:
            raise StudyError(
                f"the search of outer fold {k} ended without a winner ({study!r}); give it more trials, epochs or time."
            )
        scores.append(study.test_metrics[metric])
    return Nested(metric, tuple(scores), parts.standard_error(scores), tuple(studies))
