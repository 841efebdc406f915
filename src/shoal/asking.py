"""New trials: an Optuna study in memory that samplers look at, asked and told in rounds.

Samplers see results only as they stood at the end of a round, so what they suggest never depends on which trial arrived first.
Each ask gets a fresh sampler seeded by (study seed, trial number): a study that was interrupted goes on with the same suggestions.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.errors import UsageError
from shoal.lanes.rng import derive
from shoal.objectives import OPTUNA_PREFIX
from shoal.records import Direction, EpochRow, ParamValue, TrialRecord, TrialResult, TrialSpec, TrialState, changes_of
from shoal.refine import SLOPES, Followed, slopes_of
from shoal.samplers import SamplerArgument, quiet, resolve
from shoal.spaces import Grid, probe

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from shoal.spaces import Space

# Streams of seeds, so that no two uses of the study's seed coincide.
TRIAL_STREAM, SAMPLER_STREAM, GRID_STREAM = 1, 2, 3

_STATES = {
    TrialState.FINISHED: "COMPLETE",
    TrialState.STOPPED: "PRUNED",
    TrialState.FAILED: "FAIL",
    TrialState.RUNNING: "RUNNING",
}


class Asker:
    """Asks a sampler for trials and tells it what came of them.

    Args:
        sampler: A name ("tpe" is the default), a dict of a name and options, or an Optuna sampler object. An object keeps state
            between asks that Shoal cannot see, so a study that uses one does not repeat exactly after an interruption.
        directions: The study's, one per objective.
        seed: The study's.
        enqueue: Parameters of the first trials; what a dict leaves out is sampled.
        warm: Ended trials of earlier studies, which samplers see and nobody else.
        define: Called with trials that nobody trains, where the search space must be known before the first trial.

    Raises:
        UsageError: If the sampler is unknown, does not take its options, or does not fit the space.
    """

    def __init__(
        self,
        sampler: SamplerArgument,
        directions: Direction | Sequence[Direction],
        seed: int,
        *,
        enqueue: Sequence[Mapping[str, ParamValue]] = (),
        warm: Sequence[TrialRecord] = (),
        define: Callable[[Any], Any] | None = None,
    ) -> None:
        import optuna

        from shoal._private import PrivateStorage

        self.plan = resolve(sampler)
        self._directions = [directions] if isinstance(directions, str) else list(directions)
        if self._several and self.plan.name in ("cmaes", "CmaEsSampler"):
            raise UsageError(
                f"sampler={self.plan.name!r} searches for one objective, and the study has {len(self._directions)}: use 'tpe', "
                "'gp', 'nsgaii' or 'nsgaiii'."
            )
        self.name, self.learns = self.plan.name, self.plan.learns
        self._seed, self._enqueue = seed, list(enqueue)
        self._grid: Grid | None = None
        if self.plan.name == "grid":
            assert define is not None
            self._grid = Grid.of(*probe(define), self.plan.options.get("space", {}), derive(seed, GRID_STREAM))
        self.followed: Followed = {}
        if self.plan.refine is not None:
            assert define is not None
            if self._several:
                raise UsageError(
                    f"sampler={self.name!r} descends one loss, and the study has {len(self._directions)} objectives: use 'tpe' or "
                    "'nsgaii'."
                )
            self.followed = self.plan.refine.follow(define)
        self._storage = PrivateStorage()
        first = self.plan.given or self._fresh(0)
        with quiet():
            self.study = optuna.create_study(directions=self._directions, sampler=first, storage=self._storage)
        self._stopped = False
        self._distributions: dict[str, BaseDistribution] = {}  # one object for all trials: a study may have 100,000
        # GridSampler and BruteForceSampler call this when they have tried everything.
        setattr(self.study, "stop", self._stop)  # noqa: B010
        self._offset = self._add_warm(warm, define)

    @property
    def _several(self) -> bool:
        return len(self._directions) > 1

    def _stop(self) -> None:
        self._stopped = True

    def _fresh(self, number: int, attempt: int = 0) -> Any:
        assert self.plan.fresh is not None
        parts = (SAMPLER_STREAM, number, attempt) if attempt else (SAMPLER_STREAM, number)
        return self.plan.fresh(self._seed, derive(self._seed, *parts) & 0xFFFFFFFF)

    def _add_warm(self, warm: Sequence[TrialRecord], define: Callable[[Any], Any] | None) -> int:
        """Show the sampler what earlier studies found; parameters whose range is another one now are left out."""
        if not warm:
            return 0
        if not self.plan.warms:
            raise UsageError(
                f"warm_start does nothing for sampler={self.name!r}, which does not learn from other studies' trials; use 'tpe' "
                "or 'gp'."
            )
        space: Space = probe(define)[0] if define is not None else {}
        for t in warm:
            frozen = _frozen(t, self._several)
            names = [n for n, d in frozen.distributions.items() if space.get(n, d) == d]
            frozen.params = {n: frozen.params[n] for n in names}
            frozen.distributions = {n: frozen.distributions[n] for n in names}
            with quiet():
                self.study.add_trial(frozen)
        return len(warm)

    @property
    def _n_asked(self) -> int:
        return len(self._storage.get_all_trials(self.study._study_id, deepcopy=False)) - self._offset

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has nothing left that it has not asked for already."""
        if self._grid is not None and self._n_asked >= len(self._enqueue) + len(self._grid):
            return True
        return self._stopped

    @property
    def exhaustive(self) -> bool:
        """Whether the sampler means to try every configuration once, so that the first repetition is the end."""
        return self.name == "brute_force"

    def trial_seed(self, number: int) -> int:
        """The seed of a trial: weights, data order and dropout masks follow from it."""
        return derive(self._seed, TRIAL_STREAM, number)

    def ask(self) -> optuna.Trial:
        """The next trial; its parameters are drawn as ``define`` asks for them."""
        number = self._n_asked
        if self.plan.fresh is not None:
            self.study.sampler = self._fresh(number)
        with quiet():
            if fixed := self._fixed(number):
                self.study.enqueue_trial(dict(fixed))
            return self._numbered(self.study.ask())

    def _fixed(self, number: int) -> Mapping[str, ParamValue]:
        if number < len(self._enqueue):
            return self._enqueue[number]
        index = number - len(self._enqueue)
        return self._grid.point(index) if self._grid is not None and index < len(self._grid) else {}

    def _numbered(self, trial: optuna.Trial) -> optuna.Trial:
        from shoal._private import numbered

        return numbered(trial, self._offset) if self._offset else trial

    def is_fixed(self, number: int) -> bool:
        """Whether a trial's parameters were given rather than sampled."""
        return bool(self._fixed(number))

    def ask_again(self, trial: optuna.Trial, attempt: int) -> optuna.Trial:
        """The trial asked last, with other parameters. ``attempt`` counts from 1."""
        import optuna

        if self.plan.fresh is not None:
            self.study.sampler = self._fresh(trial.number, attempt)
        self._storage.forget(trial._trial_id)
        with quiet():
            return self._numbered(optuna.Trial(self.study, trial._trial_id))

    def take_back(self, trial: optuna.Trial) -> None:
        """As if the trial asked last had not been asked; the sampler counts as exhausted."""
        self._storage.take_back(trial._trial_id)
        self._stopped = True

    def spec(self, trial: optuna.Trial) -> TrialSpec:
        """What a trial was given, as data."""
        from optuna.distributions import distribution_to_json

        frozen = self._storage.get_trial(trial._trial_id)
        distributions: dict[str, str] = {}
        for name, d in frozen.distributions.items():
            try:
                distributions[name] = text = sys.intern(distribution_to_json(d))
                frozen.distributions[name] = self._distributions.setdefault(text, d)
            except TypeError as error:
                raise UsageError(
                    f"trial {trial.number}: the choices of {name!r} cannot be stored ({error}); suggest names and look the objects "
                    f"up: {{'relu': nn.ReLU}}[trial.suggest_categorical({name!r}, ['relu'])]."
                ) from error
        return TrialSpec(trial.number, self.trial_seed(trial.number), dict(frozen.params), distributions)

    def tell(self, result: TrialResult, rows: Sequence[EpochRow] = ()) -> None:
        """Let samplers see how a trial ended, and what of its rows they ask for. A stopped trial is PRUNED at the epoch it reached.

        So is a paused one as long as it is paused; it may be told of again, and then counts as what it is by then.
        """
        from optuna.trial import TrialState as OptunaState

        study, storage, number = self.study, self._storage, result.number + self._offset
        trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        state = _STATES[result.state]
        with quiet():
            if storage.get_trial(trial_id).state.is_finished():
                storage.reopen(trial_id)
            for key, broken_by in result.outcome.constraints.items():
                storage.set_trial_system_attr(trial_id, f"{OPTUNA_PREFIX}{key}", broken_by)
            for key, value in result.outcome.measured.items():
                storage.set_trial_user_attr(trial_id, key, value)
            # With several objectives, Optuna knows no reports.
            if state == "PRUNED" and result.value is not None and not self._several:
                storage.set_trial_intermediate_value(trial_id, result.epoch, result.value)
            if result.lanes:
                storage.set_trial_user_attr(trial_id, "standard_error", result.standard_error)
                storage.set_trial_user_attr(trial_id, "lane_values", list(result.lanes))
            if result.schedule:
                storage.set_trial_user_attr(trial_id, "schedule", list(result.schedule))
            if slopes := slopes_of(rows, self.followed):
                storage.set_trial_system_attr(trial_id, SLOPES, slopes)
            if state == "COMPLETE":
                study.tell(number, list(result.outcome.values) or result.value)
            else:
                study.tell(number, state=OptunaState[state])

    def restore(self, trials: Sequence[TrialRecord]) -> None:
        """Put an earlier session's trials back, in the order of their numbers; unfinished ones are running again."""
        with quiet():
            ordered = sorted(trials, key=lambda t: t.spec.number)
            self._storage.put_back(self.study._study_id, (_frozen(t, self._several, self.followed) for t in ordered))

    def plain_study(self) -> optuna.Study:
        """The study without the trials of earlier ones."""
        import optuna

        if not self._offset:
            return self.study
        with quiet():
            study = optuna.create_study(directions=self._directions)
            study.add_trials(self.study.get_trials(deepcopy=False)[self._offset :])
        return study


@functools.lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    from optuna.distributions import json_to_distribution

    return json_to_distribution(text)


def _frozen(t: TrialRecord, several: bool = False, followed: Followed | None = None) -> FrozenTrial:
    import optuna

    stopped = t.state is TrialState.STOPPED and t.value is not None and not several
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[_STATES[t.state]],
        values=t.values if t.state is TrialState.FINISHED else None,
        params=dict(t.spec.params),
        user_attrs={**_lanes(t), **t.outcome.measured},
        system_attrs={
            **{f"{OPTUNA_PREFIX}{key}": broken_by for key, broken_by in t.outcome.constraints.items()},
            **({SLOPES: slopes_of(t.rows, followed)} if followed else {}),
        },
        distributions={name: _distribution(d) for name, d in t.spec.distributions.items()},
        intermediate_values={t.epoch: t.value} if stopped and t.value is not None else {},
    )


def _lanes(t: TrialRecord) -> dict[str, Any]:
    """What Optuna is told of a trial's lanes, where it has several, and of changes of its hyperparameters, if there were any."""
    row, out = t.judged, dict[str, Any]()
    if row is not None and row.lanes:
        out |= {"standard_error": row.standard_error, "lane_values": list(row.lanes)}
    if t.state is not TrialState.RUNNING and (changes := changes_of(t.rows)):
        out["schedule"] = list(changes)
    return out
