"""Dropout inside of attention by key: ``scaled_dot_product_attention`` and what ``nn.MultiheadAttention`` calls.

Glossary: ``B`` samples, ``h`` heads, ``L`` queries, ``S`` keys, ``E`` features of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._random import KeyedRandom, handles


@handles(F.scaled_dot_product_attention)
def _attention(
    mode: KeyedRandom,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """dropout(softmax(Q K^T scale + mask)) V, step by step where weights are dropped; torch's own kernel where none are."""
    if dropout_p == 0.0:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)  # (B, h, L, S)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    return mode.dropout(weights, dropout_p, weights.shape) @ value


def _undispatched(function: Any) -> Callable[..., Any]:
    """A Python function of torch that does not first ask whether a mode wants to replace it, but runs, with the mode active."""
    no = {name: lambda *_: False for name in function.__globals__ if name.startswith("has_torch_function")}
    space = {**function.__globals__, **no}
    out = FunctionType(function.__code__, space, function.__name__, function.__defaults__, function.__closure__)
    out.__kwdefaults__ = function.__kwdefaults__
    return out


_multi_head = _undispatched(F.multi_head_attention_forward)


@handles(F.multi_head_attention_forward)
def _multi_head_attention(mode: KeyedRandom, *args: Any, **kwargs: Any) -> Any:
    """torch's own function, with its dropout under the mode. Heads come as rows there: (B h, L, S)."""
    heads = kwargs["num_heads"] if "num_heads" in kwargs else args[4]
    before, mode.rows = mode.rows, heads
    try:
        with mode:
            return _multi_head(*args, **kwargs)
    finally:
        mode.rows = before
