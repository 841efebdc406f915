"""Whether making one trial changes another: a ``define`` that sets a global which models read while they train."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.lanes.rehearsal import state_of
from shoal.recipe import Recipe

# Calls of ``define`` that are looked at: one that sets a global does so every time.
_LOOKS = 8


class Bystander:
    """Holds on to the first trial's recipe while the next ones are made, and warns if that changes what its code reads.

    Trials train at the same time, so all of them would read what the last one has set, in lanes and alone. The structural keys
    cannot tell: each recipe was read when it was made.
    """

    def __init__(self) -> None:
        self._recipe: Recipe | None = None
        self._left = _LOOKS

    @contextmanager
    def looking_on(self) -> Iterator[None]:
        """Compare what the first recipe reads before and after ``define`` is called in here."""
        if self._recipe is None or not self._left:
            yield
            return
        before = _read(self._recipe)
        yield
        after = _read(self._recipe)
        self._left -= 1
        changed = next((w for w in before if w in after and before[w] != after[w]), None)
        if changed is not None:
            self._left = 0
            warnings.warn(
                f"define(trial) changes {changed}, which belongs to an earlier trial as well. Trials train at the same time, so "
                "all read what was set last, and their results may be wrong. Keep such a value in the model (an attribute), or in "
                "the closure of the loss.",
                RuntimeWarning,
                stacklevel=2,
            )
        if not self._left:
            self._recipe = None

    def keep(self, recipe: Recipe | None) -> None:
        """Remember the first recipe that there is."""
        if self._recipe is None and self._left:
            self._recipe = recipe


def _read(recipe: Recipe) -> dict[str, object]:
    try:
        return state_of(recipe)
    except Exception:  # what cannot be read is refused a lane when it is signed; here it says nothing
        return {}
