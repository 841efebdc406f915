"""A signature's epoch as one compiled C++ function: one lane after the other, each through all its ticks.

The tick that torch runs goes over all lanes with one kernel after the other, and what a lane needs has left the nearest caches when
the next kernel comes. Here a lane's parameters, optimizer state and activations stay in them for a whole epoch, no kernel is
called through Python, and lanes that are free or done cost nothing. The traced step of one lane is written out as C++ (``_lower``),
built by the machine's own compiler in the background, and kept in the user's cache.

Not everything has a compiled form (rarer operators, optimizers without a native update): such signatures stay on
the kernels of ``shoal.lanes.native`` or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from shoal.lanes.compiled._lower import Lowering
from shoal.lanes.compiled._places import Unsupported, ctype
from shoal.lanes.compiled._program import HEADERS, Epoch, Step, Ticks, text
from shoal.lanes.graph import unreached
from shoal.lanes.native._build import Build
from shoal.lanes.step import Program

if TYPE_CHECKING:
    from shoal.lanes.fleet import Fleet

__all__ = ["Compilation", "Epoch", "Ticks", "Unsupported", "Variant"]

_HERE = Path(__file__).parent
_HEADERS = (
    *(_HERE / f"{name}.h" for name in HEADERS),
    _HERE.parent / "native" / "functions.h",
)
# Neither changes a result but where a sum is told to be taken in any order; integers wrap, as torch's do. At -O3, g++ 12 summed a
# nest of short loops wrongly (tests/test_compiled.py, test_operators); with the cost model of -O3, -O2 makes as many vectors.
_FLAGS = ("-O2", "-fvect-cost-model=dynamic", "-fwrapv", "-fopenmp-simd", "-ffp-contract=fast")


@dataclass(frozen=True, slots=True)
class Variant:
    """For which lanes of a signature an epoch is compiled.

    Attributes:
        uses: Which numbers of the loss it looks at, None for all.
        tail: Samples of the last batch of an epoch where that may not be filled up, else the quantum.
    """

    uses: frozenset[str] | None
    tail: int

    @classmethod
    def of(cls, fleet: Fleet) -> Variant:
        """What the lanes of a fleet need now."""
        # Weights of classes and smoothing cost next to nothing here.
        return cls(None if fleet.program.has_class_loss else fleet.program.uses, fleet.tail)


class Compilation:
    """A signature's epoch on its way from a graph to a library.

    Args:
        program: A program of the signature, whatever its width.
        data: The training split's tensors.
        quantum: Slots of a batch.
        variant: For which lanes.

    Raises:
        Unsupported: If something in it has no compiled form.
    """

    def __init__(self, program: Program, data: Sequence[Tensor], quantum: int, variant: Variant) -> None:
        uses, tail = variant.uses, variant.tail
        if any(not t.is_contiguous() for t in data):
            raise Unsupported("data that do not lie in order")
        self.variant = variant
        self._real = program.layout.dtype
        self._step, self.unused = _step(program, data, quantum, "whole", uses)
        self._tail = _step(program, data, tail, "last", uses)[0] if tail != quantum else None
        source = text(self._real, self._step, self._tail)
        self._build = Build("epoch", source, _HEADERS, _FLAGS, loss="a signature is not compiled")
        self._epoch: Epoch | None = None

    def start(self) -> None:
        """Start the compiler, unless the library is there already. Returns at once."""
        self._build.start()

    def wait(self) -> Epoch | None:
        """The epoch, once a compiler of this process is done; None if there is none to be had."""
        self._build.insist()
        return self.ready()

    @property
    def failed(self) -> bool:
        """Whether there will be no library."""
        return self._build.failed

    def ready(self) -> Epoch | None:
        """The epoch if its library is there."""
        if self._epoch is None:
            path = self._build.ready()
            if path is not None:
                try:
                    self._epoch = Epoch(path, self._real, self._step, self._tail)
                except (OSError, AttributeError) as error:
                    path.unlink(missing_ok=True)
                    self._build.give_up(f"{path.name} cannot be loaded ({error})")
        return self._epoch


def _step(
    program: Program, data: Sequence[Tensor], slots: int, prefix: str, uses: frozenset[str] | None
) -> tuple[Step, tuple[int, ...]]:
    layout = program.layout
    ctype(layout.dtype)
    gm, inputs, fixed = program.lane_graph(data, slots, uses)
    lowered = Lowering(gm, inputs, fixed, layout.dtype, prefix).run()
    names = tuple((f"{prefix}in{i}", ctype(t.dtype)) for i, t in enumerate(inputs))
    n_parts, n_state = len(layout.names), len(inputs) - len(data) - 3
    first = n_parts + len(layout.frozen) + len(layout.lifted)
    buffers = tuple(range(first, first + len(layout.buffers)))
    return Step(lowered, prefix, n_state, len(data), n_parts, buffers, names), unreached(gm, n_parts)
