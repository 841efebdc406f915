"""A signature's epoch as one compiled C++ function: one lane after the other, each through all its ticks.

The tick that torch runs goes over all lanes with one kernel after the other, and what a lane needs has left the nearest caches when
the next kernel comes. Here a lane's parameters, optimizer state and activations stay in them for a whole epoch, no kernel is
called through Python, and lanes that are free or done cost nothing. The traced step of one lane is written out as C++ (``_lower``),
built by the machine's own compiler in the background, and kept in the user's cache.

Not everything has a compiled form (rarer operators, optimizers without a native update): such signatures stay on
the kernels of ``shoal.lanes.native`` or torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.data import Datasets
from shoal.lanes.compiled._lower import Lowering
from shoal.lanes.compiled._places import Unsupported, ctype
from shoal.lanes.compiled._program import HEADERS, Epoch, Function, Step, Ticks, text
from shoal.lanes.graph import unreached
from shoal.lanes.native._build import Build
from shoal.lanes.regularised._rule import batch_size, moves_of, numbers_of
from shoal.lanes.step import LaneGraph, Program
from shoal.recipe import Recipe

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
        moves: Numbers in which a hyper-validation gradient is asked for, by the names of ``regularised.passes``; none where nothing
            moves by one.
    """

    uses: frozenset[str] | None
    tail: int
    moves: frozenset[str] = frozenset()

    @classmethod
    def of(cls, fleet: Fleet, recipes: Iterable[Recipe] = ()) -> Variant:
        """What the lanes of a fleet need now, and those of these recipes."""
        # Weights of classes and smoothing cost next to nothing here.
        uses = None if fleet.program.has_class_loss else fleet.program.uses
        return cls(uses, fleet.tail, moves_of([*(t.recipe for _, t in fleet.active), *recipes]))


class Compilation:
    """A signature's epoch on its way from a graph to a library.

    Args:
        program: A program of the signature, whatever its width.
        data: The training split, and that which hyper-validation gradients are taken on.
        quantum: Slots of a batch.
        variant: For which lanes.

    Raises:
        Unsupported: If something in it has no compiled form.
    """

    def __init__(self, program: Program, data: Datasets, quantum: int, variant: Variant) -> None:
        train = data.train.tensors
        if any(not t.is_contiguous() for t in (*train, *(() if data.held_out is None else data.held_out.tensors))):
            raise Unsupported("data that do not lie in order")
        self.variant = variant
        self._real = program.layout.dtype
        ctype(self._real)
        n, uses, tail = len(program.layout.names), variant.uses, variant.tail if variant.tail != quantum else 0

        def lowered(name: str, graph_of: Callable[[int], LaneGraph], n_parts: int, *, renews: bool = False) -> Function:
            """A function of steps: for whole batches, and for the last one."""
            steps = [
                _step(program, graph_of(slots), len(train), n_parts, f"{name}_{which}_", renews=renews)
                for which, slots in (("whole", quantum), ("last", tail))
                if slots
            ]
            return Function(name, steps[0], steps[1] if len(steps) > 1 else None)

        whole = program.lane_graph(train, quantum, uses)
        self.unused = unreached(whole[0], n)
        passes: list[
            Function
        ] = []  # what has no compiled form is left out, and lanes that need it stay on the fleet's program
        moves: set[str] = set()
        held = data.held_out
        if variant.moves and held is not None:
            with contextlib.suppress(Unsupported):
                graph = program.held_out_graph(held.tensors, batch_size(held), uses)
                passes.append(Function("held_out", _step(program, graph, len(held.tensors), n, "held_out_")))
                moves.add("held_out")
        for name, names in numbers_of(variant.moves).items() if moves else ():

            def numbers_graph(slots: int, names: Sequence[str] = names) -> LaneGraph:
                return program.numbers_graph(names, train, slots, uses)

            with contextlib.suppress(Unsupported):
                passes.append(lowered(name, numbers_graph, len(names)))
                moves |= set(names)
        self.moves = frozenset(moves)  # those that have a compiled form
        epoch = lowered(
            "epoch", lambda q: whole if q == quantum else program.lane_graph(train, q, uses), n, renews=True
        )
        self._functions = [replace(epoch, passes=tuple(passes)), *passes]
        source = text(self._real, self._functions)
        self._build = Build("epoch", source, _HEADERS, _FLAGS, loss="a signature is not compiled")
        self._epochs: dict[str, Epoch] = {}

    def groups(self, fleet: Fleet) -> int:
        """Parameters of a fleet's lanes whose coefficients are told apart, or 1."""
        several = bool(self.unused) or any(t.groups > 1 for _, t in fleet.active)
        return len(fleet.layout.names) if several else 1

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

    def ready(self, name: str = "epoch") -> Epoch | None:
        """The epoch if its library is there, or another function of it."""
        if not self._epochs:
            path = self._build.ready()
            if path is not None:
                try:
                    self._epochs = {f.name: Epoch(path, self._real, f) for f in self._functions}
                except (OSError, AttributeError) as error:
                    path.unlink(missing_ok=True)
                    self._build.give_up(f"{path.name} cannot be loaded ({error})")
        return self._epochs.get(name)


def _step(program: Program, graph: LaneGraph, n_data: int, n_parts: int, prefix: str, *, renews: bool = False) -> Step:
    """A graph as C++, which gives ``n_parts`` gradients and, if it ``renews`` them, the buffers and the loss after that."""
    layout, (gm, inputs, fixed) = program.layout, graph
    lowered = Lowering(gm, inputs, fixed, layout.dtype, prefix).run()
    names = tuple((f"{prefix}in{i}", ctype(t.dtype)) for i, t in enumerate(inputs))
    first = len(layout.names) + len(layout.frozen) + len(layout.lifted)
    buffers = tuple(range(first, first + len(layout.buffers))) if renews else ()
    return Step(lowered, prefix, len(inputs) - n_data - 3, n_data, n_parts, buffers, names)
