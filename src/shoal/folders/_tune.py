"""``tune_folder``: from a folder of class-named folders to a tuned model, by the very same ``tune``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn, optim

from shoal.errors import UsageError, did_you_mean
from shoal.folders._files import Folder, read_folder
from shoal.folders._images import Images, learn_images
from shoal.folders._model import FolderModel, load_folder_model, unreadable
from shoal.folders._texts import learn_texts
from shoal.folds import refuse_folds
from shoal.nn import cnn, cnn_space, mlp, optimizer
from shoal.recipe import Recipe
from shoal.replay import ReplayTrial
from shoal.study import Study
from shoal.tabular import seed_of
from shoal.tabular._baselines import LINEAR, OURS, Array, Comparison, measure
from shoal.tabular._file import model_path
from shoal.tabular._recipe import Plan, choose, make_define, space_of
from shoal.tabular._split import draw_parts
from shoal.tabular._target import Target
from shoal.tuning import resume, tune


@dataclass(frozen=True, slots=True, eq=False)
class PreparedFolder:
    """A folder ready for ``tune``: ``define``, three parts as tensors (inputs, classes), and what was learnt on the way."""

    define: Callable[[Any], Recipe]
    train: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    plan: Plan
    preparation: Any
    target: Target
    notes: tuple[str, ...]

    @property
    def builder(self) -> Callable[..., nn.Module]:
        """What makes the network."""
        return cnn if isinstance(self.preparation, Images) else mlp

    def define_for(self, plan: Plan) -> Callable[[Any], Recipe]:
        """What ``define`` would be with another plan."""
        return _define_images(plan, self.preparation.shape) if self.builder is cnn else make_define(plan)

    def arguments(self, trial: Any) -> dict[str, Any]:
        """Keywords of the builder for one trial, initial weights left out: they are no part of a trained network."""
        defaults = {name: p.default for name, p in inspect.signature(self.builder).parameters.items() if name != "init"}
        made, _ = self._chooser(self.plan, trial)
        return {name: made.get(name, default) for name, default in defaults.items()}

    def _chooser(self, plan: Plan, trial: Any) -> Any:
        if not isinstance(self.preparation, Images):
            return choose(plan, trial)
        return choose_cnn(plan, self.preparation.shape, trial)


@dataclass(frozen=True, slots=True, eq=False)
class FolderStudy:
    """What ``tune_folder`` returns.

    Attributes:
        study: The ``shoal.Study``.
        model: The best trial's model, ready to predict; None if no trial has finished.
        comparison: Its test scores beside those of a linear model; None for a study that was interrupted, or without baselines.
        model_file: Where the model was written; None for a study in memory.
        notes: What was left out, one sentence each.
    """

    study: Study
    model: FolderModel | None
    comparison: Comparison | None
    model_file: Path | None
    notes: tuple[str, ...]


def prepare_folder(path: str | Path, *, space: Mapping[str, Any] | None = None, seed: int = 0) -> PreparedFolder:
    """Read, split and learn a folder, with nothing trained. Arguments, and what is raised, as for ``tune_folder``."""
    folder = read_folder(path)
    parts = draw_parts(folder.labels, valid=0.2, test=0.2, seed=seed)
    learn: Callable[[list[Path]], Any] = learn_images if folder.kind == "images" else learn_texts
    preparation = learn([folder.files[i] for i in parts.train])
    inputs, bad = preparation.apply(folder.files)
    notes = [*folder.notes, *parts.notes, *unreadable([folder.files[i] for i in bad])]
    target = Target("classes", ("class",), folder.classes)
    answers = target.tensor(folder.labels)
    kept = [np.setdiff1d(rows, bad) for rows in (parts.train, parts.valid, parts.test)]
    train, valid, test = ((inputs[rows], answers[rows]) for rows in kept)
    plan = _plan(folder, kept[0], inputs, space)
    if folder.kind == "images":
        define = _define_images(plan, preparation.shape)
    else:
        define = make_define(plan)
    return PreparedFolder(define, train, valid, test, plan, preparation, target, tuple(notes))


def _plan(folder: Folder, train: Array, inputs: Tensor, space: Mapping[str, Any] | None) -> Plan:
    counts = np.bincount(folder.labels[train], minlength=len(folder.classes))
    n_in = int(inputs[0].numel())
    return Plan("classes", n_in, (), len(folder.classes), len(train), tuple(map(int, counts)), space_of(space))


def _define_images(plan: Plan, shape: tuple[int, int, int]) -> Callable[[Any], Recipe]:
    def define(trial: Any) -> Recipe:
        arguments, training = choose_cnn(plan, shape, trial)
        return training(cnn(**arguments))

    return define


def choose_cnn(
    plan: Plan, shape: tuple[int, int, int], trial: Any
) -> tuple[dict[str, Any], Callable[[nn.Module], Recipe]]:
    """What a trial on images suggests: keywords of ``shoal.nn.cnn``, and a function that makes the recipe of such a model."""
    side = min(shape[1:])
    knobs: dict[str, Any] = {
        "channels": [8, 16],
        "depth": 2 if side >= 4 else 1,
        "pool": 2 if side >= 4 else 1,
        "lr": (1e-4, 1e-2),
        "optimizer": ["adamw", "adam"],
        "init": "default",
        "batch_size": min(32, plan.n_train),
    }
    pick = cnn_space(trial, **{**knobs, **dict(plan.space)})
    decay = trial.suggest_float("lr_decay", 0.8, 1.0)

    def training(model: nn.Module) -> Recipe:
        made = optimizer(model, **pick.optimizer)
        schedule = optim.lr_scheduler.ExponentialLR(made, decay)
        loss = nn.CrossEntropyLoss()
        return Recipe(model, made, loss, pick.batch_size, schedule=schedule, extensions=pick.extensions)

    return {"in_shape": shape, "n_out": plan.n_out, **pick.model}, training


def tune_folder(
    path: str | Path,
    *,
    space: Mapping[str, Any] | None = None,
    seed: int = 0,
    baselines: bool = True,
    **options: Any,
) -> FolderStudy:
    """Search for the best classifier of images or texts that lie in class-named folders.

    Images are shrunk to at most 32 pixels and go to ``shoal.nn.cnn``; texts become vectors of word frequencies (TF-IDF)
    and go to ``shoal.nn.mlp``. A fifth of the files is the test part and a fifth the validation part, classes in proportion.

    Args:
        path: The folder: ``photos/cat/1.png``, ``photos/dog/7.png``, ...
        space: Parts of the search space, as for ``shoal.nn.cnn_space`` or ``shoal.nn.mlp_space``.
        seed: Everything random follows from it.
        baselines: Whether to fit scikit-learn's logistic regression on the same inputs.
        options: Further keywords of ``shoal.tune``; defaults as for ``shoal.tune_table``.

    Raises:
        UsageError: If an argument makes no sense, or a package is missing.
        DataError: If the folder cannot be learnt from.
        StorageError: If the study file cannot be used, or belongs to other data.
    """
    known = [name for name in inspect.signature(tune).parameters if name not in ("define", "train", "valid", "test")]
    _check_names("tune_folder", options, known)
    ready = prepare_folder(path, space=space, seed=seed)
    return tune_prepared_folder(ready, seed=seed, baselines=baselines, **options)


def tune_prepared_folder(
    ready: PreparedFolder, *, seed: int = 0, baselines: bool = True, **options: Any
) -> FolderStudy:
    """The second half of ``tune_folder``, for callers with something to say in between."""
    refuse_folds(options)
    options = {"metric": ready.plan.metric, "value": "best", **ready.plan.budget, **options}
    study = tune(ready.define, train=ready.train, valid=ready.valid, test=ready.test, seed=seed, **options)
    return _finish(study, ready, options.get("storage"), baselines)


def resume_folder(
    storage: str | Path,
    path: str | Path,
    *,
    space: Mapping[str, Any] | None = None,
    baselines: bool = True,
    **options: Any,
) -> FolderStudy:
    """Continue a study of a folder from its file, with the options it was started with.

    Args:
        storage: The study file.
        path, space: What the study was started with.
        baselines: As for ``tune_folder``.
        options: ``n_trials``, ``max_epochs``, ``timeout_s``, ``progress``, ``study_name``, as for ``shoal.resume``.

    Raises:
        UsageError: If an argument makes no sense.
        StorageError: If the file is missing or no study, or belongs to other files.
    """
    _check_names("resume_folder", options, ("n_trials", "max_epochs", "timeout_s", "progress", "study_name"))
    ready = prepare_folder(path, space=space, seed=seed_of(storage, options.get("study_name")))
    return resume_prepared_folder(storage, ready, baselines=baselines, **options)


def resume_prepared_folder(
    storage: str | Path, ready: PreparedFolder, *, baselines: bool = True, **options: Any
) -> FolderStudy:
    """The second half of ``resume_folder``, for callers with something to say in between."""
    study = resume(storage, ready.define, train=ready.train, valid=ready.valid, test=ready.test, **options)
    return _finish(study, ready, storage, baselines)


def predict_folder(study: str | Path, path: str | Path) -> Any:
    """Predictions of a tuned model for a file, or for all files of a folder; see ``FolderModel.predict``.

    Args:
        study: The study file that ``tune_folder`` wrote, or the model file beside it.
        path: The file or folder.

    Raises:
        StorageError: If there is no model, or it is damaged.
        DataError: If none of the files can be read.
    """
    return load_folder_model(study).predict(path)


def _finish(study: Study, ready: PreparedFolder, storage: str | Path | None, baselines: bool) -> FolderStudy:
    best = study.record.best()
    if best is None:
        return FolderStudy(study, None, None, None, ready.notes)
    model = FolderModel(
        ready.preparation, ready.target, ready.arguments(ReplayTrial(best.trained)), study.best_model(best.spec.number)
    )
    written = None if storage is None else model.save(model_path(storage, study.record.name))
    comparison = None
    if baselines and not study.interrupted:
        comparison = _compare(model.target.decide(model.scores(ready.test[:1])), ready)
        study.note("comparison", comparison.to_json(best.spec.number))
    return FolderStudy(study, model, comparison, written, ready.notes)


def _compare(ours: Array, ready: PreparedFolder) -> Comparison:
    """The model beside logistic regression on the same inputs, pixels or word frequencies."""
    from sklearn.linear_model import LogisticRegression

    linear = LogisticRegression(max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not quite converged is no news about the user's data
        linear.fit(ready.train[0].flatten(1).numpy(), ready.train[1].numpy())
    guess, truth = linear.predict(ready.test[0].flatten(1).numpy()), ready.test[1].numpy()
    decided = {OURS: ours, LINEAR: guess}
    return Comparison(len(truth), {name: measure("classes", truth, d) for name, d in decided.items()})


def _check_names(function: str, options: Mapping[str, Any], known: Any) -> None:
    for name in options:
        if name not in known:
            raise UsageError(f"{function}() has no keyword {name!r}.{did_you_mean(name, known)}")
