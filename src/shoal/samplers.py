"""Samplers by name: what each one needs, which options it takes, and how a fresh one is made for every ask."""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from shoal.errors import UsageError, did_you_mean
from shoal.records import Json
from shoal.refine import NAME as REFINE
from shoal.refine import GradientRefine

if TYPE_CHECKING:
    import optuna

SamplerArgument: TypeAlias = "str | Mapping[str, Any] | GradientRefine | optuna.samplers.BaseSampler | None"

# (study seed, seed of this ask, options) -> sampler
Maker: TypeAlias = "Callable[[int, int, Mapping[str, Any]], optuna.samplers.BaseSampler]"


@dataclass(frozen=True, slots=True)
class _Named:
    """What is known of a sampler that has a name.

    Attributes:
        optuna_name: Optuna's class, whose keywords are its options.
        learns: Whether it looks at results. If not, any number of trials may run at once.
        warms: Whether it gains from the trials of earlier studies.
        needs: Packages beyond Shoal's own.
        own: Keywords that Shoal sets itself.
    """

    optuna_name: str
    learns: bool = True
    warms: bool = False
    needs: tuple[str, ...] = ()
    own: tuple[str, ...] = ("seed",)


_NAMED: Mapping[str, _Named] = {
    "tpe": _Named("TPESampler", warms=True),
    "random": _Named("RandomSampler", learns=False),
    "grid": _Named("GridSampler", learns=False),
    "qmc": _Named("QMCSampler", learns=False, needs=("scipy",), own=("seed", "independent_sampler")),
    "gp": _Named("GPSampler", warms=True, needs=("scipy",)),
    "cmaes": _Named("CmaEsSampler", needs=("cmaes",)),
    "nsgaii": _Named("NSGAIISampler"),
    "nsgaiii": _Named("NSGAIIISampler"),
    "brute_force": _Named("BruteForceSampler", learns=False),
}
NAMES = (*_NAMED, REFINE)

# What an option may be, by the type of its default.
_TYPES: Mapping[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a text"),
}

# Objects of these classes look at no result, as ours do not.
_BLIND_CLASSES = frozenset(n.optuna_name for n in _NAMED.values() if not n.learns)


@dataclass(frozen=True, slots=True)
class SamplerPlan:
    """The sampler that the user meant.

    Attributes:
        name: Its name, or its class's name for an object.
        options: Of a named one.
        learns, warms: As for a named one; an object of an unknown class may do both.
        fresh: (study seed, seed of this ask) -> a sampler for one ask; None for an object, which serves all asks.
        given: The object, if it is one.
        as_json: What ``tune`` can be called with again, or None when no file can hold it.
        refine: What is asked for, if it is to follow hypergradients.
    """

    name: str
    options: Mapping[str, Any]
    learns: bool
    warms: bool
    fresh: Callable[[int, int], optuna.samplers.BaseSampler] | None
    given: optuna.samplers.BaseSampler | None = None
    as_json: Json = field(default=None)
    refine: GradientRefine | None = None


def resolve(sampler: SamplerArgument) -> SamplerPlan:
    """The sampler that the user meant.

    Args:
        sampler: A name, a dict of a name and options (``{"name": "tpe", "n_startup_trials": 20}``), a `GradientRefine`, an Optuna
            sampler object, or None for "tpe".

    Raises:
        UsageError: The name or an option is unknown, a package is missing, or the object is no sampler.
    """
    import optuna

    if sampler is None or isinstance(sampler, str):
        return _by_name(sampler or "tpe", {})
    if isinstance(sampler, Mapping):
        options = dict(sampler)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise UsageError(f'a sampler given as a dict needs a "name", such as "tpe"; got {dict(sampler)!r}.')
        return _by_name(name, options)
    if isinstance(sampler, GradientRefine):
        return _refining(sampler)
    if isinstance(sampler, optuna.samplers.BaseSampler):
        kind = type(sampler).__name__
        if type(sampler) is optuna.samplers.GridSampler:  # by name, all is asked ahead and nothing twice
            return _by_name("grid", {"space": {name: list(values) for name, values in sampler._search_space.items()}})
        if type(sampler) is optuna.samplers.BruteForceSampler:
            return _by_name("brute_force", {})
        blind = kind in _BLIND_CLASSES
        return SamplerPlan(kind, {}, not blind, not blind, None, sampler)
    if isinstance(sampler, type) and issubclass(sampler, optuna.samplers.BaseSampler):
        raise UsageError(f"sampler={sampler.__name__} is a class: pass an object, {sampler.__name__}(...).")
    raise UsageError(
        f"sampler must be a name, a dict with a name, or an optuna.samplers object, not {type(sampler).__qualname__}."
    )


def _refining(refine: GradientRefine) -> SamplerPlan:
    options = refine.options

    def fresh(study_seed: int, seed: int) -> optuna.samplers.BaseSampler:
        from shoal._refining import RefiningSampler

        return RefiningSampler(refine, seed)

    as_json: Json = {"name": REFINE, **options} if options else REFINE
    return SamplerPlan(REFINE, options, True, False, fresh, as_json=as_json, refine=refine)


def _by_name(name: str, options: dict[str, Any]) -> SamplerPlan:
    if name == REFINE:
        allowed = [f.name for f in fields(GradientRefine)]
        for option in options:
            if option not in allowed:
                raise UsageError(f"sampler={name!r} has no option {option!r}.{did_you_mean(option, allowed)}")
        return _refining(GradientRefine(**options))
    if name not in _NAMED:
        raise UsageError(f"sampler={name!r} is not known.{did_you_mean(name, NAMES)} Or pass an Optuna sampler object.")
    known = _NAMED[name]
    missing = [package for package in known.needs if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"sampler={name!r} needs {missing[0]}: run `pip install {missing[0]}`.")
    _check_options(name, known, options)
    maker = _makers()[name]
    try:
        as_json = json.loads(json.dumps({"name": name, **options})) if options else name
    except TypeError:  # a callable among the options
        as_json = None

    def fresh(study_seed: int, seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, below
            return maker(study_seed, seed, options)

    try:
        with quiet():
            maker(0, 0, options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"sampler={name!r} does not take {options!r}: {error}") from error
    return SamplerPlan(name, options, known.learns, known.warms, fresh, as_json=as_json)


def _check_options(name: str, known: _Named, options: Mapping[str, Any]) -> None:
    import optuna

    keywords: Mapping[str, inspect.Parameter] = {}
    if name == "grid":
        allowed = ["space"]
    else:
        keywords = inspect.signature(getattr(optuna.samplers, known.optuna_name).__init__).parameters
        allowed = [k for k in keywords if k not in ("self", "args", "kwargs", *known.own)]
    for option, value in options.items():
        if option == "seed":
            raise UsageError(f"the seed of sampler={name!r} follows from the study's: give tune(seed=...) instead.")
        if option not in allowed:
            raise UsageError(f"sampler={name!r} has no option {option!r}.{did_you_mean(option, allowed)}")
        # Optuna would find out in the middle of the study.
        default = keywords[option].default if option in keywords else None
        types, words = _TYPES.get(type(default), (object, ""))
        if not isinstance(value, types) or (
            isinstance(value, bool) and type(default) is not bool and types is not object
        ):
            raise UsageError(f"option {option!r} of sampler={name!r} must be {words}, not {value!r:.60}.")


def _makers() -> dict[str, Maker]:
    """Name -> how a fresh one is made. What one study's samplers share is made here, once."""
    import optuna.samplers as s

    from shoal._tpe import Memory, Tpe

    memory = Memory()
    return {
        "tpe": lambda study, seed, o: s.TPESampler(seed=seed, **o) if o else Tpe(memory, seed),
        "random": lambda study, seed, o: s.RandomSampler(seed=seed),
        # Points of the grid are given by number; what is not in it, if anything, is drawn.
        "grid": lambda study, seed, o: s.RandomSampler(seed=seed),
        "qmc": lambda study, seed, o: _qmc(study, seed, o),
        "gp": lambda study, seed, o: s.GPSampler(seed=seed, **o),
        "cmaes": lambda study, seed, o: s.CmaEsSampler(seed=seed, **{"warn_independent_sampling": False, **o}),
        "nsgaii": lambda study, seed, o: s.NSGAIISampler(seed=seed, **o),
        "nsgaiii": lambda study, seed, o: s.NSGAIIISampler(seed=seed, **o),
        "brute_force": lambda study, seed, o: s.BruteForceSampler(seed=seed, **o),
    }


def _qmc(study_seed: int, seed: int, options: Mapping[str, Any]) -> optuna.samplers.BaseSampler:
    """A quasi-Monte Carlo sampler that takes its place in the sequence from the trial's number, so that resume goes on there."""
    import optuna

    class Qmc(optuna.samplers.QMCSampler):
        def _find_sample_id(self, study: optuna.Study, search_space: Any) -> int:
            return len(study._storage.get_all_trials(study._study_id, deepcopy=False)) - 2  # the first trial is drawn

    drawn = optuna.samplers.RandomSampler(seed=seed)
    keywords = {"warn_independent_sampling": False, "independent_sampler": drawn, **options}
    return Qmc(seed=study_seed & 0xFFFFFFFF, **keywords)


class _OnlyErrors(logging.Filter):
    """Lets Optuna's errors through, and whatever others say."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not record.name.startswith("optuna")


_ONLY_ERRORS = _OnlyErrors()


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's log lines and experimental warnings are about calls the user did not make."""
    import optuna

    # Not by the level: setting one empties the cache of every logger there is.
    heard = [*logging.getLogger("optuna").handlers, *logging.getLogger().handlers]
    heard = [handler for handler in heard if _ONLY_ERRORS not in handler.filters]
    for handler in heard:
        handler.addFilter(_ONLY_ERRORS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        for handler in heard:
            handler.removeFilter(_ONLY_ERRORS)
