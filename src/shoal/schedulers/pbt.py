"""Population-based training: trials that do badly go on from what better ones have learnt, with other hyperparameters."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from numbers import Real

from shoal.errors import UsageError, did_you_mean
from shoal.records import ParamValue
from shoal.schedulers._base import Decision, Observation, Space, Verdict, check_whole, rank
from shoal.schedulers._dimension import Dimension


class PopulationBasedTraining:
    """Trains a population side by side; every few epochs the worst copy the best, and change some hyperparameters.

    All trials are the population and train to the end. Every ``perturbation_interval`` epochs, trials that have reached the
    same epoch are compared. Of ``n``, each of the worst ``ceil(quantile_fraction * n)`` (half of them at most) draws one of
    as many best, and goes on with a copy of its weights, optimizer state and buffers (*exploit*). It takes that trial's
    hyperparameters too, and changes those that can move (*explore*): each is drawn anew with ``resample_probability``, or
    else multiplied by one of ``perturbation_factors``, within the range that ``define`` gives it; a category moves to the one
    before or after it. The order of its samples and its dropout masks stay its own.

    A trial whose loss is no longer finite copies a good one at once, instead of ending.

    What can move is what leaves weights and optimizer state as they are: learning rates, momenta, weight decay, dropout,
    L1, label smoothing, clipping, numbers of your own modules. Everything else (sizes, the optimizer's class) is taken over
    as it is from whoever is copied. By default all numbers that can move do, but for the batch size.

    Args:
        max_epochs: Where a trial is finished, 2 or more.
        perturbation_interval: Epochs from one comparison to the next; by default a tenth of ``max_epochs``.
        hyperparameters: Names of those to move; None for all numbers that can.
        quantile_fraction: Share of the population that is replaced, above 0 and at most 0.5.
        resample_probability: How often a hyperparameter is drawn anew, 0 to 1.
        perturbation_factors: Smaller than 1, and larger than 1.
        burn_in_period: Epochs in which nobody is replaced.

    Raises:
        UsageError: An argument is out of its range.

    Example:
        >>> lr = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.01, "high": 1.0, "log": true}}'
        >>> scheduler = PopulationBasedTraining(max_epochs=10, perturbation_interval=2, resample_probability=0.0)
        >>> scheduler.begin(Space({"lr": lr}), seed=0)
        >>> rows = [Observation(trial, 2, float(trial), {"lr": 0.1}) for trial in range(4)]
        >>> [(trial, v.source, round(v.params["lr"], 2)) for trial, v in scheduler.observe(rows).items()]
        [(3, 0, 0.12)]

    References:
        Jaderberg et al., "Population Based Training of Neural Networks", 2017: truncation selection, with perturb and
        resample. Differs in that trials are compared at equal epochs, and that a trial which diverged is replaced at once.
    """

    _NAME = "pbt"

    def __init__(
        self,
        max_epochs: int,
        *,
        perturbation_interval: int | None = None,
        hyperparameters: Sequence[str] | None = None,
        quantile_fraction: float = 0.25,
        resample_probability: float = 0.25,
        perturbation_factors: tuple[float, float] = (0.8, 1.2),
        burn_in_period: int = 0,
    ) -> None:
        self.max_epochs = check_whole("max_epochs", max_epochs, at_least=2)
        if perturbation_interval is None:
            perturbation_interval = max(1, round(max_epochs / 10))
        self.interval = check_whole("perturbation_interval", perturbation_interval, at_least=1)
        if self.interval >= max_epochs:
            raise UsageError(
                f"perturbation_interval must be below max_epochs, or nobody is ever replaced; got {self.interval} and {max_epochs}."
            )
        self.burn_in = check_whole("burn_in_period", burn_in_period, at_least=0)
        self.quantile = _share("quantile_fraction", quantile_fraction, above=0.0, most=0.5)
        self.resample = _share("resample_probability", resample_probability, above=-1.0, most=1.0)
        factors = perturbation_factors
        if len(factors) != 2 or not 0 < factors[0] < 1 < factors[1] < math.inf:
            raise UsageError(
                f"perturbation_factors must be one number below 1 and one above, such as (0.8, 1.2); got {factors!r}."
            )
        self.factors = (float(factors[0]), float(factors[1]))
        if isinstance(hyperparameters, str):
            raise UsageError(f"hyperparameters must be a list of names, not the text {hyperparameters!r}.")
        self.hyperparameters = None if hyperparameters is None else tuple(hyperparameters)
        self._space: dict[str, Dimension] = {}
        self._moving: tuple[str, ...] = ()
        self._seed = 0

    @property
    def name(self) -> str:
        """ "pbt", or "pb2" for the one that learns what to change."""
        return self._NAME

    @property
    def moving(self) -> tuple[str, ...]:
        """The hyperparameters that move, by name."""
        return self._moving

    def begin(self, space: Space, seed: int) -> None:
        """Settle which hyperparameters move.

        Raises:
            UsageError: One that was named is not there or cannot move, or none can.
        """
        self._space, self._seed = {name: Dimension.of(text) for name, text in space.distributions.items()}, seed
        fixed = space.fixed
        for name in self.hyperparameters or ():
            if name not in self._space:
                raise UsageError(
                    f"{self.name} is to move {name!r}, which define() does not ask for.{did_you_mean(name, self._space)}"
                )
            if name in fixed:
                raise UsageError(
                    f"{self.name} cannot move {name!r} while a model trains: {fixed[name]}. Leave it out of hyperparameters=; a "
                    "trial that copies another one takes its value as it is."
                )
        resting = {*fixed, *space.on_request}
        free = [name for name, d in self._space.items() if d.numeric and name not in resting]
        self._moving = tuple(free if self.hyperparameters is None else self.hyperparameters)
        if not self._moving:
            why = "; ".join(f"{name}: {reason}" for name, reason in fixed.items())
            raise UsageError(
                f"{self.name} finds no hyperparameter to move in define(){f' ({why})' if why else ''}. Suggest a learning rate, "
                "weight decay or dropout, or use another scheduler."
            )

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Compare trials that are at the same epoch, and replace the worst."""
        ordered = sorted(rows, key=rank)
        chosen: dict[int, Observation] = {}  # who is replaced -> by whom
        for epoch in sorted({row.epoch for row in rows}):
            group = [row for row in ordered if row.epoch == epoch]
            sound = [row for row in group if math.isfinite(row.value)]
            n_cut = min(math.ceil(self.quantile * len(group)), len(group) // 2)
            best = sound[: max(1, n_cut)]
            due = epoch % self.interval == 0 and self.burn_in < epoch < self.max_epochs
            losers = group[len(group) - n_cut :] if due and n_cut else []
            for row in {r.trial: r for r in (*losers, *(r for r in group if not math.isfinite(r.value)))}.values():
                sources = [r for r in best if r.trial != row.trial] or [r for r in ordered if math.isfinite(r.value)]
                if sources and row.trial not in {r.trial for r in sources} and epoch < self.max_epochs:
                    chosen[row.trial] = self._rng("exploit", row).choice(sources)
        self._learn(rows, chosen)
        by_trial = {row.trial: row for row in rows}
        return {
            trial: Verdict(
                Decision.COPY,
                f"{'its loss was not finite' if not math.isfinite(by_trial[trial].value) else 'among the worst'} at epoch "
                f"{by_trial[trial].epoch}",
                source.trial,
                self._explored(by_trial[trial], source),
            )
            for trial, source in sorted(chosen.items())
        }

    def _learn(self, rows: Sequence[Observation], chosen: Mapping[int, Observation]) -> None:
        """Take in what a round shows of how hyperparameters do; random perturbation has no use for it."""

    def _explored(self, row: Observation, source: Observation) -> dict[str, ParamValue]:
        """The hyperparameters that a replaced trial goes on with."""
        params, rng = dict(source.params), self._rng("explore", row)
        for name in self._moving:
            if name in params:
                params[name] = self._perturbed(name, params[name], rng)
        return params

    def _perturbed(self, name: str, value: ParamValue, rng: random.Random) -> ParamValue:
        dimension = self._space[name]
        if rng.random() < self.resample:
            return dimension.drawn(rng)
        return dimension.near(value, rng.choice(self.factors))

    def _rng(self, what: str, row: Observation) -> random.Random:
        """Draws that depend on nothing but the seed, the trial and the epoch, so that a round run again draws the same."""
        return random.Random(f"{self._seed} {what} {row.trial} {row.epoch}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.max_epochs}, perturbation_interval={self.interval})"


def _share(what: str, value: object, *, above: float, most: float) -> float:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (above < number <= most and number >= 0):
        at_least = "above 0" if above == 0 else "at least 0"
        raise UsageError(f"{what} must be a number {at_least} and at most {most:g}; got {value!r}.")
    return number
