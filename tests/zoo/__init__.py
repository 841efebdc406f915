"""Models the way people write them, to see which fuse and that those which do train exactly as alone.

Nothing in the files of models knows of lanes. ``python -m zoo``, run in ``tests``, writes ``docs/zoo.md``.
"""

from __future__ import annotations

from zoo.entry import Entry
from zoo.layers import LAYERS
from zoo.representation import REPRESENTATION
from zoo.sequence import SEQUENCE
from zoo.tabular import TABULAR
from zoo.vision import VISION

ARCHITECTURES: tuple[Entry, ...] = (*VISION, *SEQUENCE, *TABULAR, *REPRESENTATION)
ZOO: dict[str, Entry] = {e.name: e for e in (*LAYERS, *ARCHITECTURES)}

__all__ = ["ARCHITECTURES", "LAYERS", "ZOO", "Entry"]
