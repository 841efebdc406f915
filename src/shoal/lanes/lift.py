"""What may differ between lanes of one fleet, taken out of a model: activation classes and dropout rates.

A dropout module is replaced as a whole. Attention and recurrent layers hold a rate of their own, as a number: they keep their place
and get a number that is each lane's. A rate of 0 is not lifted, since with it torch draws nothing at all.

``lift_values(model)`` reads them; ``lift_template(model)`` replaces the modules that hold them by stand-ins which receive the same
values as lane tensors. Both walk the model alike, so the names agree. Whatever is not lifted stays in the structural key.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.extend._by_validation import DROPOUTS
from shoal.keys import Reader, derived
from shoal.lanes.activations import LaneActivation, kind_of
from shoal.lanes.functional import batch_norm
from shoal.lanes.mixtures import LaneMixture
from shoal.lanes.rng import LaneRate

_DROPOUTS = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
    nn.FeatureAlphaDropout: F.feature_alpha_dropout,
}
# Whether a mask is the causal one, these find out by its values, which lanes may not do. It is a hint only: False is always right.
_HINTS = {nn.TransformerEncoder: "is_causal", nn.TransformerDecoder: "tgt_is_causal"}
_DROPPING = (nn.MultiheadAttention, nn.RNN, nn.GRU, nn.LSTM)


class LaneDropout(nn.Module):
    """Stands where a dropout module stood in a template; its rate arrives as a lane tensor.

    Only runs under ``KeyedRandom``, which takes the rate as a tensor (torch's own dropout does not).
    """

    p: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.function = _DROPOUTS[type(module)]  # type: ignore[index]
        self.register_buffer("p", torch.tensor(module.p, dtype=torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, self.p, self.training)  # type: ignore[arg-type]


def _is_dropout(module: nn.Module) -> bool:
    plain = not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
    return type(module) in _DROPOUTS and not module.inplace and plain


def dropouts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules whose rate ``shoal.extend.Dropout`` moves, by name; their lane tensors are called ``name.p``."""
    return [(name, m) for name, m in model.named_modules() if name and type(m) in DROPOUTS and _is_dropout(m)]


def _has_rate(module: nn.Module) -> bool:
    rate: object = getattr(module, "dropout", 0.0)
    return type(module) in _DROPPING and type(rate) is float and rate > 0


def _liftable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name and (_is_dropout(module) or kind_of(module) is not None):
            yield name, module


def _rates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold a rate, and the names of their lane tensors."""
    for name, module in model.named_modules():
        if _has_rate(module):
            yield f"{name}.dropout_rate" if name else "dropout_rate", module


def lift_values(model: nn.Module) -> dict[str, Tensor]:
    """``{"net.1.kind": int64 (), "net.2.p": float32 ()}``: the values of one trial."""
    out: dict[str, Tensor] = {}
    for name, module in _liftable(model):
        if _is_dropout(module):
            out[f"{name}.p"] = torch.tensor(module.p, dtype=torch.float32)
        else:
            out[f"{name}.kind"] = torch.tensor(kind_of(module))
    out.update({name: torch.tensor(module.dropout, dtype=torch.float32) for name, module in _rates(model)})
    return out


def lift_template(model: nn.Module) -> frozenset[str]:
    """Put stand-ins into ``model``, in place; returns the names of their lane tensors."""
    _count_by_tensor(model)
    names: set[str] = set()
    for name, module in list(_liftable(model)):
        if _is_dropout(module):
            stand_in: nn.Module = LaneDropout(module)
            names.add(f"{name}.p")
        else:
            stand_in = LaneActivation(kind_of(module) or 0)
            names.add(f"{name}.kind")
        stand_in.training = module.training
        for parent in list(model.modules()):
            for key, child in parent._modules.items():
                if child is module:
                    parent._modules[key] = stand_in
    LaneMixture.stand_in(model)
    for name, module in list(_rates(model)):
        names.add(name)
        module.register_buffer("dropout_rate", torch.tensor(module.dropout, dtype=torch.float32))
        module.dropout = LaneRate(module)  # type: ignore[assignment]
    for module in model.modules():
        if type(module) in _HINTS:
            module.register_forward_pre_hook(_without_hint, with_kwargs=True)
    return frozenset(names)


def _without_hint(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    name = _HINTS[type(module)]
    position = list(inspect.signature(module.forward).parameters).index(name)
    if len(args) <= position and kwargs.get(name) is None:
        kwargs = {**kwargs, name: False}
    return args, kwargs


class _CumulativeNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with ``momentum=None``, whose average over all batches is counted by a lane's own tensor."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.num_batches_tracked is None:
            return super().forward(input)
        self.num_batches_tracked.add_(1)
        share = 1.0 / self.num_batches_tracked.to(input.dtype)
        return batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, True, share, self.eps)


def _count_by_tensor(model: nn.Module) -> None:
    """Let batch norms without momentum count without reading a tensor into Python."""
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and module.momentum is None:
            check = type(module)._check_input_dim
            module.__class__ = type(type(module).__name__, (_CumulativeNorm,), {"_check_input_dim": check})


def names_of(model: nn.Module) -> dict[int, str]:
    """What a model owns, by ``id``: modules, parameters and buffers under their first names."""
    out = {id(m): f"module {name}" for name, m in model.named_modules()}
    out.update({id(t): f"parameter {name}" for name, t in model.named_parameters()})
    out.update({id(t): f"buffer {name}" for name, t in model.named_buffers()})
    return out


def model_key(model: nn.Module, reader: Reader) -> tuple[object, ...]:
    """The structural key of a model, blind to what is lifted and to nothing else.

    Args:
        model: The model.
        reader: Reads it; must know the model's ``names_of``.
    """
    lifted = {name for name, _ in _liftable(model)}
    shared = {id(m): name for name, m in model.named_modules()}
    # Modules and parameters that appear under several names are shared: which ones is part of the structure.
    aliases = tuple(
        (name, shared[id(m)]) for name, m in model.named_modules(remove_duplicate=False) if shared[id(m)] != name
    )
    first: dict[int, str] = {}
    ties = tuple((name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False))
    parts: list[tuple[object, ...]] = []
    for name, module in model.named_modules():
        if name in lifted:
            kind = type(module).__name__ if _is_dropout(module) else ""
            parts.append((name, "dropout" if _is_dropout(module) else "activation", kind, module.training))
            continue
        prefix = f"{name}." if name else ""
        with reader.at(name or "the model"):
            *key, children = reader.module(module, skip={*derived(module), *_not_structure(module)})
        # Which class sits at a lifted child is not part of the parent's key.
        seen = tuple((n, "lifted" if f"{prefix}{n}" in lifted else c) for n, c in children)  # type: ignore[attr-defined]
        parts.append((name, *key, seen))
    return (tuple(parts), aliases, tuple(t for t in ties if t[0] != t[1]))


def _not_structure(module: nn.Module) -> Iterator[str]:
    """Attributes of torch's own layers that are lifted, or that repeat what the parameters say."""
    if _has_rate(module):
        yield "dropout"
    if isinstance(module, nn.RNNBase):
        own = [getattr(module, name, None) for name in module._flat_weights_names]
        if len(own) == len(module._flat_weights) and all(
            a is b for a, b in zip(own, module._flat_weights, strict=True)
        ):
            yield from ("_flat_weights", "_flat_weight_refs")
