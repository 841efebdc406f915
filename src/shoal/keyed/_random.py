"""Random numbers that belong to a sample, not to a moment: the same wherever, whenever and beside whomever it trains.

A draw is a hash of (trial seed, epoch, position of the sample in the epoch's order, call site, element). Two consequences:
splitting a batch into micro-batches changes no draw, and neither do a lane's neighbours, its slot, or when it was let in.

Glossary: ``q`` samples in a micro-batch; ``key`` one int32 per sample, (q,).

The mixer is the finalizer of MurmurHash3 (Appleby 2011), in int32 arithmetic that wraps around. Its shifts are arithmetic
here (torch has no other on int32), which costs one of 32 bits of state and no visible quality; the tests measure it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

Handler = Callable[..., Any]
_GOLDEN, _M1, _M2 = -1640531527, -2048144789, -1028477387  # 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35 as int32


def mix(x: Tensor) -> Tensor:
    """Scramble int32 values, element by element."""
    x = x ^ (x >> 16)
    x = x * _M1
    x = x ^ (x >> 13)
    # The finalizer's last ``x ^ (x >> 16)`` is left out: with an arithmetic shift it would clear the sign of every number.
    return x * _M2


def _mix_np(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(_M1 & 0xFFFFFFFF)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(_M2 & 0xFFFFFFFF)
    return x ^ (x >> np.uint32(16))


def derive(*parts: int) -> int:
    """A 63-bit number from whole numbers: seeds for trials, epochs, samplers."""
    words = [w for p in parts for w in (p & 0xFFFFFFFF, (p >> 32) & 0xFFFFFFFF)]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of samples in an epoch, (n,): a function of (trial seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, epoch])).permutation(n)


def weighted_order(seed: int, epoch: int, bounds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The samples of an epoch drawn by weight, with replacement, (n,): a function of (trial seed, epoch) and the weights.

    Args:
        seed: Of the trial.
        epoch: From 0.
        bounds: Where each sample ends on a line from 0 to 1 that is cut by weight, (n,).
    """
    generator = np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, epoch]))
    return np.searchsorted(bounds, generator.random(len(bounds)), side="right").astype(np.int64)


def sample_keys(seed: int, epoch: int, n: int) -> NDArray[np.int32]:
    """One key per position in the epoch's order, (n,)."""
    base = np.uint32(derive(seed, epoch) & 0xFFFFFFFF)
    return _mix_np(_positions(n) ^ base).view(np.int32)


@functools.lru_cache(maxsize=4)
def _positions(n: int) -> NDArray[np.uint32]:
    """What positions alone make of a key, (n,): the same in every epoch of every trial."""
    out = _mix_np(np.arange(n, dtype=np.uint32) * np.uint32(_GOLDEN & 0xFFFFFFFF))
    out.flags.writeable = False
    return out


def mask_of(keys: Tensor, element: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """Keys (..., q), element (n,), threshold and scale (...) -> (..., q, n): ``scale`` where a unit is kept, else 0."""
    bits = mix(keys.unsqueeze(-1) ^ element)
    # By the sign of a difference: comparisons to bool are slow on a CPU.
    kept = ((threshold[..., None, None] - 1) - (bits >> 1)) >> 31  # -1 where kept, else 0
    return kept.to(scale.dtype) * -scale[..., None, None]


class KeyedRandom(TorchFunctionMode):
    """While active, dropout, ``torch.rand*`` and their like draw from the samples' keys instead of torch's generator.

    Args:
        keys: int32 (q,), one per sample of the micro-batch.

    A tensor whose first axis has ``q`` entries is drawn sample by sample. Any other shape is drawn as a whole from the first
    sample's key, and ``whole`` becomes True: such a forward pass mixes samples and is not split into micro-batches.
    """

    # Torch's function -> what is called in its place; filled by the modules that know how.
    handlers: ClassVar[dict[Callable[..., Any], Handler]] = {}

    def __init__(self, keys: Tensor) -> None:
        super().__init__()
        self.keys = keys
        self.site = 0
        self.whole = False
        self.rows = 1  # of a draw's first axis that belong to one sample: heads, inside of attention
        self.sorted: tuple[Tensor, Tensor] | None = None  # (values, indices) of the last sort

    def bits(self, shape: torch.Size | tuple[int, ...], device: torch.device) -> Tensor:
        """Uniform int32 of ``shape``."""
        keys, element = self._draw(shape, device)
        return mix(keys[:, None] ^ element).view(shape)

    def _draw(self, shape: torch.Size | tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """What the numbers of one call site are mixed from: keys (q,), or (1,) for a draw as a whole, and elements (count,)."""
        self.site += 1
        q = self.keys.shape[0]
        n = math.prod(shape)
        by_sample = len(shape) > 0 and shape[0] in (q, q * self.rows)
        self.whole |= not by_sample
        element = torch.arange(n // q if by_sample else n, dtype=torch.int32, device=device)
        element = mix(element * _GOLDEN + (self.site * 0x632BE5AB & 0x7FFFFFFF))
        return (self.keys if by_sample else self.keys[:1]), element

    def uniform(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uniform in [0, 1) with 24 bits."""
        return ((self.bits(shape, device) >> 8) + (1 << 23)).to(dtype) * 2.0**-24

    def normal(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal, by inversion: sqrt(2) erfinv(2u - 1) with u in the middle of its 24-bit cell."""
        u = self.uniform(shape, torch.float64 if dtype == torch.float64 else torch.float32, device) + 2.0**-25
        return (math.sqrt(2.0) * torch.erfinv((2.0 * u - 1.0).clamp(-1 + 2.0**-24, 1 - 2.0**-24))).to(dtype)

    def keep(self, p: float | Tensor, shape: torch.Size | tuple[int, ...], like: Tensor, scale: Tensor) -> Tensor:
        """``scale`` where a unit is kept, else 0, of ``shape`` and in the dtype of ``like``; ``p`` and ``scale`` ()."""
        p = self.rate_of(p, like)
        # Keep where bits / 2 >= p * 2^31 - 2^30. The upper clamp keeps the rounding of float32 inside the range.
        threshold = (p * 2.0**31 - 2.0**30).clamp(-(2.0**30), 2.0**30 - 64).to(torch.int32)
        keys, element = self._draw(shape, like.device)
        return self._kept(keys, element, threshold, scale.to(like.dtype)).view(shape)

    def _kept(self, keys: Tensor, element: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
        return mask_of(keys, element, threshold, scale)

    def rate_of(self, p: float | Tensor, like: Tensor) -> Tensor:
        """A rate of dropout as float32 ().

        Raises:
            ValueError: If a number is no probability.
        """
        if isinstance(p, float | int) and not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        return torch.as_tensor(self._given(p), dtype=torch.float32, device=like.device)

    def _given(self, p: float | Tensor) -> float | Tensor:
        return p

    def mask(self, p: float | Tensor, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
        """What dropout multiplies by: 1 / (1 - p) where a unit is kept, else 0."""
        p = self.rate_of(p, like)
        return self.keep(p, shape, like, torch.where(p < 1, 1.0 / (1.0 - p), 0.0))

    def dropout(self, x: Tensor, p: float | Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """``x * keep / (1 - p)``, the mask broadcast from ``shape``; ``p`` may be one lane's number as a tensor."""
        return x * self.mask(p, shape, x)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = self.handlers.get(func)
        return func(*args, **(kwargs or {})) if handler is None else handler(self, *args, **(kwargs or {}))


def handles(*functions: Callable[..., Any]) -> Callable[[Handler], Handler]:
    """Say what is called in place of torch's ``functions`` while ``KeyedRandom`` is active: ``f(mode, *args, **kwargs)``.

    Inside, the mode is off, so that ``functions`` themselves may be called; ``with mode:`` turns it on again.
    """

    def register(handler: Handler) -> Handler:
        KeyedRandom.handlers.update(dict.fromkeys(functions, handler))
        return handler

    return register
