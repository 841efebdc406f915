"""``tune_table``: from a data file to a tuned model, by the very same ``tune`` that a file of code goes through."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from shoal.errors import StudyError, UsageError, did_you_mean
from shoal.folds import refuse_folds
from shoal.nn import mlp
from shoal.recipe import Recipe
from shoal.replay import ReplayTrial
from shoal.study import Study
from shoal.tabular._baselines import Array, Comparison, compare
from shoal.tabular._file import model_path
from shoal.tabular._model import TableModel
from shoal.tabular._prepare import Preparation, learn
from shoal.tabular._read import Table, read_table
from shoal.tabular._recipe import Plan, choose, make_define, space_of
from shoal.tabular._split import Parts, split
from shoal.tabular._target import Target, learn_target, missing_rows
from shoal.tuning import resume, tune


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A table ready for ``tune``: ``define``, three parts as tensors, and what was learnt on the way.

    ``encoded`` are the targets of the training and of the test rows before scaling, and ``plain`` their inputs with every
    number scaled linearly: both are what the baselines get.
    """

    define: Callable[[Any], Recipe]
    train: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    plan: Plan
    preparation: Preparation
    target: Target
    encoded: tuple[Array, Array]
    plain: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    notes: tuple[str, ...]

    @staticmethod
    def define_for(plan: Plan) -> Callable[[Any], Recipe]:
        """What ``define`` would be with another plan."""
        return make_define(plan)


@dataclass(frozen=True, slots=True, eq=False)
class TableStudy:
    """What ``tune_table`` returns.

    Attributes:
        study: The ``shoal.Study``.
        model: The best trial's model, ready to predict; None if no trial has finished.
        comparison: Its test scores beside scikit-learn's; None for a study that was interrupted, or without baselines.
        model_file: Where the model was written; None for a study in memory.
        notes: What was left out or mended in the table, one sentence each.
    """

    study: Study
    model: TableModel | None
    comparison: Comparison | None
    model_file: Path | None
    notes: tuple[str, ...]

    def predict(self, source: Any) -> Any:
        """The best model's predictions for new rows; see ``TableModel.predict``.

        Raises:
            StudyError: If no trial has finished.
        """
        if self.model is None:
            raise StudyError("no trial has finished yet, so there is no model; run more trials or epochs.")
        return self.model.predict(source)


def prepare_table(
    data: Any,
    *,
    target: str | Sequence[str],
    task: str | None = None,
    group: str | None = None,
    time: str | None = None,
    ignore: str | Sequence[str] = (),
    space: Mapping[str, Any] | None = None,
    valid: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Prepared:
    """Read, split and learn a table, with nothing trained. Arguments, and what is raised, as for ``tune_table``."""
    table = read_table(data)
    names = [target] if isinstance(target, str) else list(target)
    ignored = [ignore] if isinstance(ignore, str) else list(ignore)
    for name in ignored:
        table.column(name, "to be ignored")
    _check_roles(names, group, time, ignored)
    wanted = learn_target(table, names, task)
    encoded = wanted.encode(table)
    missing = missing_rows(encoded)
    parts = split(
        table,
        np.flatnonzero(~missing),
        encoded if wanted.task == "classes" else None,
        group=group,
        time=time,
        valid=valid,
        test=test,
        seed=seed,
    )
    notes = [*table.notes, *parts.notes]
    if missing.any():
        notes.append(f"{int(missing.sum())} rows without a target are left out")
    preparation, learnt = learn(table, parts.train, [*names, *ignored, *filter(None, (group, time))])
    wanted = wanted.scaled_to(encoded[parts.train]) if wanted.task == "numbers" else wanted
    return _assemble(table, parts, preparation, wanted, encoded, (*notes, *learnt), space)


def _assemble(
    table: Table,
    parts: Parts,
    preparation: Preparation,
    target: Target,
    encoded: Array,
    notes: tuple[str, ...],
    space: Mapping[str, Any] | None,
) -> Prepared:
    inputs, _ = preparation.apply(table)
    answers = target.tensor(encoded)
    train, valid, test = (
        tuple(tensor[rows] for tensor in (*inputs, answers)) for rows in (parts.train, parts.valid, parts.test)
    )
    counts = np.bincount(encoded[parts.train], minlength=target.n_out) if target.task == "classes" else ()
    plan = Plan(
        target.task,
        preparation.n_numbers,
        preparation.sizes,
        target.n_out,
        len(parts.train),
        tuple(int(count) for count in counts),
        space_of(space),
    )
    both = encoded[parts.train], encoded[parts.test]
    linear, _ = preparation.unbent().apply(table)
    plain = tuple(t[parts.train] for t in linear), tuple(t[parts.test] for t in linear)
    return Prepared(make_define(plan), train, valid, test, plan, preparation, target, both, plain, notes)


def tune_table(
    data: Any,
    *,
    target: str | Sequence[str],
    task: str | None = None,
    group: str | None = None,
    time: str | None = None,
    ignore: str | Sequence[str] = (),
    space: Mapping[str, Any] | None = None,
    valid: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    baselines: bool = True,
    **options: Any,
) -> TableStudy:
    """Search for the best model of a table's target, and set it beside scikit-learn's.

    Types of columns, missing values, categories, dates and scales are learnt from the training rows alone. The model is
    ``shoal.nn.mlp`` with embeddings for categories, and a linear model beside it.

    Args:
        data: A CSV or Parquet file, or a pandas data frame.
        target: The column to predict; a list of columns for several labels, or several numbers.
        task: "classes", "labels" or "numbers"; by default what the target's values suggest.
        group: A column whose equal values stay in one part; it is no input.
        time: A column to order the rows by; the last ones are the test part, those before them the validation part. It is
            no input.
        ignore: Columns that are no inputs.
        space: Parts of the search space, as for ``shoal.nn.mlp_space``.
        valid, test: Fractions of the rows, above 0 and below 0.5. Without `group` and `time` they are drawn by `seed`,
            classes in proportion.
        seed: Everything random follows from it.
        baselines: Whether to fit scikit-learn's linear model and gradient boosting on the same training rows.
        options: Further keywords of ``shoal.tune``. The metric is by default accuracy, macro F1 (a class with less than a
            quarter of another's rows), R2, or, for labels, the loss; trials and epochs by the number of rows; trials are
            judged by their best epoch.

    Returns:
        The study, the model, and the comparison. With ``storage=`` the model is written beside the study file.

    Raises:
        UsageError: If an argument makes no sense, or pandas or scikit-learn are not installed.
        DataError: If the table cannot be learnt from.
        StorageError: If the study file cannot be used, or belongs to other data.
    """
    taken = ("define", "train", "valid", "test")
    known = [name for name in _keywords(tune) if name not in taken]
    for name in options:
        if name not in known:
            raise UsageError(
                f"tune_table() has no keyword {name!r}.{did_you_mean(name, [*known, *_keywords(tune_table)])}"
            )
    ready = prepare_table(
        data,
        target=target,
        task=task,
        group=group,
        time=time,
        ignore=ignore,
        space=space,
        valid=valid,
        test=test,
        seed=seed,
    )
    return tune_prepared(ready, seed=seed, baselines=baselines, **options)


def tune_prepared(ready: Prepared, *, seed: int = 0, baselines: bool = True, **options: Any) -> TableStudy:
    """The second half of ``tune_table``, for callers with something to say in between."""
    refuse_folds(options)
    options = {"metric": ready.plan.metric, "value": "best", **ready.plan.budget, **options}
    study = tune(ready.define, train=ready.train, valid=ready.valid, test=ready.test, seed=seed, **options)
    return _finish(study, ready, options.get("storage"), baselines)


def resume_table(
    storage: str | Path,
    data: Any,
    *,
    target: str | Sequence[str],
    task: str | None = None,
    group: str | None = None,
    time: str | None = None,
    ignore: str | Sequence[str] = (),
    space: Mapping[str, Any] | None = None,
    valid: float = 0.2,
    test: float = 0.2,
    baselines: bool = True,
    **options: Any,
) -> TableStudy:
    """Continue a study of a table from its file, with the options it was started with.

    Args:
        storage: The study file.
        data, target, task, group, time, ignore, space, valid, test: What the study was started with; the file holds no data.
        baselines: As for ``tune_table``.
        options: ``n_trials``, ``max_epochs``, ``timeout_s``, ``progress``, ``study_name``, as for ``shoal.resume``.

    Raises:
        UsageError: If an argument makes no sense.
        StorageError: If the file is missing or no study, or belongs to another table or target.
    """
    known = ("n_trials", "max_epochs", "timeout_s", "progress", "study_name")
    for name in options:
        if name not in known:
            raise UsageError(f"resume_table() has no keyword {name!r}.{did_you_mean(name, known)}")
    ready = prepare_table(
        data,
        target=target,
        task=task,
        group=group,
        time=time,
        ignore=ignore,
        space=space,
        valid=valid,
        test=test,
        seed=seed_of(storage, options.get("study_name")),
    )
    return resume_prepared(storage, ready, baselines=baselines, **options)


def resume_prepared(storage: str | Path, ready: Prepared, *, baselines: bool = True, **options: Any) -> TableStudy:
    """The second half of ``resume_table``, for callers with something to say in between."""
    study = resume(storage, ready.define, train=ready.train, valid=ready.valid, test=ready.test, **options)
    return _finish(study, ready, storage, baselines)


def seed_of(storage: str | Path, study_name: str | None = None) -> int:
    """The seed that a study was started with, on which the split of its rows depends.

    Raises:
        StorageError: If the file is missing or no study.
    """
    from shoal.storage import load_meta

    kept = load_meta(storage, study_name)[1].get("options")
    seed = kept.get("seed") if isinstance(kept, dict) else None
    return seed if isinstance(seed, int) else 0


def _finish(study: Study, ready: Prepared, storage: str | Path | None, baselines: bool) -> TableStudy:
    """The best trial's model, written beside the study, and its test scores beside those of the baselines."""
    best = study.record.best()
    if best is None:
        return TableStudy(study, None, None, None, ready.notes)
    arguments, _ = choose(ready.plan, ReplayTrial(best.trained))
    arguments = {name: arguments.get(name, default) for name, default in _mlp_keywords().items()}
    model = TableModel(ready.preparation, ready.target, arguments, study.best_model(best.spec.number))
    written = None if storage is None else model.save(model_path(storage, study.record.name))
    comparison = None
    if baselines and not study.interrupted:
        decided = ready.target.decide(model.scores(ready.test[:-1]))
        comparison = compare(ready.target, decided, *ready.plain, ready.encoded)
        study.note("comparison", comparison.to_json(best.spec.number))
    return TableStudy(study, model, comparison, written, ready.notes)


def predict_table(study: str | Path, data: Any) -> Any:
    """Predictions of a tuned model for new rows.

    Args:
        study: The study file that ``tune_table`` wrote, or the model file beside it.
        data: A CSV or Parquet file, or a data frame.

    Returns:
        A data frame, as ``TableModel.predict`` describes it.

    Raises:
        StorageError: If there is no model, or it is damaged.
        DataError: If the rows cannot be read, or have none of the model's columns.
    """
    from shoal.tabular._model import load_table_model

    return load_table_model(study).predict(data)


def _check_roles(targets: Sequence[str], group: str | None, time: str | None, ignored: Sequence[str]) -> None:
    for name, role in ((group, "group"), (time, "time")):
        if name in targets:
            raise UsageError(f"{name!r} cannot be both the target and the {role}.")
    for name in ignored:
        if name in targets:
            raise UsageError(f"{name!r} cannot be both the target and ignored.")


def _keywords(function: Callable[..., object]) -> list[str]:
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD]


def _mlp_keywords() -> dict[str, Any]:
    """Every keyword of ``mlp`` with its default. Initial weights are no part of a trained network."""
    return {name: p.default for name, p in inspect.signature(mlp).parameters.items() if name != "init"}
