"""Which line of the user's code changes something: a run is followed line by line, and what changes is looked at in between."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn

from shoal.errors import own_line

# A look may read a model as a whole; no forward pass is followed further than this.
_LOOKS = 2000

_Place = tuple[str, int]


def line_that_changes(look: Callable[[], object], run: Callable[[], None]) -> str:
    """``"model.py, line 12"``: the first line of the user's code after which ``look`` gives something else; "" if there is none.

    Args:
        look: What changes; compared with ``==``.
        run: The code, which is run once.
    """
    before, last, found, left = look(), None, None, _LOOKS

    def follow(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal last, found, left
        if found is not None or not left or not own_line(frame.f_code.co_filename, frame.f_lineno):
            return None
        if event != "call":
            left -= 1
            if last is not None and look() != before:
                found = last
                return None
        # Back in its caller, what remains of the caller's line is done.
        last = _calling(frame) or last if event == "return" else (frame.f_code.co_filename, frame.f_lineno)
        return follow

    tracer = sys.gettrace()
    sys.settrace(follow)
    try:
        run()
    finally:
        sys.settrace(tracer)
    if found is None and left and last is not None and look() != before:
        found = last
    return own_line(*found) if found is not None else ""


def _calling(frame: FrameType) -> _Place | None:
    """The nearest line of the user's code that this frame goes back to."""
    above = frame.f_back
    while above is not None:
        if own_line(above.f_code.co_filename, above.f_lineno):
            return above.f_code.co_filename, above.f_lineno
        above = above.f_back
    return None


def line_that_assigns(module: nn.Module, attribute: str) -> str:
    """The first line outside of ``__init__`` on which the class of a module assigns to an attribute; "" if there is none."""
    for cls in type(module).__mro__:
        for name, function in vars(cls).items():
            code = getattr(function, "__code__", None)
            if code is None or name == "__init__":
                continue
            line = 0
            for i in dis.get_instructions(code):
                line = i.starts_line or line
                if i.opname == "STORE_ATTR" and i.argval == attribute and (place := own_line(code.co_filename, line)):
                    return place
    return ""
