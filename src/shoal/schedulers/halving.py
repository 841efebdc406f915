"""Synchronous successive halving, and its plainest form: one epoch each, then the best few to the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from shoal.schedulers._base import Observation, Room, Verdict, check_whole
from shoal.schedulers._bracket import Bracket
from shoal.schedulers._rungs import rung_epochs


@final
class SuccessiveHalving:
    """Trains all trials to a rung, keeps the best ``1/eta`` of them, and so on from rung to rung.

    Nothing goes past a rung before every trial of the study has come there, so no decision is taken against few others;
    in return nothing finishes before the last trial has started. Give ``Asha`` or ``Hyperband`` to studies that are
    likely to be cut short.

    Args:
        max_epochs: where a trial is finished, 1 or more.
        eta: the reduction factor, 2 or more.
        min_epochs: the first rung; as for ``Asha``.

    Raises:
        UsageError: an argument is out of its range.

    Example:
        >>> scheduler = SuccessiveHalving(30)
        >>> rows = [Observation(trial=number, epoch=2, value=float(number)) for number in range(9)]
        >>> {verdict.decision.value for verdict in scheduler.observe(rows).values()}
        {'pause'}
        >>> room = Room(free=9, running=frozenset(), paused=dict.fromkeys(range(9), 2), n_asked=9, more=False)
        >>> [number for number, verdict in scheduler.promote(room).items() if verdict.decision == "promote"]
        [0, 1, 2]

    References:
        Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016,
        figure 3; Li et al., "Hyperband", JMLR 18, 2018, algorithm 1, lines 3 to 9.
    """

    name = "halving"

    def __init__(self, max_epochs: int, *, eta: int = 3, min_epochs: int | None = None) -> None:
        self.max_epochs = check_whole("max_epochs", max_epochs, at_least=1)
        self.eta = check_whole("eta", eta, at_least=2)
        self.rungs = rung_epochs(max_epochs, eta, min_epochs)
        self._bracket = Bracket(self.rungs, lambda n: n // eta)

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Every trial at a rung is paused there."""
        return self._bracket.observe(rows)

    def promote(self, room: Room) -> Mapping[int, Verdict]:
        """Once a rung is complete, its best go on and the others stop."""
        return self._bracket.promote(room, room.free, full=not room.more)

    def __repr__(self) -> str:
        return f"SuccessiveHalving({self.max_epochs}, eta={self.eta}, rungs={self.rungs})"


@final
class TopK:
    """Trains every trial for one epoch, then the best ``k`` to the end.

    Args:
        k: trials that are trained to the end, 1 or more.
        epochs: epochs before the choice, 1 or more.

    Raises:
        UsageError: an argument is out of its range.

    Example:
        >>> scheduler = TopK(2)
        >>> rows = [Observation(trial=number, epoch=1, value=-float(number)) for number in range(9)]
        >>> sorted(scheduler.observe(rows)) == list(range(9))
        True
        >>> room = Room(free=9, running=frozenset(), paused=dict.fromkeys(range(9), 1), n_asked=9, more=False)
        >>> [number for number, verdict in scheduler.promote(room).items() if verdict.decision == "promote"]
        [8, 7]

    References:
        Egele et al., "The Unreasonable Effectiveness of Early Discarding after One Epoch in Neural Network
        Hyperparameter Optimization", Neurocomputing 597, 2024 (1-Epoch; they take k = 3).
    """

    name = "top_k"

    def __init__(self, k: int = 3, *, epochs: int = 1) -> None:
        self.k = check_whole("k", k, at_least=1)
        self.epochs = check_whole("epochs", epochs, at_least=1)
        self._bracket = Bracket((epochs,), lambda n: k)

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Every trial is paused after ``epochs`` epochs."""
        return self._bracket.observe(rows)

    def promote(self, room: Room) -> Mapping[int, Verdict]:
        """Once all trials have been there, the best ``k`` go on and the others stop."""
        return self._bracket.promote(room, room.free, full=not room.more)

    def __repr__(self) -> str:
        return f"TopK({self.k}, epochs={self.epochs})"
