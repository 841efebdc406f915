"""Paused trials of one pool: copied out of their lanes into host memory, until they are promoted or end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from shoal.lanes.lane import LaneTrial
from shoal.lanes.solo import Solo
from shoal.lanes.state import LaneRow
from shoal.records import TrialSpec

# Rows may take this much; a trial whose row finds no room trains again from its start if it is ever promoted.
LIMIT_BYTES = 2 * 2**30


@dataclass(slots=True)
class Paused:
    """A paused trial: all that its lane held, or all of its solo self; neither when there was no memory for it."""

    spec: TrialSpec
    signature: str = ""
    trial: LaneTrial | None = None
    row: LaneRow | None = None
    solo: Solo | None = None


@final
class PausedTrials:
    """Keeps paused trials by key, as long as there is memory for their rows."""

    def __init__(self) -> None:
        self._held: dict[int, Paused] = {}
        self._bytes = 0

    def __contains__(self, trial: int) -> bool:
        return trial in self._held

    def __iter__(self) -> Iterator[Paused]:
        return iter(self._held.values())

    def signatures(self) -> set[str]:
        """Of those that trained in lanes and have their rows."""
        return {p.signature for p in self if p.row is not None}

    def keep(self, paused: Paused, *, briefly: bool = False) -> None:
        """Take a trial in; its row is let go when the others leave no room for it, unless it is to go on at once."""
        row_bytes = 0 if paused.row is None else paused.row.memory_bytes
        if self._bytes + row_bytes > LIMIT_BYTES and not briefly:
            paused = Paused(paused.spec, paused.signature, solo=paused.solo)
        else:
            self._bytes += row_bytes
        self._held[paused.spec.key] = paused

    def take(self, trial: int) -> Paused:
        """Hand a trial out, which is then kept no longer."""
        paused = self._held.pop(trial)
        if paused.row is not None:
            self._bytes -= paused.row.memory_bytes
        return paused
