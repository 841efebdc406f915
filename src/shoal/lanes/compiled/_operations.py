"""All operators that have a compiled form: each module names the functions that lower its own (``_handlers``)."""

from shoal.lanes.compiled import _attention, _elementwise, _norms, _own, _products, _recurrent, _sums, _views, _windows
from shoal.lanes.compiled._handlers import lower

__all__ = ["lower"]
_REGISTERED = (_attention, _elementwise, _norms, _own, _products, _recurrent, _sums, _views, _windows)
