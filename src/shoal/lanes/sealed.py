"""What a trace must not do without saying so: hand a tensor's value to Python, where one lane's would become everyone's.

Most such calls raise by themselves under ``vmap``; some do not (``.numpy()`` of a batch that all lanes share, ``torch.equal``), and
none of torch's own messages names the user's line. ``Sealed`` is active while a step is traced, and at no other time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from shoal.errors import FuseError
from shoal.lanes.functional import OVER_LANES, WITH_NUMBERS
from shoal.lanes.numbers import LaneFloat, plain

_READS: dict[Callable[..., Any], str] = {
    Tensor.item: ".item()",
    Tensor.tolist: ".tolist()",
    Tensor.numpy: ".numpy()",
    Tensor.__array__: "NumPy",
    Tensor.__bool__: "an if, while, and, or or assert",
    Tensor.__float__: "float()",
    Tensor.__int__: "int()",
    Tensor.__index__: "an index or a size",
    Tensor.__complex__: "complex()",
    Tensor.__contains__: "in",
    Tensor.data_ptr: ".data_ptr()",
    Tensor.is_nonzero: ".is_nonzero()",
    Tensor.equal: ".equal()",
    Tensor.allclose: ".allclose()",
    torch.equal: "torch.equal",
    torch.allclose: "torch.allclose",
    torch.is_nonzero: "torch.is_nonzero",
}
_GRADIENT = vars(torch._C.TensorBase)["grad"].__get__


class Sealed(TorchFunctionMode):
    """While active, reading a tensor's value into Python raises, and functions that do so inside get a form that does not.

    Raises:
        FuseError: Naming the call.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        read = _READS.get(func)
        if read is not None:
            raise FuseError(f"its forward pass reads a tensor's value into Python, with {read}")
        if func == _GRADIENT:
            raise FuseError("its forward pass reads a gradient, with .grad, and lanes keep gradients elsewhere")
        if func in WITH_NUMBERS and any(isinstance(a, LaneFloat) for a in (*args, *(kwargs or {}).values())):
            return WITH_NUMBERS[func](*plain(args), **plain(kwargs or {}))
        own = OVER_LANES.get(func) or _WITHOUT_READING.get(func)
        if own is not None:
            return own(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        raise FuseError(
            "its forward pass calls one_hot without num_classes, whose result has as many as its largest value"
        )
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).to(torch.int64)


_WITHOUT_READING: dict[Callable[..., Any], Callable[..., Any]] = {F.one_hot: _one_hot, torch._C._nn.one_hot: _one_hot}
