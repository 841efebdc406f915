"""Refining the best points of a first wave along measured hypergradients: what ``sampler=GradientRefine(...)`` says, and which
parameters of a ``define`` it can follow.

Glossary: a parameter is *followed* if a recipe has it as a number whose hypergradient can be measured; a *slope* is the derivative
of the validation loss in a followed parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, final

from shoal.errors import RecipeError, UsageError
from shoal.spaces import DRY_RUNS, is_discrete

if TYPE_CHECKING:
    from shoal.extend._by_validation import ByValidation
    from shoal.recipe import Recipe
    from shoal.records import EpochRow

NAME: Final = "gradient_refine"
# Under which name a trial of the sampler's study has its slopes, by parameter.
SLOPES: Final = "shoal:slopes"
# Parameter -> trajectories whose sum is its slope.
Followed = Mapping[str, tuple[str, ...]]
_CAN = "the learning rate, weight_decay, Recipe(l1=...), label_smoothing and rates of nn.Dropout"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRefine:
    """A sampler: a wave of random points, then the best of them descend the validation loss along measured hypergradients.

    All trials measure, while they train, the derivative of the validation loss in those of their hyperparameters that have one: the
    learning rate, weight decay, L1, label smoothing, rates of dropout. After the wave, a new trial is one of the ``points`` best
    finished ones, moved against its slopes. With ``u`` the followed parameters scaled to 0..1 over their ranges (in the logarithm
    where they are sampled so)::

        u' = u - length * step * (dC/du) / |dC/du|,   within 0..1

    Each point is tried with the lengths 1, 2, 1/2, 4 and 1/4, side by side in the lanes; a trial that is better than its origin is
    one of the best itself, and is moved on from by its own slopes. When all of them have been tried, points are drawn again.
    Parameters that are not followed stay as the best points have them.

    A trial whose updates have no known derivative (another optimizer, clipping) fails, and says why.

    The slopes are taken on the validation split, or on ``tune(hyper_valid=...)``. They look at one update ("t1t2"), at the last few
    ("unrolled") or, of all but the learning rate, at the optimum ("implicit"), not at the whole training: see `shoal.extend` for
    what each sees.

    Args:
        wave: Trials that are drawn at random first. No more than so many run together.
        points: How many of the best trials are moved on from.
        step: Length of a move, as a share of the ranges, above 0 and at most 1.
        method, every, unroll, terms, scale: Of the measurement, as for ``shoal.extend.WeightDecay``; at least once per epoch.

    Raises:
        UsageError: If a field is out of its range.

    Example:
        >>> GradientRefine(wave=8, step=0.2).points
        4

    References:
        Luketina et al. 2016, Shaban et al. 2019 and Lorraine et al. 2020, as for the extensions; Bergstra and Bengio 2012 for the
        wave.
    """

    wave: int = 16
    points: int = 4
    step: float = 0.1
    method: Literal["t1t2", "unrolled", "implicit"] = "t1t2"
    every: int = 10
    unroll: int = 5
    terms: int = 10
    scale: float = 0.1

    def __post_init__(self) -> None:
        for name in ("wave", "points"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UsageError(f"GradientRefine({name}=...) must be a whole number of at least 1, not {number!r}.")
        if isinstance(self.step, bool) or not isinstance(self.step, int | float) or not 0 < self.step <= 1:
            raise UsageError(f"GradientRefine(step=...) must be a number above 0 and at most 1, not {self.step!r}.")
        from shoal.extend import WeightDecay

        try:
            WeightDecay(**self._measurement())
        except RecipeError as error:
            raise UsageError(str(error).replace("shoal.extend.WeightDecay", "GradientRefine")) from None

    def _measurement(self, updates: float = math.inf) -> dict[str, Any]:
        """Fields of extensions that measure and move nothing, at least once in so many updates."""
        names = ("method", "terms", "scale")
        every, unroll = (n if math.isinf(updates) else min(n, int(updates)) for n in (self.every, self.unroll))
        asked = {name: getattr(self, name) for name in names}
        return {"step": 0.0, "slopes": True, "every": every, "unroll": unroll, **asked}

    @property
    def options(self) -> dict[str, Any]:
        """The fields that are not as they are by default."""
        default = asdict(GradientRefine())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def measuring(self, define: Callable[[Any], Recipe], followed: Followed, n: int) -> Callable[[Any], Recipe]:
        """``define``, with recipes that measure the slopes of followed parameters, or raise a ``RecipeError``.

        Args:
            define: The user's.
            followed: What ``follow`` found.
            n: Training samples.
        """

        def measured(trial: Any) -> Recipe:
            recipe = define(trial)
            try:
                self._measure(recipe, followed, n)
            except RecipeError as error:
                raise RecipeError(
                    f"sampler={NAME!r} cannot measure a hypergradient of this trial: {error} Leave such recipes out of the search "
                    "space, or use sampler='tpe'."
                ) from None
            return recipe

        return measured

    def _measure(self, recipe: Recipe, followed: Followed, n: float = math.inf) -> None:
        """Make a recipe measure what it has of these: a weight decay of 0, say, has no logarithm to move in.

        Raises:
            RecipeError: Its updates have no known derivative.
        """
        names = {path.split("/")[1] for paths in followed.values() for path in paths}
        there = {type(e) for e in recipe.extensions if e.on}
        updates = n if math.isinf(n) else math.ceil(n / recipe.batch_size)  # of an epoch
        added = []
        for e in self._extensions(names, updates):
            if type(e) not in there and _has(recipe, e):
                e.check(recipe)
                added.append(e)
        object.__setattr__(recipe, "extensions", (*recipe.extensions, *added))

    def _extensions(self, names: Iterable[str], updates: float) -> list[ByValidation]:
        from shoal.extend import L1, Dropout, LabelSmoothing, WeightDecay
        from shoal.extend._by_validation import Rate

        wide, share = {"bounds": (1e-300, 1e300)}, {"bounds": (0.0, math.nextafter(1.0, 0.0))}
        made: dict[str, tuple[type[ByValidation], dict[str, Any]]] = {
            "lr": (Rate, wide),
            "weight_decay": (WeightDecay, wide),
            "l1": (L1, wide),
            "label_smoothing": (LabelSmoothing, share),
            "dropout": (Dropout, share),
        }
        return [cls(**self._measurement(updates), **bounds) for name, (cls, bounds) in made.items() if name in names]

    def follow(self, define: Callable[[Any], Recipe]) -> Followed:
        """Which parameters can be followed: those that recipes have unchanged as such a number, in every dry run.

        Raises:
            UsageError: There is none, or no recipe's updates have a known derivative.
        """
        import optuna

        from shoal.samplers import quiet

        found: dict[str, set[str]] = {}
        problem: RecipeError | None = None
        measurable = False
        with quiet():
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
            for _ in range(DRY_RUNS):
                trial = study.ask()
                try:
                    recipe = define(trial)
                except Exception:  # it will raise again, and be told of, when a trial of the study has these parameters
                    continue
                numbers = _numbers(recipe)
                for name, d in trial.distributions.items():
                    if not is_discrete(d):
                        same = {path for path, value in numbers.items() if value == trial.params[name]}
                        found[name] = found.get(name, same) & same
        followed = {name: tuple(sorted(paths)) for name, paths in found.items() if paths}
        if not followed:
            seen = f"{', '.join(sorted(found))} cannot be followed" if found else "no parameter is continuous"
            raise UsageError(
                f"sampler={NAME!r} moves continuous hyperparameters that have a hypergradient ({_CAN}), passed on by define() "
                f"as they are sampled; here {seen}. Use sampler='tpe'."
            )
        with quiet():
            for _ in range(DRY_RUNS):
                try:
                    self._measure(define(study.ask()), followed)
                    measurable = True
                    break
                except RecipeError as error:
                    problem = error
                except Exception:
                    continue
        if not measurable and problem is not None:
            raise UsageError(f"sampler={NAME!r} cannot measure a hypergradient of these recipes: {problem}")
        return followed


def _has(recipe: Recipe, extension: ByValidation) -> bool:
    """Whether a recipe has what an extension would move."""
    try:
        return bool(extension.base(recipe))
    except RecipeError:
        return False


def _numbers(recipe: Recipe) -> dict[str, float]:
    """The numbers of a recipe that have a hypergradient, by the trajectory of their slopes."""
    from torch import nn

    from shoal.lanes.lift import dropouts

    group = recipe.optimizer.param_groups[0]
    rates = dropouts(recipe.model)
    out = {"slope/lr": float(group.get("initial_lr", group["lr"]))}
    decays = {float(g.get("weight_decay", 0.0)) for g in recipe.optimizer.param_groups} - {0.0}
    if len(decays) == 1:
        out["slope/weight_decay"] = decays.pop()
    if recipe.l1:
        out["slope/l1"] = float(recipe.l1)
    if type(recipe.loss) is nn.CrossEntropyLoss:
        out["slope/label_smoothing"] = float(recipe.loss.label_smoothing)
    for k, (_, module) in enumerate(rates):
        out["slope/dropout" if len(rates) == 1 else f"slope/dropout/{k}"] = float(module.p)  # type: ignore[arg-type]
    return out


def slopes_of(rows: Iterable[EpochRow], followed: Followed) -> dict[str, float]:
    """The slope of each followed parameter that a trial has measured: the mean over its epochs."""
    kept: dict[str, list[float]] = {}
    for row in rows:
        for path, values in row.trajectories.items():
            if path.startswith("slope/"):
                kept.setdefault(path, []).extend(values)
    out = {}
    for name, paths in followed.items():
        if all(path in kept for path in paths):
            slope = sum(sum(kept[path]) / len(kept[path]) for path in paths)
            if math.isfinite(slope):
                out[name] = slope
    return out
