"""A little away from where a model starts: what a layer that starts at zero hides must show itself before its lanes train.

A head that is zero at first, or a gate, gives the same whatever lies before it; a trial run there would find that samples are
independent when they are not, and that no buffer moves. So trial runs look at moved values too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def moved(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of parameters and buffers, moved: real numbers by noise, at most as large as a layer's usual start.

    Of a matrix or a kernel, elements move by a standard deviation of ``0.5 / sqrt(fan_in)``; of a vector by 0.1. What is not
    trained grows by up to 0.05, so that what is positive stays so; whole numbers stay. The noise is always the same.
    """
    generator = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {}
    for name, t in named.items():
        copy = t.detach().clone()
        if copy.is_floating_point():
            if isinstance(t, nn.Parameter):
                size = 0.5 / math.sqrt(max(1, t[0].numel())) if t.dim() > 1 and len(t) else 0.1
                noise = size * torch.randn(t.shape, generator=generator)
            else:
                noise = 0.05 * torch.rand(t.shape, generator=generator)
            copy += noise.to(copy)
        out[name] = copy
    return out


@contextmanager
def weights_moved(model: nn.Module) -> Iterator[None]:
    """Move a model's parameters for a while, and put back what was in them."""
    named = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    after = moved(named)
    try:
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(after[name])
        yield
    finally:
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(before[name])


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Put the tensors that modules hold back afterwards: ``functional_call`` leaves what it was given in a module of two names."""
    tables = [(table, dict(table)) for m in model.modules() for table in (m._parameters, m._buffers)]
    try:
        yield
    finally:
        for table, was in tables:
            table.clear()
            table.update(was)  # type: ignore[arg-type]
