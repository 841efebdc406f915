"""One bracket of synchronous successive halving: some trials, some rungs, and how many are kept at each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

from shoal.schedulers._base import Decision, Observation, Room, Verdict, in_order
from shoal.schedulers._rungs import Rung


@final
class Bracket:
    """Pauses every member at every rung; once all have come there, the best go on and the others stop.

    A rung waits for members that are still on their way. A member that fails or diverges on the way is waited for no
    longer than it runs. Members that ended in an earlier session keep their places.

    Args:
        rungs: epochs, ascending.
        keep: how many of so many members go on from a rung, 1 or more.
    """

    def __init__(self, rungs: Sequence[int], keep: Callable[[int], int]) -> None:
        self._rungs = [Rung(epoch) for epoch in rungs]
        self._keep = keep
        self._kept: dict[int, list[int]] = {}  # epoch -> members that go on from that rung, best first; once decided

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Record members that are at a rung, and pause them there."""
        verdicts: dict[int, Verdict] = {}
        at = {rung.epoch: rung for rung in self._rungs}
        for row in in_order(rows):
            rung = at.get(row.epoch)
            if rung is None:
                continue
            rung.arrive(row)
            if row.trial in self._kept.get(row.epoch, ()):
                continue  # it has been through here, and trains again after a restart
            verdicts.setdefault(row.trial, Verdict(Decision.PAUSE, f"at epoch {row.epoch}, until all others are there"))
        return verdicts

    def promote(self, room: Room, free: int, *, full: bool) -> Mapping[int, Verdict]:
        """Decide every rung that is complete; at most ``free`` of those kept go on now.

        Args:
            room: what runs and what is paused.
            free: lanes that this bracket may fill.
            full: whether every member has been started.
        """
        verdicts: dict[int, Verdict] = {}
        on_their_way = {trial for trial in room.running if not self._rungs or trial not in self._rungs[0].trials}
        complete = full
        for rung in self._rungs:
            if rung.epoch not in self._kept:
                if not complete or on_their_way:
                    break
                self._decide(rung, room, verdicts)
            kept = self._kept[rung.epoch]
            waiting = [trial for trial in kept if room.paused.get(trial) == rung.epoch]
            for trial in waiting[:free]:
                place, n = kept.index(trial) + 1, len(rung.ranks)
                verdicts[trial] = Verdict(Decision.PROMOTE, f"place {place} of {n} at epoch {rung.epoch}")
            free -= min(free, len(waiting))
            above = self._rungs[self._rungs.index(rung) + 1 :][:1]
            there = above[0].trials if above else set()
            on_their_way = {*waiting, *(t for t in kept if t in room.running and t not in there)}
        return verdicts

    def _decide(self, rung: Rung, room: Room, verdicts: dict[int, Verdict]) -> None:
        n = len(rung.ranks)
        order = rung.best(n)
        n_kept = max(1, self._keep(n)) if n else 0
        self._kept[rung.epoch] = order[:n_kept]
        for place, trial in enumerate(order[n_kept:], n_kept + 1):
            if room.paused.get(trial) == rung.epoch:
                reason = f"place {place} of {n} at epoch {rung.epoch}, the best {n_kept} continue"
                verdicts[trial] = Verdict(Decision.STOP, reason)
