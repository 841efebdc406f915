"""A scheduler in simulated time: learning curves in, what it would have cost and found out. No training, no clock.

One round is one epoch of every running trial, as in the engine; lanes that a round frees are filled before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.schedulers._base import Decision, Observation, Promoter, Room, Scheduler


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scheduler made of a set of learning curves.

    Attributes:
        epochs: Trial -> epochs that it trained.
        finished: Trials that trained to the end, in the order in which they did.
        spent: Epochs in all, after each round.
        best: The best final value among finished trials, after each round; infinity before the first.
        paused: How often trials were paused.
        promoted: How often trials were promoted.
    """

    epochs: tuple[int, ...]
    finished: tuple[int, ...]
    spent: tuple[int, ...]
    best: tuple[float, ...]
    paused: int
    promoted: int


def simulate(scheduler: Scheduler, curves: Sequence[Sequence[float]], *, lanes: int) -> Outcome:
    """Run a scheduler over recorded learning curves.

    Args:
        scheduler: A fresh one.
        curves: For each trial, in the order in which trials start, its value after each epoch, all of one length; lower is
            better.
        lanes: Trials that run at once, 1 or more.

    Example:
        >>> from shoal.schedulers import TopK
        >>> curves = [[3.0, 3.0, 3.0], [1.0, 1.0, 1.0], [2.0, 0.0, 0.0]]
        >>> simulate(TopK(2), curves, lanes=2).epochs
        (1, 3, 3)
    """
    max_epochs = len(curves[0])
    done = [0] * len(curves)
    running: set[int] = set()
    paused: dict[int, int] = {}
    finished: list[int] = []
    spent, best, n_asked, n_paused, n_promoted = [0], [float("inf")], 0, 0, 0
    while True:
        if paused and isinstance(scheduler, Promoter):
            more = n_asked < len(curves)
            room = Room(lanes - len(running), frozenset(running), dict(paused), n_asked, more)
            for trial, verdict in scheduler.promote(room).items():
                del paused[trial]
                if verdict.decision is Decision.PROMOTE:
                    running.add(trial)
                    n_promoted += 1
        while n_asked < len(curves) and len(running) < lanes:
            running.add(n_asked)
            n_asked += 1
        if not running:
            break
        for trial in running:
            done[trial] += 1
        verdicts = scheduler.observe([Observation(t, done[t], curves[t][done[t] - 1]) for t in sorted(running)])
        for trial in sorted(running):
            decision = verdicts[trial].decision if trial in verdicts else Decision.CONTINUE
            if done[trial] == max_epochs:
                finished.append(trial)
            elif decision is Decision.PAUSE:
                paused[trial] = done[trial]
                n_paused += 1
            elif decision is not Decision.STOP:
                continue
            running.discard(trial)
        spent.append(sum(done))
        best.append(min((curves[t][-1] for t in finished), default=float("inf")))
    return Outcome(tuple(done), tuple(finished), tuple(spent), tuple(best), n_paused, n_promoted)
