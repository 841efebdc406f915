"""New trials: an Optuna study in memory that samplers look at, asked and told in rounds.

Samplers see results only as they stood at the end of a round, so what they suggest never depends on which trial arrived first.
Each ask gets a fresh sampler seeded by (study seed, trial number): a study that was interrupted goes on with the same suggestions.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from shoal.errors import UsageError, did_you_mean
from shoal.lanes.rng import derive
from shoal.records import Direction, TrialRecord, TrialResult, TrialSpec, TrialState

if TYPE_CHECKING:
    import optuna

SamplerArgument: TypeAlias = "str | optuna.samplers.BaseSampler | None"

# Streams of seeds, so that no two uses of the study's seed coincide.
TRIAL_STREAM, SAMPLER_STREAM = 1, 2


def _factories() -> dict[str, Callable[[int], Any]]:
    import optuna.samplers as s

    from shoal._tpe import Memory, Tpe

    memory = Memory()
    return {
        "tpe": lambda seed: Tpe(memory, seed),
        "random": lambda seed: s.RandomSampler(seed=seed),
    }


# Samplers that look at no result, so that any number of trials may run at once.
_BLIND = ("random",)


_STATES = {
    TrialState.FINISHED: "COMPLETE",
    TrialState.STOPPED: "PRUNED",
    TrialState.FAILED: "FAIL",
    TrialState.RUNNING: "RUNNING",
}


def _reopening_storage() -> Any:
    """Optuna's storage in memory, in which a trial that has ended can be made to run again."""
    import optuna

    class Storage(optuna.storages.InMemoryStorage):
        def reopen(self, trial_id: int) -> None:
            with self._lock:
                trial = copy.copy(self._get_trial(trial_id))
                trial.state, trial.values, trial.datetime_complete = optuna.trial.TrialState.RUNNING, None, None
                self._set_trial(trial_id, trial)

    return Storage()


class Asker:
    """Asks a sampler for trials and tells it what came of them.

    Args:
        sampler: "tpe" (the default), "random", or an Optuna sampler object. An object keeps state between asks that Shoal cannot
            see, so a study that uses one does not repeat exactly after an interruption.
        seed: The study's seed.

    Raises:
        UsageError: If the sampler is neither.
    """

    def __init__(self, sampler: SamplerArgument, direction: Direction, seed: int) -> None:
        import optuna

        self._factory: Callable[[int], Any] | None = None
        first: Any
        if sampler is None or isinstance(sampler, str):
            name, factories = sampler or "tpe", _factories()
            if name not in factories:
                raise UsageError(
                    f"sampler={name!r} is not known.{did_you_mean(name, factories)} Or pass an Optuna sampler object."
                )
            self.name, self._factory = name, factories[name]
            first = self._factory(seed)
        elif isinstance(sampler, optuna.samplers.BaseSampler):
            self.name, first = type(sampler).__name__, sampler
        else:
            raise UsageError(f"sampler must be a name or an optuna.samplers object, not {type(sampler).__qualname__}.")
        self.learns = self.name not in _BLIND and self.name != "RandomSampler"
        self._seed = seed
        with _quiet():
            self._storage = _reopening_storage()
            self.study = optuna.create_study(direction=direction, sampler=first, storage=self._storage)

    def trial_seed(self, number: int) -> int:
        """The seed of a trial: weights, data order and dropout masks follow from it."""
        return derive(self._seed, TRIAL_STREAM, number)

    def ask(self) -> optuna.Trial:
        """The next trial; its parameters are drawn as ``define`` asks for them."""
        if self._factory is not None:
            number = len(self.study._storage.get_all_trials(self.study._study_id, deepcopy=False))
            self.study.sampler = self._factory(derive(self._seed, SAMPLER_STREAM, number) & 0xFFFFFFFF)
        with _quiet():
            return self.study.ask()

    def spec(self, trial: optuna.Trial) -> TrialSpec:
        """What a trial was given, as data."""
        from optuna.distributions import distribution_to_json

        frozen = self.study._storage.get_trial(trial._trial_id)
        distributions: dict[str, str] = {}
        for name, d in frozen.distributions.items():
            try:
                distributions[name] = distribution_to_json(d)
            except TypeError as error:
                raise UsageError(
                    f"trial {trial.number}: the choices of {name!r} cannot be stored ({error}); suggest names and look the objects "
                    f"up: {{'relu': nn.ReLU}}[trial.suggest_categorical({name!r}, ['relu'])]."
                ) from error
        return TrialSpec(trial.number, self.trial_seed(trial.number), dict(frozen.params), distributions)

    def tell(self, result: TrialResult) -> None:
        """Let samplers see how a trial ended. A stopped trial is PRUNED at the epoch it reached.

        So is a paused one as long as it is paused; it may be told of again, and then counts as what it is by then.
        """
        from optuna.trial import TrialState as OptunaState

        study, storage = self.study, self._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, result.number)
        state = _STATES[result.state]
        with _quiet():
            if storage.get_trial(trial_id).state.is_finished():
                storage.reopen(trial_id)
            if state == "PRUNED" and result.value is not None:
                storage.set_trial_intermediate_value(trial_id, result.epoch, result.value)
            if state == "COMPLETE":
                study.tell(result.number, result.value)
            else:
                study.tell(result.number, state=OptunaState[state])

    def restore(self, trials: Sequence[TrialRecord]) -> None:
        """Put an earlier session's trials back, in the order of their numbers; unfinished ones are running again."""
        import optuna
        from optuna.distributions import json_to_distribution
        from optuna.trial import TrialState as OptunaState

        for t in sorted(trials, key=lambda t: t.spec.number):
            stopped = t.state is TrialState.STOPPED and t.value is not None
            frozen = optuna.trial.create_trial(
                state=OptunaState[_STATES[t.state]],
                value=t.value if t.state is TrialState.FINISHED else None,
                params=dict(t.spec.params),
                distributions={name: json_to_distribution(d) for name, d in t.spec.distributions.items()},
                intermediate_values={t.epoch: t.value} if stopped and t.value is not None else {},
            )
            with _quiet():
                self.study.add_trial(frozen)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log lines and experimental warnings are about calls the user did not make."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
