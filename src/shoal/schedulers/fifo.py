"""No early stopping: every trial trains to the end. The baseline that the other schedulers must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from shoal.schedulers._base import Observation, Verdict


@final
class Fifo:
    """Never stops a trial; ``scheduler="none"``."""

    name = "none"

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Nothing ever stops, so the mapping is empty."""
        return {}

    def __repr__(self) -> str:
        return "Fifo()"
