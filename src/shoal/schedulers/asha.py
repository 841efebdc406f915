"""Asynchronous successive halving that knows the whole population, running trials included.

Optuna's own pruners look at one trial at a time and mostly at finished ones, so in a wave of lanes that starts
together they stop nothing. Here everything that a round brings to a rung is recorded first and judged afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from shoal.schedulers._base import Decision, Observation, Rank, Room, Verdict, check_whole, in_order, rank
from shoal.schedulers._rungs import Rung, rung_epochs


@final
class Asha:
    """Lets a trial past a rung when it is among the best ``1/eta`` of all that ever reached that rung.

    At a rung that has seen ``n`` trials the best ``max(1, floor(n / eta))`` continue; the others are paused. As more
    trials come, more places open: a paused trial that is among the best ``1/eta`` by then is promoted as soon as a lane
    is free, from the highest rung down and the best first, before any new trial is started. The value of a trial is the
    one measured *at* the rung and not its best so far: that is what the paper compares, and a trial that was lucky once
    and diverged since does not live on its past. NaN is worst, and a tie goes to the lower trial number.

    A rung keeps the first value of each trial. A trial that comes by again, as after a crash, is not counted twice and
    is given the verdict that it got the first time.

    Where we differ from Li et al. (2020), algorithm 2: a trial that is good enough on arrival goes on at once, which is
    what promoting it right after its pause would come to. We judge all arrivals of a round together. And a trial whose
    place is too low for any number of trials still to come, given ``n_trials``, is stopped at once instead of being
    kept until the end.

    Args:
        max_epochs: where a trial is finished, 1 or more.
        eta: the reduction factor, 2 or more; 3 is the usual choice between 2 and the paper's 4.
        min_epochs: the first rung; the others are at ``min_epochs * eta**k``, none beyond two thirds of ``max_epochs``,
            where a trial is as good as paid for. By default there are two, at ``max_epochs / (5 * eta)`` and
            ``max_epochs / 5``: about a fifth of the epochs of full training, for hardly any loss of quality where we
            measured it. A first rung before that judges curves that are still noise; more rungs later on save little.
        promote: False stops what is not good enough on arrival for good (the *stopping* variant, section 3.2): early
            arrivals are judged against few others and never get another chance, but no paused weights are kept.
        n_trials: trials planned in all, or None if unknown.

    Raises:
        UsageError: an argument is out of its range.

    Example:
        >>> scheduler = Asha(max_epochs=30)
        >>> scheduler.rungs
        (2, 6)
        >>> wave = [Observation(trial=number, epoch=2, value=float(number)) for number in range(6)]
        >>> [f"{number} {verdict.decision}" for number, verdict in sorted(scheduler.observe(wave).items())]
        ['2 pause', '3 pause', '4 pause', '5 pause']
        >>> late = scheduler.observe([Observation(trial=number, epoch=2, value=9.0) for number in range(6, 9)])
        >>> room = Room(free=4, running=frozenset(), paused=dict.fromkeys(range(2, 9), 2), n_asked=9, more=True)
        >>> sorted(scheduler.promote(room))
        [2]

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, algorithm 2.
    """

    def __init__(
        self,
        max_epochs: int,
        *,
        eta: int = 3,
        min_epochs: int | None = None,
        promote: bool = True,
        n_trials: int | None = None,
    ) -> None:
        self.max_epochs = check_whole("max_epochs", max_epochs, at_least=1)
        self.eta = check_whole("eta", eta, at_least=2)
        self.pauses, self.n_trials = promote, n_trials
        if n_trials is not None:
            check_whole("n_trials", n_trials, at_least=1)
        self._rungs = {epoch: Rung(epoch) for epoch in rung_epochs(max_epochs, eta, min_epochs)}
        self._held: dict[tuple[int, int], Verdict] = {}  # (trial, epoch) -> what it was told there, if not to go on

    @property
    def name(self) -> str:
        """ "asha", or "asha_stop" for the variant that never promotes."""
        return "asha" if self.pauses else "asha_stop"

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which trials are judged, ascending."""
        return tuple(self._rungs)

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Record every row that is at a rung, then judge the trials that came to it."""
        arrivals: dict[int, list[Rank]] = {}
        verdicts: dict[int, Verdict] = {}
        at_rungs = [row for row in in_order(rows) if row.epoch in self._rungs]
        for row in at_rungs:
            if self._rungs[row.epoch].arrive(row):
                arrivals.setdefault(row.epoch, []).append(rank(row))
        for epoch, came in sorted(arrivals.items()):
            self._judge(self._rungs[epoch], came)
        for row in at_rungs:
            if verdict := self._held.get((row.trial, row.epoch)):
                verdicts.setdefault(row.trial, verdict)
        return verdicts

    def _judge(self, rung: Rung, came: list[Rank]) -> None:
        n_seen = len(rung.ranks)
        n_continue = self._places(n_seen)
        for key in came:
            place = rung.place(key)
            if place > n_continue:
                hopeless = self.n_trials is not None and place > self._places(max(self.n_trials, n_seen))
                decision = Decision.PAUSE if self.pauses and not hopeless else Decision.STOP
                reason = f"place {place} of {n_seen} at epoch {rung.epoch}, the best {n_continue} continue"
                self._held[key[2], rung.epoch] = Verdict(decision, reason)

    def _places(self, n: int) -> int:
        return max(1, n // self.eta)

    def promote(self, room: Room) -> Mapping[int, Verdict]:
        """Fill free lanes with paused trials that are among the best ``1/eta`` of their rung by now."""
        verdicts: dict[int, Verdict] = {}
        for epoch, rung in reversed(self._rungs.items()):
            n_seen = len(rung.ranks)
            for place, trial in enumerate(rung.best(self._places(n_seen) if n_seen else 0), 1):
                if len(verdicts) == room.free:
                    return verdicts
                if room.paused.get(trial) == epoch:
                    verdicts[trial] = Verdict(Decision.PROMOTE, f"place {place} of {n_seen} at epoch {epoch}")
        return verdicts

    def __repr__(self) -> str:
        return f"Asha({self.max_epochs}, eta={self.eta}, rungs={self.rungs}, promote={self.pauses})"
