"""``ShoalSearchCV``: a grid or random search whose candidates and folds train together, with scikit-learn's results."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import ParameterGrid, ParameterSampler, check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, assert_all_finite, check_random_state, indexable

from shoal.errors import UsageError
from shoal.lanes.threads import threads
from shoal.replay import run_define
from shoal.sklearn._estimators import Problem, ShoalEstimator
from shoal.sklearn._lanes import Run, train

Space = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class ShoalSearchCV(BaseSearchCV):  # type: ignore[misc]
    """Search over the parameters of a ``ShoalClassifier`` or ``ShoalRegressor``, all candidates and folds in lanes.

    In place of scikit-learn's ``GridSearchCV`` and ``RandomizedSearchCV``: same candidates, same splits, same scores, same
    attributes. Trains in this process; nothing is written.

    Args:
        estimator: One of the two, or a ``Pipeline`` that ends with one. The steps before it are fitted anew on each fold's
            training rows.
        param_space: Parameters to search, as ``param_grid`` or ``param_distributions``: lists of values, or objects with
            ``rvs``; a list of such dicts. None with an estimator that has a ``define``: what it suggests.
        n_iter: How many candidates to draw; None tries every combination of the lists.
        scoring: A scorer's name, a callable, or several, as in scikit-learn.
        refit: Whether to fit the best candidate on all rows; the name of the scorer that decides; a callable on the results.
        cv: A number of folds, a splitter, or pairs of row indices.
        n_jobs: Threads that share the lanes, -1 for one per core; None leaves torch's own number. No result depends on it.
        error_score: What a candidate that cannot be fitted scores, or "raise".
        return_train_score: Whether to score the training rows too.
        random_state: Of the candidates that are drawn.

    Attributes:
        best_estimator_, best_params_, best_score_, best_index_, cv_results_, n_splits_, scorer_, multimetric_, refit_time_:
            As in scikit-learn. ``mean_fit_time`` is each run's share of the time that all took.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from shoal.sklearn import ShoalClassifier
        >>> search = ShoalSearchCV(ShoalClassifier(random_state=0, max_epochs=20), {"lr": [1e-4, 1e-2]}, cv=3)
        >>> search.fit(*load_iris(return_X_y=True)).best_params_
        {'lr': 0.01}
    """

    def __init__(
        self,
        estimator: Any,
        param_space: Space | None = None,
        *,
        n_iter: int | None = None,
        scoring: Any = None,
        refit: Any = True,
        cv: Any = None,
        n_jobs: int | None = None,
        error_score: float | str = np.nan,
        return_train_score: bool = False,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.param_space = param_space
        self.n_iter = n_iter
        self.scoring = scoring
        self.refit = refit
        self.cv = cv
        self.n_jobs = n_jobs
        self.error_score = error_score
        self.return_train_score = return_train_score
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> Any:
        """Train and score every candidate on every fold, then fit the best on all rows.

        Args:
            X, y: As for the estimator.
            groups: For splitters that need them.

        Raises:
            ValueError: If the space, the estimator or the data make no sense, or all candidates fail.
        """
        network_of(self.estimator)
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(X, y)
        if y is not None:
            assert_all_finite(np.asarray(y), input_name="y")
        splits = list(check_cv(self.cv, y, classifier=is_classifier(self.estimator)).split(X, y, groups))
        self.n_splits_ = len(splits)
        prepared = _Prepared(self.estimator, X, y, [train_rows for train_rows, _ in splits])
        candidates = self._candidates(prepared)
        fits = [prepared.fit(params, fold) for params in candidates for fold in range(len(splits))]
        with _threads(self.n_jobs):
            train([fit.run for fit in fits if fit.run.error is None])
        out = [self._scored(fit, X, y, splits[i % len(splits)], scorers) for i, fit in enumerate(fits)]
        scores = self._fill_in([fit.run.error for fit in fits], out)
        results = self._format_results(candidates, len(splits), out)
        self.multimetric_ = isinstance(scores, dict)
        if self.multimetric_:
            self._check_refit_for_multimetric(scores)
            refit_metric = self.refit
        if self.refit or not self.multimetric_:
            self.best_index_ = self._select_best_index(self.refit, refit_metric, results)
            self.best_params_ = results["params"][self.best_index_]
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{refit_metric}"][self.best_index_]
        if self.refit:
            started = time.perf_counter()
            self.best_estimator_ = _with(self.estimator, self.best_params_).fit(X, y)
            self.refit_time_ = time.perf_counter() - started
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        self.scorer_ = getattr(scorers, "_scorers", scorers)
        self.cv_results_ = results
        return self

    def _candidates(self, prepared: _Prepared) -> list[dict[str, Any]]:
        space = self.param_space
        if space is None:
            return self._suggested(prepared)
        if self.n_iter is not None:
            return list(ParameterSampler(space, self.n_iter, random_state=self.random_state))
        try:
            return list(ParameterGrid(space))
        except TypeError as error:
            raise UsageError(
                f"{error} Give lists of values, or say how many candidates to draw from the distributions: n_iter=50."
            ) from error

    def _suggested(self, prepared: _Prepared) -> list[dict[str, Any]]:
        """Candidates out of what ``define`` suggests, drawn at random."""
        import optuna

        from shoal.samplers import quiet

        network, prefix = network_of(self.estimator)
        if network.define is None or self.n_iter is None:
            raise UsageError(
                "say what to search: param_space={...}; or give the estimator a define, and n_iter= candidates to draw from what "
                "it suggests."
            )
        first = prepared.fit({}, 0).run
        if first.error is not None:
            raise first.error
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        found = []
        with quiet():
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
            for _ in range(self.n_iter):
                trial = study.ask()
                run_define(lambda t: network.recipe(t, first.problem), trial, 0, len(first.problem.inputs))
                found.append({f"{prefix}params__{name}": value for name, value in trial.params.items()})
        return found

    def _scored(self, fit: _Fit, X: Any, y: Any, rows: tuple[Any, Any], scorers: Any) -> dict[str, Any]:
        """One run's times and scores; None as scores if there is nothing to score."""
        run, started = fit.run, time.perf_counter()
        scores: dict[str, Any] = {"test_scores": None, **({"train_scores": None} if self.return_train_score else {})}
        if run.error is not None:
            if self.error_score == "raise":
                raise run.error
        else:
            model = fit.fitted()
            for name, which in zip(("train_scores", "test_scores"), rows, strict=True):
                if name in scores:
                    scores[name] = scorers(model, _safe_indexing(X, which), _safe_indexing(y, which))
        return {"fit_time": run.seconds, "score_time": time.perf_counter() - started, **scores}

    def _fill_in(self, errors: Sequence[Exception | None], out: list[dict[str, Any]]) -> Any:
        """Put the error score where a candidate could not be fitted, and say so; returns what scores look like."""
        failed = [error for error in errors if error is not None]
        if len(failed) == len(out):
            first = str(failed[0]) if failed else "the splitter gave no fold"
            raise UsageError(f"all {len(out)} fits failed. The first one: {first}")
        like = next(found["test_scores"] for found in out if found["test_scores"] is not None)
        blank = {name: self.error_score for name in like} if isinstance(like, dict) else self.error_score
        for found in out:
            found.update({name: blank for name, score in found.items() if score is None})
        if failed:
            warnings.warn(
                f"{len(failed)} of {len(out)} fits failed and score {self.error_score}. The first one: {failed[0]}",
                FitFailedWarning,
                stacklevel=3,
            )
        return like


@dataclass(frozen=True, slots=True)
class _Fit:
    """A run, and the fitted steps of the pipeline before its network."""

    run: Run
    steps: tuple[tuple[str, Any], ...]
    name: str

    def fitted(self) -> Any:
        """The fitted estimator, as a pipeline if it stands in one."""
        assert self.run.model is not None
        network = self.run.estimator.adopt(self.run.problem, self.run.model)
        return Pipeline([*self.steps, (self.name, network)]) if self.name else network


class _Prepared:
    """Data of the folds, each made once for all candidates that do not change the steps before the network."""

    def __init__(self, estimator: Any, X: Any, y: Any, rows: Sequence[Any]) -> None:
        self._estimator, self._X, self._y, self._rows = estimator, X, y, rows
        self._transformed: dict[tuple[str, int], tuple[int, tuple[tuple[str, Any], ...], Any]] = {}
        self._problems: dict[tuple[int, str], Problem] = {}

    def fit(self, params: Mapping[str, Any], fold: int) -> _Fit:
        """A candidate on a fold, ready to train, or with the error that stands in the way."""
        estimator = _with(self._estimator, params)
        network, prefix = network_of(estimator)
        y = _safe_indexing(self._y, self._rows[fold]) if self._y is not None else None
        before = repr(
            sorted((name, repr(value)) for name, value in params.items() if not name.startswith(prefix or name))
        )
        steps: tuple[tuple[str, Any], ...] = ()
        try:
            if (before, fold) not in self._transformed:
                X = _safe_indexing(self._X, self._rows[fold])
                if prefix and len(estimator.steps) > 1:
                    first = estimator[:-1]
                    X = first.fit_transform(X, y)
                    steps = tuple(first.steps)
                self._transformed[before, fold] = len(self._transformed), steps, X
            block, steps, X = self._transformed[before, fold]
            settings = repr((type(network), getattr(network, "class_weight", None), network.define is None))
            if (block, settings) not in self._problems:
                self._problems[block, settings] = network.problem(X, y)
        except Exception as error:  # of this candidate: the others may do
            return _Fit(Run(network, _NOTHING, -1, error), steps, prefix[:-2])
        return _Fit(Run(network, self._problems[block, settings], block), steps, prefix[:-2])


_NOTHING = Problem(torch.empty(0, 0), torch.empty(0), 0, {})


@contextmanager
def _threads(n_jobs: int | None) -> Iterator[None]:
    """So many threads inside, counted as scikit-learn counts its processes.

    Raises:
        UsageError: If it is no number that makes sense.
    """
    if n_jobs is None:
        yield
        return
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int | np.integer) or n_jobs == 0:
        raise UsageError(f"n_jobs must be a number of threads, -1 for one per core, or None, not {n_jobs!r}.")
    with threads(int(n_jobs) if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + int(n_jobs))):
        yield


def _with(estimator: Any, params: Mapping[str, Any]) -> Any:
    return clone(estimator).set_params(**clone(dict(params), safe=False))


def network_of(estimator: Any) -> tuple[ShoalEstimator, str]:
    """The estimator that trains a network, and what its parameters' names begin with.

    Raises:
        UsageError: If there is none.
    """
    if isinstance(estimator, ShoalEstimator):
        return estimator, ""
    if isinstance(estimator, Pipeline) and isinstance(estimator.steps[-1][1], ShoalEstimator):
        return estimator.steps[-1][1], f"{estimator.steps[-1][0]}__"
    raise UsageError(
        "ShoalSearchCV searches over a ShoalClassifier or ShoalRegressor, or a Pipeline that ends with one, not "
        f"{type(estimator).__name__}; for other estimators use GridSearchCV."
    )
