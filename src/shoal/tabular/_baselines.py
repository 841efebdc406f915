"""What scikit-learn makes of the same rows: a linear model and gradient boosting, with their own defaults."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from shoal._text import format_number
from shoal.records import Json
from shoal.tabular._columns import Numbers
from shoal.tabular._target import Target, Task

Array = npt.NDArray[Any]
LINEAR: Final = "linear model"
BOOSTING: Final = "gradient boosting"
OURS: Final = "shoal"
HIGHER: Final[Mapping[str, bool]] = {"accuracy": True, "f1": True, "r2": True, "mae": False, "rmse": False}
_MEASURES: Final[Mapping[Task, tuple[str, ...]]] = {
    "classes": ("accuracy", "f1"),
    "labels": ("accuracy", "f1"),
    "numbers": ("r2", "rmse", "mae"),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores on the test rows, by model and measure.

    Accuracy and macro F1 for classes (of several labels, the mean over labels), R2, RMSE and MAE for numbers (in the
    target's units; of several targets, the mean over them).
    """

    n_test: int
    scores: Mapping[str, Mapping[str, float]]

    @property
    def winner(self) -> str:
        """The model with the best first measure."""
        measure = next(iter(next(iter(self.scores.values()))))
        return max(self.scores, key=lambda name: self.scores[name][measure] * (1 if HIGHER[measure] else -1))

    def to_json(self, trial: int) -> dict[str, Json]:
        """As plain data for the report; `trial` is the one whose model is compared."""
        scores: dict[str, Json] = {name: dict(found) for name, found in self.scores.items()}
        return {"trial": trial, "n_test": self.n_test, "winner": self.winner, "scores": scores}

    def __str__(self) -> str:
        measures = list(next(iter(self.scores.values())))
        lines = [f"{f'test, {self.n_test:,} rows':<24}" + "".join(f"{m:>12}" for m in measures)]
        for name, scores in self.scores.items():
            mark = "  <- best" if name == self.winner else ""
            lines.append(f"{name:<24}" + "".join(f"{format_number(scores[m], 4):>12}" for m in measures) + mark)
        return "\n".join(lines)


def compare(
    target: Target, ours: Array, train: tuple[Tensor, ...], test: tuple[Tensor, ...], encoded: tuple[Array, Array]
) -> Comparison:
    """Fit the baselines on the training rows and score everything on the test rows.

    Args:
        target: What is predicted.
        ours: What the tuned model decided for the test rows, as ``Target.decide`` gives it.
        train, test: Model inputs: numbers, categories, or both.
        encoded: Targets of the training and of the test rows, not scaled.
    """
    decided = {OURS: ours}
    fit_to, truth = encoded
    with warnings.catch_warnings():
        # That a linear model has not quite converged is no news about the user's data.
        warnings.simplefilter("ignore")
        single = fit_to.ndim == 2 and fit_to.shape[1] == 1
        for name, model in _models(target.task, train, several=not single).items():
            model.fit(_matrix(train), fit_to[:, 0] if single else fit_to)
            decided[name] = np.asarray(model.predict(_matrix(test))).reshape(truth.shape)
    return Comparison(len(truth), {name: measure(target.task, truth, guess) for name, guess in decided.items()})


def measure(task: Task, truth: Array, guess: Array) -> dict[str, float]:
    """scikit-learn's scores of one model's decisions: both (n,) for classes, else (n, k).

    Of several labels, the accuracy is that of whole rows, as in the study.
    """
    from sklearn import metrics

    found: tuple[Any, ...]
    if task == "numbers":
        found = (
            metrics.r2_score(truth, guess),
            metrics.root_mean_squared_error(truth, guess),
            metrics.mean_absolute_error(truth, guess),
        )
    else:
        if truth.ndim == 2 and truth.shape[1] == 1:
            truth, guess = truth[:, 0], guess[:, 0]
        f1 = metrics.f1_score(truth, guess, average="macro", zero_division=0)
        found = (metrics.accuracy_score(truth, guess), f1)
    return dict(zip(_MEASURES[task], map(float, found), strict=True))


def _matrix(inputs: tuple[Tensor, ...]) -> Numbers:
    """Numbers and category codes side by side, in that order."""
    return np.concatenate([tensor.numpy().astype(np.float64) for tensor in inputs], axis=1)


def _models(task: Task, inputs: tuple[Tensor, ...], *, several: bool) -> dict[str, Any]:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    n_columns = sum(tensor.shape[1] for tensor in inputs)
    first = sum(tensor.shape[1] for tensor in inputs if tensor.is_floating_point())
    coded = list(range(first, n_columns))
    boosting: Any
    linear: Any
    if task == "numbers":
        linear = Ridge()
        boosting = HistGradientBoostingRegressor(categorical_features=coded, random_state=0)
        boosting = MultiOutputRegressor(boosting) if several else boosting
    else:
        linear = LogisticRegression(max_iter=500)
        boosting = HistGradientBoostingClassifier(categorical_features=coded, random_state=0)
    if task == "labels" and several:
        linear, boosting = MultiOutputClassifier(linear), MultiOutputClassifier(boosting)
    one_hot = ColumnTransformer([("codes", OneHotEncoder(handle_unknown="ignore"), coded)], remainder="passthrough")
    return {LINEAR: make_pipeline(one_hot, linear), BOOSTING: boosting}
