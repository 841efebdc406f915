"""The parts of each trial as one trial: what the engine is shown of folds and seeds, and what is done to all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from shoal.errors import RecipeError, StorageError, blame
from shoal.lanes.lane import Measured
from shoal.lanes.parts import Parts
from shoal.lanes.pool import Candidate
from shoal.lanes.workers import Admission, Trainer
from shoal.records import Event, Json, TrialSpec, part_key, part_of


@final
class Together:
    """A trainer whose trials are made of parts; the engine knows trials only.

    A trial's measurement is the mean over its parts. Whatever is decided of a trial is done to all of its parts, and one part that
    fails or whose loss is not finite ends the trial.

    Args:
        inner: Trains the parts, each under its own key.
        parts: Of every trial.
        value_of: A measurement's value, for schedules that watch it: each part's schedule sees its own.
        admission: Replays and signs a part.
    """

    def __init__(
        self, inner: Trainer, parts: Parts, value_of: Callable[[Measured], float], admission: Admission
    ) -> None:
        self._inner, self._parts, self._value_of, self._admission = inner, parts, value_of, admission
        self._specs: dict[int, TrialSpec] = {}  # of trials that run or are paused
        self._running: set[int] = set()
        self._latest: dict[int, list[Measured]] = {}  # of each trial, by part
        self._again: list[Candidate] = []
        self._bare: set[int] = set()  # paused trials of which the pools have nothing
        self._broken: dict[int, str] = {}

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_lanes(self) -> int:
        return self._inner.n_lanes

    @property
    def n_fleets(self) -> int:
        return self._inner.n_fleets

    def _keys(self, trial: int) -> list[int]:
        return [part_key(trial, part) for part in range(len(self._parts))]

    def admit(self, candidates: Iterable[Candidate], promoted: Sequence[int] = ()) -> None:
        """Start trials, all of whose parts are among the candidates, and let paused ones go on."""
        candidates = list(candidates)
        for c in candidates:
            if c.spec.part == 0:
                self._specs[c.spec.number] = c.spec
        self._running |= {*promoted, *(c.spec.number for c in candidates)}
        for trial in self._bare.intersection(promoted):
            self._bare.discard(trial)
            self._enqueue(trial)
        kept = [trial for trial in promoted if not self._waits(trial) and trial not in self._broken]
        again, self._again = self._again, []
        self._inner.admit([*again, *candidates], [key for trial in kept for key in self._keys(trial)])

    def _waits(self, trial: int) -> bool:
        """Whether a trial is to start over with the next admission, so that nothing of it is in the pools."""
        return any(c.spec.number == trial for c in self._again)

    def _enqueue(self, trial: int) -> None:
        try:
            self._again += [self._admission(spec) for spec in self._parts.split(self._specs[trial])]
        except Exception as error:
            self._broken[trial] = f"trial {trial}: define raised {blame(error)}"

    def _forget(self, trial: int) -> bool:
        """Take a trial of which nothing is in the pools out; False if it is in them."""
        gone = self._waits(trial) or trial in self._bare or trial in self._broken
        self._again = [c for c in self._again if c.spec.number != trial]
        self._bare.discard(trial)
        self._broken.pop(trial, None)
        return gone

    def pause(self, trial: int) -> None:
        """Copy all parts of a trial out of their lanes."""
        self._running.discard(trial)
        if self._forget(trial):
            self._bare.add(trial)
            return
        for key in self._keys(trial):
            self._inner.pause(key)

    def run_epoch(self) -> list[Measured]:
        """One epoch of every part of every running trial: the trials' means, in the order of their numbers."""
        by_trial: dict[int, list[Measured]] = {}
        for m in self._inner.run_epoch():  # by key, so that parts come in order
            by_trial.setdefault(part_of(m.trial)[0], []).append(m)
        out: list[Measured] = []
        for trial, found in sorted(by_trial.items()):
            broken = next((m for m in found if m.error), None)
            if broken is not None:
                message = f"{broken.error} ({self._parts.name(part_of(broken.trial)[1])})"
                out.append(replace(broken, trial=trial, error=message))
            elif len({m.epoch for m in found}) > 1:
                self._start_over(trial)
            else:
                self._latest[trial] = found
                out.append(self._mean(trial, found))
        nan = math.nan
        out += [Measured(trial, 0, nan, nan, {}, nan, False, message) for trial, message in self._broken.items()]
        return sorted(out, key=lambda m: m.trial)

    def _mean(self, trial: int, found: Sequence[Measured]) -> Measured:
        names = [name for name in found[0].metrics if all(name in m.metrics for m in found)]
        try:
            values = tuple(self._value_of(m) for m in found)
        except RecipeError:  # the engine asks for the value as well, and is told why there is none
            values = ()
        # Whichever part is not finite decides; its first loss says how soon that was.
        odd = next((m for i, m in enumerate(found) if not m.finite or (values and values[i] != values[i])), None)
        shown = found[0] if odd is None else odd
        return Measured(
            trial,
            found[0].epoch,
            _mean([m.train_loss for m in found]),
            _mean([m.valid_loss for m in found]),
            {name: _mean([m.metrics[name] for m in found]) for name in names},
            shown.first_loss,
            all(m.finite for m in found),
            where="" if odd is None else f" in {self._parts.name(part_of(odd.trial)[1])}",
            lanes=values,
            standard_error=self._parts.standard_error(values) if values else None,
            # Part 0 is the one whose weights are kept; the others' have their number behind the name.
            trajectories={
                f"{name}@{part}" if part else name: path
                for part, m in enumerate(found)
                for name, path in m.trajectories.items()
            },
            why=next((f"{m.why} ({self._parts.name(part_of(m.trial)[1])})" for m in found if m.why), ""),
        )

    def _start_over(self, trial: int) -> None:
        """Train a trial again from its first epoch: a part lost the state that it was paused with, and the others went on."""
        for key in self._keys(trial):
            self._inner.remove(key)
        self._enqueue(trial)

    def epoch_done(self, trial: int, loss: float, value: float) -> None:
        """Step the schedules that step per epoch, each by what its own part measured."""
        for m in self._latest[trial]:
            self._inner.epoch_done(m.trial, m.valid_loss, self._value_of(m))

    def remember(self, trial: int) -> None:
        """Keep a copy of part 0's weights as they are now."""
        self._inner.remember(part_key(trial, 0))

    def state_dict(self, trial: int, *, remembered: bool = False) -> dict[str, Tensor]:
        """The weights of part 0."""
        return self._inner.state_dict(part_key(trial, 0), remembered=remembered)

    def remove(self, trial: int) -> None:
        """Take all parts of a trial out, running or paused."""
        self._running.discard(trial)
        self._latest.pop(trial, None)
        self._specs.pop(trial, None)
        if not self._forget(trial):
            for key in self._keys(trial):
                self._inner.remove(key)

    def copy(self, moves: Sequence[tuple[TrialSpec, int]]) -> set[int]:
        """Let trials go on from what others have learnt by now, each part from the same part of the other."""
        here = {spec.number for spec, source in moves if not {spec.number, source} & {*self._bare, *self._broken}}
        here -= {spec.number for spec, source in moves if self._waits(spec.number) or self._waits(source)}
        parts = [
            (part, part_key(source, part.part))
            for spec, source in moves
            if spec.number in here
            for part in self._parts.split(spec)
        ]
        gone_on = self._inner.copy(parts)
        done = {trial for trial in here if gone_on.issuperset(self._keys(trial))}
        for spec, _ in moves:
            if spec.number in done:
                self._specs[spec.number] = spec
        for trial in {part_of(key)[0] for key in gone_on} - done:
            self._broken[trial] = f"trial {trial}: only some of its parts could go on from another trial's"
        return done

    def snapshot(self, folder: Path, stem: str) -> dict[str, Json]:
        """Write what every part holds into the folder; JSON facts that ``restore`` takes."""
        waiting = sorted({c.spec.number for c in self._again})
        broken: dict[str, Json] = {str(trial): message for trial, message in self._broken.items()}
        together: dict[str, Json] = {
            "running": list[Json](sorted(self._running)),
            "again": list[Json](waiting),
            "bare": list[Json](sorted(self._bare)),
            "broken": broken,
        }
        return {**self._inner.snapshot(folder, stem), "together": together}

    def restore(self, folder: Path, facts: Mapping[str, Any], specs: Mapping[int, TrialSpec], rounds: int) -> None:
        """Go on from a snapshot. Call before anything else.

        Args:
            folder: Where its files lie, which have been checked.
            facts: What ``snapshot`` returned.
            specs: Of the study's trials.
            rounds: Epochs that had been run by then.
        """
        of_parts = {part.key: part for spec in specs.values() for part in self._parts.split(spec)}
        self._inner.restore(folder, facts, of_parts, rounds)
        self._specs = dict(specs)
        try:
            mine = facts["together"]
            self._running, self._bare = set(mine["running"]), set(mine["bare"])
            self._broken = {int(trial): str(message) for trial, message in mine["broken"].items()}
            again = [int(trial) for trial in mine["again"]]
            if not {*self._running, *self._bare, *again} <= specs.keys():
                raise ValueError("trials that nobody has asked for")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"the study file describes no snapshot ({error!r:.200}): it is damaged.") from error
        for trial in again:
            self._enqueue(trial)

    def drain_events(self) -> list[Event]:
        """What happened since the last call, by trial; ``data["part"]`` says to which part."""
        return [_of_trial(e) for e in self._inner.drain_events()]


def _of_trial(e: Event) -> Event:
    if e.trial is None:
        return e
    trial, part = part_of(e.trial)
    return replace(e, trial=trial, data={**e.data, "part": part})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
