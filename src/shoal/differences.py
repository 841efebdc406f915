"""What keeps two recipes out of one fleet, in the words of the user: the layer, the attribute, the batch size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Any

from torch import Tensor, nn

from shoal.keys import MODULE_INTERNALS, derived, digest, fingerprint_key
from shoal.lanes.lift import lift_values
from shoal.lanes.order import MAX_QUANTUM
from shoal.recipe import Recipe
from shoal.signature import Signature

_SHOWN = 3


def differences(a: Recipe, b: Recipe, ours: Signature, theirs: Signature) -> list[str]:
    """Sentences on what tells two recipes apart, most telling first; never empty.

    Args:
        a, b: The recipes.
        ours, theirs: Their signatures, which differ.
    """
    parts = ours.differs(theirs)
    out: list[str] = []
    if "model" in parts or "shapes" in parts:
        out += _limited(_models(a, b))
    if "loss" in parts or "loss options" in parts:
        out.append(_loss(a.loss, b.loss))
    if "predict" in parts:
        out.append("predict has other code, or other values in its closure")
    if "numbers" in parts:
        out.append("numbers of the model or the loss lead its code along different branches")
    if "batch size" in parts or "quantum" in parts:
        out.append(_batches(a, b, ours, theirs))
    return out or [f"the parts {', '.join(parts)} of their signatures"]


def _limited(found: Iterable[str]) -> list[str]:
    every = list(found)
    more = len(every) - _SHOWN
    return [*every[:_SHOWN], *([f"and {more} more of the model"] if more > 0 else [])]


def _models(a: Recipe, b: Recipe) -> Iterator[str]:
    mine, theirs = dict(a.model.named_modules()), dict(b.model.named_modules())
    # What each lane has for itself tells no fleets apart: activations, dropout rates and numbers that are lifted.
    own = lift_values(a.model).keys() & lift_values(b.model).keys() | set(a.lifts) & set(b.lifts)
    for name in sorted(mine.keys() ^ theirs.keys()):
        if name.rpartition(".")[0] in mine and name.rpartition(".")[0] in theirs:
            yield f"layer {name!r} ({type(mine.get(name) or theirs[name]).__name__}) is in one of them only"
    for name in (n for n in mine if n in theirs):
        if not {f"{name}.p", f"{name}.kind"} & own:
            yield from _modules(name, mine[name], theirs[name], own)


def _modules(path: str, a: nn.Module, b: nn.Module, own: Set[str]) -> Iterator[str]:
    where = f"layer {path!r}" if path else "the model"
    if type(a) is not type(b) and fingerprint_key(type(a)) != fingerprint_key(type(b)):
        yield f"{where} is {type(a).__name__} / {type(b).__name__}"
        return
    for table, other in ((a._parameters, b._parameters), (a._buffers, b._buffers)):
        for name in sorted(table.keys() & other.keys()):
            p, q = table[name], other[name]
            if p is not None and q is not None and p.shape != q.shape:
                yield f"{name} of {where} is {_shape(p)} / {_shape(q)}"
            elif p is not None and q is not None and p.requires_grad != q.requires_grad:
                yield f"{name} of {where} is {'trained / frozen' if p.requires_grad else 'frozen / trained'}"
            elif (p is None) != (q is None):
                yield f"{name} of {where} is there in one of them only"
    if a.training != b.training:
        yield f"{where} is in {'train' if a.training else 'eval'}() / {'train' if b.training else 'eval'}() mode"
    sizes = {"in_features", "out_features", "in_channels", "out_channels", "num_features", "normalized_shape"}
    for name in sorted(vars(a).keys() & vars(b).keys() - MODULE_INTERNALS - derived(a) - sizes):
        if ".".join(filter(None, ("model", path, name))) in own or (
            name == "dropout" and f"{path}.dropout_rate" in own
        ):
            continue
        mine, theirs = vars(a)[name], vars(b)[name]
        if digest(fingerprint_key(mine)) != digest(fingerprint_key(theirs)):
            yield f"{name} of {where} is {_value(mine)} / {_value(theirs)}"


def _shape(t: Tensor) -> str:
    return " x ".join(map(str, t.shape)) or "one number"


def _value(value: Any) -> str:
    if isinstance(value, bool | int | float | str | None | tuple):
        return repr(value)
    return f"one {type(value).__name__}"


def _loss(a: Any, b: Any) -> str:
    names = [type(x).__name__ if isinstance(x, nn.Module) else getattr(x, "__name__", type(x).__name__) for x in (a, b)]
    if names[0] != names[1]:
        return f"the loss is {names[0]} / {names[1]}"
    return f"the loss {names[0]} has other options, code or values in its closure"


def _batches(a: Recipe, b: Recipe, ours: Signature, theirs: Signature) -> str:
    sizes = f"batch size {a.batch_size} / {b.batch_size}"
    why = ours.whole or theirs.whole
    if why:
        return f"{sizes}, because {why}; equal batch sizes would join them"
    return (
        f"{sizes}, which make micro-batches of {ours.quantum} / {theirs.quantum} samples; sizes that are multiples of "
        f"{MAX_QUANTUM} share a fleet"
    )
