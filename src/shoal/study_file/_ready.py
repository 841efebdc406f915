"""A study file with its data read: what would run, and running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from shoal._user_file import load_user_file
from shoal.data import Datasets, load
from shoal.errors import ShoalError, UsageError, did_you_mean
from shoal.nn import Range, extensions
from shoal.nn._extensions import checked as checked_fields
from shoal.study_file._read import StudyFile, read_study_file

_MOST_VALUES: Final = 20  # of one choice that are tried out
_COLUMNS: Final = ("target", "group", "time", "ignore")


@dataclass(frozen=True, slots=True, eq=False)
class ReadyStudy:
    """What a study file names, read and checked.

    Attributes:
        file: What the file says.
        source: A prepared table or folder, or a file of code; each has ``define``.
        parts: Its parts as ``shoal.tune`` takes them.
        data: The same as tensors, a validation part split off.
        keywords: For ``shoal.tune``, ``storage`` and ``metric`` included.
        baselines: Whether scikit-learn's models are fitted as well.
    """

    file: StudyFile
    source: Any
    parts: Mapping[str, Any]
    data: Datasets
    keywords: Mapping[str, Any]
    baselines: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or mended in the data, one sentence each."""
        return tuple(getattr(self.source, "notes", ()))

    @property
    def splits(self) -> dict[str, Any]:
        """The data as keywords of ``shoal.tune``; read once, unless folds are to be made of all rows."""
        if self.keywords.get("folds") is not None:
            return dict(self.parts)
        return {"train": self.data.train, "valid": self.data.valid, "test": self.data.test}


def prepare_study(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, seed: int | None = None
) -> ReadyStudy:
    """Read a study file and its data, and check all that can be checked without training.

    Args:
        path: The study file.
        overrides: Keywords of ``shoal.tune`` that win over the file's.
        seed: That the rows are split by; by default the study's.

    Raises:
        UsageError: If something makes no sense; the message names line and key. DataError if the data cannot be learnt from.
    """
    file = read_study_file(path)
    given = {**file.given, **(overrides or {})}
    given.setdefault("storage", str(Path(file.path).with_suffix(".db")))
    row_seed = given.get("seed", 0) if seed is None else seed
    makers: Mapping[str, Callable[[], Any]] = {
        "code": lambda: _code(file, given),
        "table": lambda: _table(file, given, row_seed),
        "folder": lambda: _folder(file, given, row_seed),
    }
    source = makers[file.source]()
    taken = ("define", "data", "target", "task", "group", "time", "ignore", "valid", "test", "baselines")
    keywords = {name: value for name, value in given.items() if name not in taken}
    if file.source == "code":
        keywords = {**source.options, **keywords}
        with _at(file, "data", "code"):
            _check_options(keywords)
        keywords.setdefault("storage", given["storage"])
    else:
        keywords = {"metric": source.plan.metric, "value": "best", **source.plan.budget, **keywords}
    parts = {part: getattr(source, part) for part in ("train", "valid", "test")}
    if file.source == "code":
        parts |= {part: file.given[part] for part in ("valid", "test") if part in file.given}
    with _at(file, "data"):
        data = load(
            **parts,
            seed=keywords.get("seed", 0),
            hyper_valid=keywords.get("hyper_valid"),
            raw=keywords.get("prepare") is not None,
        )
    ready = ReadyStudy(file, source, parts, data, keywords, bool(given.get("baselines", True)))
    _check(ready)
    return ready


@contextmanager
def _at(file: StudyFile, *place: str) -> Iterator[None]:
    """Errors inside are the file's: they begin with the place."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file.place(*place)}: {error}") from error
    except OSError as error:
        raise UsageError(f"{file.place(*place)}: {error.strerror or error}.") from error


def _code(file: StudyFile, given: Mapping[str, Any]) -> Any:
    from shoal.tuning import tune

    known = [name for name in inspect.signature(tune).parameters if name not in ("define", "train", "valid", "test")]
    with _at(file, "data", "code"):
        user = load_user_file(given["define"], known)
    for part in ("valid", "test"):
        if part in given and getattr(user, part) is not None:
            raise UsageError(
                f"{file.place('data', part)}: data() in {user.path} gives that part already; leave one of them out."
            )
    return user


def _check_options(keywords: Mapping[str, Any]) -> None:
    """The options of FILE.py are Python, and may be wrong in ways that a study file cannot."""
    storage = keywords.get("storage")
    if storage is not None and not isinstance(storage, str | Path):
        raise UsageError(f"options['storage'] must be a path or a URL, not {storage!r}.")


def _table(file: StudyFile, given: Mapping[str, Any], seed: int) -> Any:
    from shoal.tabular import prepare_table, read_table

    with _at(file, "data", "file"):
        table = read_table(given["data"])
    for name in _COLUMNS:
        for column in _listed(given.get(name, [])):
            with _at(file, "data", name):
                table.column(column, {"ignore": "to be ignored"}.get(name, f"the {name}"))
    options = {
        name: given[name] for name in ("target", "task", "group", "time", "ignore", "valid", "test") if name in given
    }
    with _at(file, "data"):
        ready = prepare_table(table, seed=seed, space=file.knobs, **options)
    return _with_checked_knobs(file, ready)


def _folder(file: StudyFile, given: Mapping[str, Any], seed: int) -> Any:
    from shoal.folders import prepare_folder

    with _at(file, "data", "file"):
        ready = prepare_folder(given["data"], seed=seed, space=file.knobs)
    return _with_checked_knobs(file, ready)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _with_checked_knobs(file: StudyFile, ready: Any) -> Any:
    """The same, once each part of the model and space has been tried by itself, every choice and both ends of every range."""
    from shoal.nn import cnn, mlp
    from shoal.nn._spaces import SPACES

    builder = cnn if getattr(ready, "builder", mlp) is cnn else mlp
    reserved = ("n_in", "n_out", "categories", "in_shape")
    known = {name for name in inspect.signature(builder).parameters if name not in reserved}
    known |= {"optimizer", "lr", "weight_decay", "batch_size"}
    assert known >= set(SPACES[builder.__name__][1])
    n_train = ready.plan.n_train
    for name, knob in file.knobs.items():
        if name in extensions():
            _check_extension(file, ready, name)
            continue
        section = "model" if ("model", name) in file.lines else "space"
        if name not in known:
            raise UsageError(
                f"{file.place(section, name)}: shoal.nn.{builder.__name__} has no such keyword.{did_you_mean(name, known)}"
            )
        with _at(file, section, name):
            if name == "batch_size" and any(isinstance(v, int) and v > n_train for v in _values(knob)):
                raise UsageError(f"there are {n_train} training rows; a batch can be no larger.")
            for value in _values(knob):
                _try_out(ready, {name: [value] if isinstance(value, list) else value})
    return ready


def _check_extension(file: StudyFile, ready: Any, name: str) -> None:
    """Try an extension on a recipe of the space, one field after the other: all others at the first of their values."""
    fields = file.knobs[name]
    space = {other: knob for other, knob in file.knobs.items() if other not in extensions()}
    with _at(file, "extensions", name):
        checked = checked_fields(name, fields)
        first = {field: _values(knob)[0] for field, knob in checked.items()}
        _try_out(ready, {**space, name: first})
    for field, knob in checked.items():
        with _at(file, "extensions", name, field):
            for value in _values(knob)[1:]:
                _try_out(ready, {**space, name: {**first, field: value}})


def _values(knob: Any) -> list[Any]:
    if isinstance(knob, list):
        return knob[:_MOST_VALUES]
    return [knob.low, knob.high] if isinstance(knob, Range) else [knob]


def _try_out(ready: Any, parts: Mapping[str, Any]) -> None:
    """Make a recipe with these parts of the space, of which the last is tried.

    Raises:
        UsageError: If that makes no sense.
    """
    import optuna

    from shoal.replay import run_define
    from shoal.samplers import quiet

    plan = replace(ready.plan, space=tuple(parts.items()))
    with quiet():
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        try:
            run_define(ready.define_for(plan), trial, 0, plan.n_train)
        except ShoalError as error:
            raise UsageError(str(error).removeprefix("trial 0: ")) from error
        except Exception as error:  # whatever torch or Optuna say to it
            value = list(parts.values())[-1]
            raise UsageError(f"{value!r:.60} makes no sense here ({str(error).splitlines()[0]:.200}).") from error


def _check(ready: ReadyStudy) -> None:
    """Names of samplers, schedulers and metrics, the device, and the points to try first."""
    from shoal import samplers, schedulers
    from shoal.devices import device_named
    from shoal.judging import judged_by
    from shoal.metrics import further
    from shoal.replay import run_define
    from shoal.spaces import check_points

    file, keywords, data = ready.file, ready.keywords, ready.data
    written = file.given
    with _at(file, "sampler"):
        if "sampler" in written:
            samplers.resolve(keywords["sampler"])
    with _at(file, "scheduler", "name"):
        if "scheduler" in written:
            schedulers.resolve(keywords["scheduler"], max_epochs=keywords.get("max_epochs", 30), n_trials=2)
    with _at(file, "study", "device"):
        if "device" in written:
            device_named(keywords["device"])
    targets = data.train.tensors[-1] if len(data.train.tensors) > 1 else None
    with _at(file, "metrics", "metric"):
        if "metric" in written:
            judged_by(keywords["metric"], keywords.get("direction"), (), targets=targets)
    with _at(file, "metrics", "constraints"):
        if "constraints" in written:
            judged_by(keywords.get("metric"), keywords.get("direction"), keywords["constraints"], targets=targets)
    with _at(file, "metrics", "metrics"):
        if "metrics" in written:
            further(keywords["metrics"], targets=targets)
    with _at(file, "enqueue"):
        if "enqueue" in written:
            check_points(lambda trial: run_define(ready.source.define, trial, 0, data.train.n), keywords["enqueue"])


def tune_study(ready: ReadyStudy, **options: Any) -> tuple[Any, Any]:
    """Run the study: (``Study``, ``TableStudy`` or ``FolderStudy`` or None for code). `options` win over the file's."""
    keywords = {**ready.keywords, **options}
    if ready.file.source == "code":
        from shoal.tuning import tune

        return tune(ready.source.define, **ready.splits, **keywords), None
    tuned = _package(ready).tune(ready.source, baselines=ready.baselines, **keywords)
    return tuned.study, tuned


def resume_study(storage: str, ready: ReadyStudy, **options: Any) -> tuple[Any, Any]:
    """Go on with the study, with the options that it was started with; returns what ``tune_study`` does."""
    if ready.file.source == "code":
        from shoal.tuning import resume

        prepare = ready.keywords.get("prepare")
        return resume(storage, ready.source.define, **ready.splits, prepare=prepare, **options), None
    tuned = _package(ready).resume(storage, ready.source, baselines=ready.baselines, **options)
    return tuned.study, tuned


@dataclass(frozen=True, slots=True)
class _Halves:
    """The second halves of ``tune_table`` and ``resume_table``, or of those for folders."""

    tune: Callable[..., Any]
    resume: Callable[..., Any]


def _package(ready: ReadyStudy) -> _Halves:
    if ready.file.source == "folder":
        from shoal import folders

        return _Halves(folders.tune_prepared_folder, folders.resume_prepared_folder)
    from shoal import tabular

    return _Halves(tabular.tune_prepared, tabular.resume_prepared)
