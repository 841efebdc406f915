"""What the clock decided in rounds that a resumed study runs again, read from the journal so that it is decided alike.

Three things depend on measured time: whether a signature trains fused or solo, from which round on fleets run on native kernels,
and from which round on a signature runs compiled. Each leaves an event. All else follows from seeds and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from shoal.lanes.pool import Choice
from shoal.records import Event


@dataclass(frozen=True, slots=True)
class Decisions:
    """What is to be repeated.

    Attributes:
        until: Rounds up to this one were run before.
        native_at: The round among them from which on fleets ran on native kernels, if one was.
        choices: (Pool, signature) -> what was chosen each time that the signature was tried out.
        compiled: (Pool, signature) -> the round from which on it ran compiled.
    """

    until: int = 0
    native_at: int | None = None
    choices: Mapping[tuple[int, str], Sequence[Choice]] = field(default_factory=dict)
    compiled: Mapping[tuple[int, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Sequence[Event], until: int, n_pools: int) -> Decisions:
        """The decisions in a part of the journal.

        Args:
            events: What happened after the snapshot.
            until: The last round that is known of.
            n_pools: Processes that trained.
        """
        native_at = None
        choices: dict[tuple[int, str], list[Choice]] = {}
        compiled: dict[tuple[int, str], int] = {}
        for e in events:
            key = str(e.data.get("signature", ""))
            if e.kind == "tier" and e.fleet is not None:
                compiled[e.fleet % n_pools, key] = e.tick
            elif e.kind == "tier":
                native_at = e.tick
            elif e.kind == "signature solo":
                pool = cast(int, e.data.get("pool", 0))
                choices.setdefault((pool, key), []).append(Choice(str(e.data.get("reason", "")), {}))
            elif e.kind == "fleet" and "tick_s" in e.data and e.fleet is not None:
                timed = {k: v for k, v in e.data.items() if k in ("tick_s", "tick_lanes", "solo_step_s")}
                choices.setdefault((e.fleet % n_pools, key), []).append(Choice("", timed))
        return cls(until, native_at, choices, compiled)

    def of_pool(self, pool: int) -> dict[str, list[Choice]]:
        """The choices of one pool, by signature."""
        return {key: list(made) for (k, key), made in self.choices.items() if k == pool}

    def compiled_in(self, pool: int) -> dict[str, int]:
        """The rounds from which on signatures ran compiled in one pool."""
        return {key: tick for (k, key), tick in self.compiled.items() if k == pool}
