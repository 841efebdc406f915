"""A trial's random numbers over lanes: what `shoal.keyed` draws, with what only lanes need.

Glossary: ``q`` samples in a micro-batch; ``key`` one int32 per sample, (q,), or (lanes, q) outside vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoal import keyed
from shoal.keyed import derive, mask_of, mix, permutation, sample_keys
from shoal.lanes.batching import lanes_first
from shoal.lanes.numbers import LaneFloat, plain

__all__ = ["KeyedRandom", "LaneRate", "derive", "handles", "mask_of", "mix", "permutation", "sample_keys"]

Handler = Callable[..., Any]

_TEMPERATURE = 0.1  # of relaxed masks

# One node of a traced graph, so that a fleet may compute it in one pass. It has no gradient: nothing flows through a mask.
_SCHEMA = "(Tensor keys, Tensor element, Tensor threshold, Tensor scale) -> Tensor"
for _name in ("keep_mask", "lane_keep_mask"):
    torch.library.define(f"shoal::{_name}", _SCHEMA)
    torch.library.impl(f"shoal::{_name}", "CompositeExplicitAutograd", mask_of)
    torch.library.register_fake(
        f"shoal::{_name}",
        lambda keys, element, threshold, scale: keys.new_empty((*keys.shape, element.shape[0]), dtype=scale.dtype),
    )


@torch.library.register_vmap("shoal::keep_mask")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
    keys, element, threshold, scale = tensors
    of_keys, of_element, *others = in_dims
    if of_element is not None:
        raise ValueError("the elements of a draw are the same in every lane")
    keys, threshold, scale = lanes_first(info, (of_keys, *others), (keys, threshold, scale))
    return torch.ops.shoal.lane_keep_mask(keys, element, threshold, scale), 0


class LaneRate(float):
    """A dropout rate of each lane's own, for modules that hold it as a number: to Python it is one half, to a draw a tensor.

    Args:
        module: Its buffer ``dropout_rate`` holds the rate, and is a lane tensor while the module runs over lanes.
    """

    _module: nn.Module

    def __new__(cls, module: nn.Module) -> LaneRate:
        self = super().__new__(cls, 0.5)
        self._module = module
        return self

    @property
    def tensor(self) -> Tensor:
        """The rate, ()."""
        return self._module.get_buffer("dropout_rate")


class KeyedRandom(keyed.KeyedRandom):
    """`shoal.keyed.KeyedRandom`, for passes over lanes and for probes too.

    Args:
        keys: int32 (q,), one per sample of the micro-batch; may be a vmapped tensor.
        lanes: Whether this pass is for lanes: recurrent layers become one operation, packed sequences stay padded.
        rate: Stands for every rate of dropout; for a probe, which must not miss one that happens to be 0 in this trial.
        slack: Sequences that are padded to the longest one get this many steps more; for a probe.
        relaxed: Whether masks whose rate is a tensor are the continuous relaxation of a mask, which has a gradient in the rate.
    """

    handlers: ClassVar[dict[Callable[..., Any], Handler]] = dict(keyed.KeyedRandom.handlers)

    def __init__(
        self,
        keys: Tensor,
        *,
        lanes: bool = False,
        rate: float | None = None,
        slack: int = 0,
        relaxed: bool = False,
    ) -> None:
        super().__init__(keys)
        self.lanes, self.rate, self.slack, self.relaxed = lanes, rate, slack, relaxed
        self.packed = False  # sequences have been packed

    def _kept(self, keys: Tensor, element: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
        kept: Tensor = torch.ops.shoal.keep_mask(keys, element, threshold, scale)
        return kept

    def mask(self, p: float | Tensor, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
        """As ever; relaxed, ``sigmoid((logit u - logit p') / 0.1) / (1 - p)`` of the random numbers u that a mask compares with p.

        Gal et al. 2017, Concrete dropout, equation 5. p' = 0.001 + 0.998 p has a logit also where p is 0.
        """
        if not self.relaxed or not isinstance(p, Tensor):
            return super().mask(p, shape, like)
        keys, element = self._draw(shape, like.device)
        u = ((mix(keys[:, None] ^ element) >> 1).to(like.dtype) + (2.0**30 + 0.5)) * 2.0**-31
        rate = p.to(like.dtype)
        off = 0.001 + 0.998 * rate
        kept = torch.sigmoid((torch.logit(u) - (off.log() - (1.0 - off).log())) / _TEMPERATURE)
        return (kept / (1.0 - rate)).view(shape)

    def _given(self, p: float | Tensor) -> float | Tensor:
        return self.rate if self.rate is not None else p.tensor if isinstance(p, LaneRate) else p

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = self.handlers.get(func)
        if handler is None:
            return func(*args, **(kwargs or {}))
        if any(type(a) is LaneFloat for a in (*args, *(kwargs or {}).values())):
            args, kwargs = plain(args), plain(kwargs or {})
        return handler(self, *args, **(kwargs or {}))


def handles(*functions: Callable[..., Any]) -> Callable[[Handler], Handler]:
    """`shoal.keyed.handles`, for passes over lanes: in place of what it says for the same functions."""

    def register(handler: Handler) -> Handler:
        KeyedRandom.handlers.update(dict.fromkeys(functions, handler))
        return handler

    return register


@handles(torch.empty)
def _empty(mode: KeyedRandom, *args: Any, **kwargs: Any) -> Tensor:
    """Over lanes, one tensor per lane: what is drawn into it is each lane's own."""
    out = torch.empty(*args, **kwargs)
    return out + (mode.keys[0] * 0).to(out.dtype) if mode.lanes and out.is_floating_point() else out
