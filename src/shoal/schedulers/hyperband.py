"""Hyperband: brackets of successive halving that differ in how early they judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from shoal.schedulers._base import Decision, Observation, Room, Verdict, check_whole
from shoal.schedulers._bracket import Bracket


@final
class Hyperband:
    """Runs brackets of synchronous successive halving, from many trials judged early to few trials trained to the end.

    With ``s_max = floor(log_eta(max_epochs))``, bracket ``s = s_max, ..., 0`` has ``ceil((s_max + 1) / (s + 1) * eta**s)``
    trials and rungs at ``max_epochs / eta**i``, i = s, ..., 1, rounded. Trials enter brackets in the order of their
    numbers; after the last bracket the first begins again. With a sampler that learns ("tpe", "gp") this is the pairing
    of BOHB (Falkner et al., ICML 2018): the sampler sees a paused trial as pruned at the rung it reached.

    Where we differ from Li et al. (2018), algorithm 1: a bracket does not wait for the one before it. Lanes that the
    last rungs of one leave free take the first trials of the next.

    Args:
        max_epochs: where a trial is finished (the paper's R), 1 or more.
        eta: the reduction factor, 2 or more.

    Raises:
        UsageError: an argument is out of its range.

    Example:
        >>> [(len(members), rungs) for members, rungs in Hyperband(9).brackets]
        [(9, (1, 3)), (5, (3,)), (3, ())]
        >>> Hyperband(81).bracket_of(81), Hyperband(81).bracket_of(142), Hyperband(81).bracket_of(143)
        (1, 4, 5)

    References:
        Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", JMLR 18, 2018,
        algorithm 1.
    """

    name = "hyperband"

    def __init__(self, max_epochs: int, *, eta: int = 3) -> None:
        self.max_epochs = check_whole("max_epochs", max_epochs, at_least=1)
        self.eta = check_whole("eta", eta, at_least=2)
        s_max = 0
        while eta ** (s_max + 1) <= max_epochs:
            s_max += 1
        self.brackets: list[tuple[range, tuple[int, ...]]] = []  # (trial numbers of the first round, rungs)
        first = 0
        for s in range(s_max, -1, -1):
            n = -(-(s_max + 1) * eta**s // (s + 1))  # rounded up, in whole numbers
            rungs = sorted({max(1, round(max_epochs / eta**i)) for i in range(1, s + 1)} - {max_epochs})
            self.brackets.append((range(first, first + n), tuple(rungs)))
            first += n
        self._round = first
        self._open: dict[int, Bracket] = {}

    def bracket_of(self, trial: int) -> int:
        """Which bracket a trial is in: 0 for the first, and on through all rounds."""
        turn, number = divmod(trial, self._round)
        return turn * len(self.brackets) + next(i for i, (members, _) in enumerate(self.brackets) if number in members)

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Every trial at a rung of its bracket is paused there."""
        parts: dict[int, list[Observation]] = {}
        for row in rows:
            parts.setdefault(self.bracket_of(row.trial), []).append(row)
        verdicts: dict[int, Verdict] = {}
        for index, part in sorted(parts.items()):
            if index not in self._open:
                rungs = self.brackets[index % len(self.brackets)][1]
                self._open[index] = Bracket(rungs, lambda n: n // self.eta)
            verdicts |= self._open[index].observe(part)
        return verdicts

    def promote(self, room: Room) -> Mapping[int, Verdict]:
        """Earlier brackets first: once a rung is complete, its best go on and the others stop."""
        verdicts: dict[int, Verdict] = {}
        for index, bracket in sorted(self._open.items()):
            end = index // len(self.brackets) * self._round + self.brackets[index % len(self.brackets)][0].stop
            inside = Room(
                room.free,
                frozenset(t for t in room.running if self.bracket_of(t) == index),
                {t: epoch for t, epoch in room.paused.items() if self.bracket_of(t) == index},
                room.n_asked,
                room.more,
            )
            promoted = sum(v.decision is Decision.PROMOTE for v in verdicts.values())
            full = room.n_asked >= end or not room.more
            verdicts |= bracket.promote(inside, room.free - promoted, full=full)
        return verdicts

    def __repr__(self) -> str:
        return f"Hyperband({self.max_epochs}, eta={self.eta})"
