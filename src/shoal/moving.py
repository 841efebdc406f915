"""Which hyperparameters can be changed while a model trains: found out by running ``define`` with one of them changed.

A change is possible if what the model has learnt (parameters, buffers, optimizer state) means the same afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from shoal.errors import FuseError, ReplayError, UsageError
from shoal.lanes.step import Layout
from shoal.lanes.tables import family_of
from shoal.recipe import Recipe
from shoal.records import ParamValue, TrialSpec
from shoal.schedulers import Space
from shoal.spaces import DRY_RUNS


def space_of(define: Callable[[Any], Recipe]) -> Space:
    """The hyperparameters that ``define`` asks for, and which of them cannot be changed while its models train.

    Args:
        define: Called with trials that nobody trains; a run that raises shows nothing.

    Raises:
        UsageError: Its recipes have extensions, which move hyperparameters already.
    """
    distributions: dict[str, str] = {}
    fixed: dict[str, str] = {}
    on_request: set[str] = set()
    for spec, recipe in _drawn(define):
        if any(e.on for e in recipe.extensions):
            raise UsageError(
                "a recipe with extensions moves hyperparameters by itself, and so does this scheduler: leave out extensions=[...], "
                "or use another scheduler."
            )
        fresh = [name for name in spec.params if name not in distributions]
        distributions |= spec.distributions
        for name in fresh:
            for value in _others(spec.distributions[name], spec.params[name]):
                changed = TrialSpec(0, 0, {**spec.params, name: value}, spec.distributions)
                other = _run(define, changed)
                if isinstance(other, str):
                    fixed.setdefault(name, other)
                elif other is not None and (why := _apart(recipe, other)):
                    fixed.setdefault(name, why)
                elif other is not None and other.batch_size != recipe.batch_size:
                    on_request.add(name)
    return Space(distributions, fixed, frozenset(on_request - set(fixed)))


def _drawn(define: Callable[[Any], Recipe]) -> list[tuple[TrialSpec, Recipe]]:
    """Random trials and their recipes; so many that every branch of a conditional space should be among them."""
    import optuna
    from optuna.distributions import distribution_to_json

    from shoal.samplers import quiet

    out: list[tuple[TrialSpec, Recipe]] = []
    seen: set[str] = set()
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(DRY_RUNS):
            trial = study.ask()
            try:
                recipe = define(trial)
                texts = {name: distribution_to_json(d) for name, d in trial.distributions.items()}
            except Exception:  # it will raise again, and be told of, when a trial of the study has these parameters
                continue
            if not seen.issuperset(texts):
                out.append((TrialSpec(0, 0, dict(trial.params), texts), recipe))
                seen |= set(texts)
    return out


def _others(distribution: str, value: ParamValue) -> Sequence[ParamValue]:
    """Some other values: the ends of a range, or all other categories."""
    at = json.loads(distribution)["attributes"]
    ends = list(at["choices"]) if "choices" in at else [at["low"], at["high"]]
    return [v for v in ends if type(v) is not type(value) or v != value]


def _run(define: Callable[[Any], Recipe], spec: TrialSpec) -> Recipe | str | None:
    """The recipe; why there can be none; or None where it raises for these values alone."""
    from shoal.replay import ReplayTrial

    try:
        return define(ReplayTrial(spec))
    except ReplayError:
        return "it decides which other hyperparameters there are"
    except Exception:
        return None


def _apart(a: Recipe, b: Recipe) -> str:
    """Why what one recipe's model has learnt is of no use to the other's; "" if it is."""
    mine, theirs = dict(a.model.named_parameters()), dict(b.model.named_parameters())
    for name in dict.fromkeys([*mine, *theirs]):
        if name not in mine or name not in theirs:
            return f"it changes which parameters the model has ({name!r})"
        if mine[name].shape != theirs[name].shape:
            was, now = tuple(mine[name].shape), tuple(theirs[name].shape)
            return f"it changes the shape of the model's parameter {name!r} from {was} to {now}"
    try:
        one, two = Layout.of(a), Layout.of(b)
        if (one.dtype, one.frozen, one.buffers) != (two.dtype, two.frozen, two.buffers):
            return "it changes the types of the model's tensors, or which of them are trained"
    except FuseError:
        pass  # it trains solo, where shapes are all that must agree
    return _optimizers_apart(a, b)


def _optimizers_apart(a: Recipe, b: Recipe) -> str:
    first, second = type(a.optimizer), type(b.optimizer)
    if first is not second:
        return f"it changes the optimizer from {first.__name__} to {second.__name__}, whose state is another one"
    if [len(g["params"]) for g in a.optimizer.param_groups] != [len(g["params"]) for g in b.optimizer.param_groups]:
        return "it changes the optimizer's parameter groups"
    try:
        if family_of(a.optimizer, a.schedule) is not family_of(b.optimizer, b.schedule):
            return f"it is an option of {first.__name__} that changes what state it keeps"
    except FuseError:
        pass
    if type(a.schedule) is not type(b.schedule) or a.schedule_every != b.schedule_every:
        return "it changes the learning-rate schedule's class"
    if a.batch_size != b.batch_size and a.schedule is not None and a.schedule_every != "epoch":
        return "it changes how many updates an epoch has, which the schedule counts"
    return ""
