"""Asynchronous successive halving that knows the whole population, running trials included.

Optuna's own pruners look at one trial at a time and mostly at finished ones, so in a wave of lanes that starts
together they stop nothing. Here everything that a round brings to a rung is recorded first and judged afterwards.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import final

from shoal.errors import UsageError
from shoal.schedulers._base import Decision, Observation, Rank, Verdict, check_whole, in_order, rank


class _Rung:
    """What one rung has seen: one value per trial, best first, and the verdicts given here."""

    __slots__ = ("epoch", "ranks", "stopped", "trials")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.ranks: list[Rank] = []
        self.trials: set[int] = set()
        self.stopped: dict[int, Verdict] = {}


@final
class Asha:
    """Stops a trial at a rung unless it is among the best ``1/eta`` of all that ever reached that rung.

    Rungs are at ``min_epochs * eta**k < max_epochs``, k = 0, 1, ... At a rung that has seen ``n`` trials the best
    ``max(1, floor(n / eta))`` continue. The value of a trial is the one measured *at* the rung and not its best so far:
    that is what the paper compares, and a trial that was lucky once and diverged since does not live on its past. NaN
    is worst, and a tie goes to the lower trial number.

    A rung keeps the first value of each trial. A trial that comes by again, as after a crash, is not counted twice and
    is given the verdict that it got the first time.

    Where we differ from Li et al. (2020), section 3.2: they pause every trial at its rung and promote the best later,
    when a worker is free; here a trial that is not good enough on arrival is stopped for good and one that is goes on
    at once (the *stopping* variant), so no paused weights are kept. Early arrivals are judged against few others, so a
    few more than ``1/eta`` pass in small studies. And we judge all arrivals of a round together.

    Args:
        max_epochs: where a trial is finished, 1 or more.
        eta: the reduction factor, 2 or more; 3 is the usual choice between 2 and the paper's 4.
        min_epochs: the first rung. By default ``max(1, round(max_epochs / eta**3))``: three halvings leave about
            ``1/eta**3`` of the trials, a few percent, to train to the end; an earlier first rung judges curves that are
            still noise, and a later one spends most of the epochs on trials that are stopped there.

    Raises:
        UsageError: an argument is out of its range.

    Example:
        >>> scheduler = Asha(max_epochs=30)
        >>> scheduler.rungs
        (1, 3, 9, 27)
        >>> wave = [Observation(trial=number, epoch=1, value=float(number)) for number in range(6)]
        >>> sorted(scheduler.observe(wave))
        [2, 3, 4, 5]

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, algorithm 2.
    """

    name = "asha"

    def __init__(self, max_epochs: int, *, eta: int = 3, min_epochs: int | None = None) -> None:
        self.max_epochs = check_whole("max_epochs", max_epochs, at_least=1)
        self.eta = check_whole("eta", eta, at_least=2)
        if min_epochs is None:
            self.min_epochs = max(1, round(max_epochs / eta**3))
        else:
            self.min_epochs = check_whole("min_epochs", min_epochs, at_least=1)
            if min_epochs >= max_epochs:
                raise UsageError(
                    f"min_epochs must be below max_epochs, or there is no rung to stop at; "
                    f"got min_epochs={min_epochs}, max_epochs={max_epochs}. Lower min_epochs, or pass scheduler='none'."
                )
        self._rungs: dict[int, _Rung] = {}
        epoch = self.min_epochs
        while epoch < max_epochs:
            self._rungs[epoch] = _Rung(epoch)
            epoch *= eta

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which trials are judged, ascending."""
        return tuple(self._rungs)

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Record every row that is at a rung, then judge the trials that came to it."""
        verdicts: dict[int, Verdict] = {}
        arrivals: dict[int, list[Rank]] = {}
        for row in in_order(rows):
            rung = self._rungs.get(row.epoch)
            if rung is None:
                continue
            if row.trial not in rung.trials:
                rung.trials.add(row.trial)
                insort(rung.ranks, rank(row))
                arrivals.setdefault(row.epoch, []).append(rank(row))
            elif row.trial in rung.stopped:
                verdicts.setdefault(row.trial, rung.stopped[row.trial])
        for epoch, came in sorted(arrivals.items()):
            for trial, verdict in self._judge(self._rungs[epoch], came).items():
                verdicts.setdefault(trial, verdict)
        return verdicts

    def _judge(self, rung: _Rung, came: list[Rank]) -> dict[int, Verdict]:
        n_seen = len(rung.ranks)
        n_continue = max(1, n_seen // self.eta)
        for key in came:
            place = bisect_left(rung.ranks, key) + 1
            if place > n_continue:
                reason = f"place {place} of {n_seen} at epoch {rung.epoch}, the best {n_continue} continue"
                rung.stopped[key[2]] = Verdict(Decision.STOP, reason)
        return {key[2]: rung.stopped[key[2]] for key in came if key[2] in rung.stopped}

    def __repr__(self) -> str:
        return f"Asha({self.max_epochs}, eta={self.eta}, min_epochs={self.min_epochs})"
