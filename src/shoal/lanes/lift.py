"""What may differ between lanes of one fleet, taken out of a model: activation classes and dropout rates.

``lift_values(model)`` reads them; ``lift_template(model)`` replaces the modules that hold them by stand-ins which receive the same
values as lane tensors. Both walk the model alike, so the names agree. Whatever is not lifted stays in the structural key.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.keys import module_key
from shoal.lanes.activations import LaneActivation, kind_of

_DROPOUTS = {nn.Dropout: F.dropout, nn.Dropout1d: F.dropout1d, nn.Dropout2d: F.dropout2d, nn.Dropout3d: F.dropout3d}


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


def _liftable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name and (_is_dropout(module) or kind_of(module) is not None):
            yield name, module


def lift_values(model: nn.Module) -> dict[str, Tensor]:
    """``{"net.1.kind": int64 (), "net.2.p": float32 ()}``: the values of one trial."""
    out: dict[str, Tensor] = {}
    for name, module in _liftable(model):
        if _is_dropout(module):
            out[f"{name}.p"] = torch.tensor(module.p, dtype=torch.float32)
        else:
            out[f"{name}.kind"] = torch.tensor(kind_of(module))
    return out


def lift_template(model: nn.Module) -> frozenset[str]:
    """Put stand-ins into ``model``, in place; returns the names of their lane tensors."""
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
    return frozenset(names)


def model_key(model: nn.Module) -> tuple[object, ...]:
    """The structural key of a model, blind to what is lifted and to nothing else."""
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
            parts.append(
                (
                    name,
                    "dropout" if _is_dropout(module) else "activation",
                    type(module).__name__ if _is_dropout(module) else "",
                    module.training,
                )
            )
        else:
            parts.append((name, _module_key(module, lifted, name)))
    return (tuple(parts), aliases, tuple(t for t in ties if t[0] != t[1]))


def _module_key(module: nn.Module, lifted: set[str], name: str) -> object:
    key = module_key(module)
    prefix = f"{name}." if name else ""
    # Which class sits at a lifted child is not part of the parent's key.
    children = tuple((n, "lifted" if f"{prefix}{n}" in lifted else c) for n, c in key[-1])  # type: ignore[index]
    return (*key[:-1], children)  # type: ignore[index]
