"""What a few plain forward passes say of a recipe before it is traced: side effects, dependence on the batch, numbers to lift.

Glossary: ``q`` samples of a probing batch; ``keys`` (q,) their random keys.

A recipe that turns out to have side effects has had them: whoever trains it alone afterwards must rebuild it.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_map

from shoal.errors import FuseError
from shoal.keys import MODULE_INTERNALS, Reader, derived, tensor_key
from shoal.lanes.criteria import criterion_values, is_known
from shoal.lanes.culprit import line_that_assigns, line_that_changes
from shoal.lanes.elsewhere import kept, moved, weights_moved
from shoal.lanes.lift import names_of
from shoal.lanes.numbers import Guards, Place, Value, filled, holding, tensors, values_of
from shoal.lanes.rng import KeyedRandom
from shoal.lanes.sealed import Sealed
from shoal.lanes.step import Objective
from shoal.recipe import Batch, Recipe

# A lifted number is tried out at a second value, the first of these multiples that takes the same way through the code.
_FACTORS = (1.1, 0.9, 1.01, 0.99)


def batch_of(data: Sequence[Tensor], n: int) -> tuple[Batch, Tensor]:
    """The first ``n`` samples, copied, and keys for them."""
    rows = torch.arange(n, device=data[0].device)
    return tuple(t[rows] for t in data), torch.arange(n, dtype=torch.int32, device=data[0].device)


@dataclass(frozen=True, slots=True)
class Effects:
    """What a forward pass leaves behind.

    Args:
        reason: What it changes beside buffers, in words; "" if nothing. A trace would do that once, for all lanes and steps.
        advances: A module whose buffers it changes, in words: then one batch must be one forward pass, over no other samples.
    """

    reason: str = ""
    advances: str = ""


def effects(recipe: Recipe, batch: Batch, keys: Tensor) -> Effects:
    """Run forward passes in both modes and see what they leave behind."""
    model = recipe.model
    before, drawn = state_of(recipe), (random.getstate(), repr(np.random.get_state()))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    with _buffers_kept(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training itself will say it
        try:
            for training in (True, False):
                recipe.train_mode() if training else model.eval()
                with KeyedRandom(keys):
                    _plain_loss(recipe, tuple(t.clone() for t in batch), training)
        finally:
            recipe.train_mode()
        reason = _reason(recipe, before, weights, drawn, Again(recipe, batch, keys))
        if not reason:  # a head that starts at zero keeps still what is told of its outputs
            with weights_moved(model), KeyedRandom(keys), suppress(Exception):
                _plain_loss(recipe, tuple(t.clone() for t in batch), True)
        changed = (name for name, b in model.named_buffers() if not torch.equal(b, buffers[name]))
        advances = _owner(model, next(changed, None))
    return Effects(reason, advances)


def _owner(model: nn.Module, buffer: str | None) -> str:
    if buffer is None:
        return ""
    path = buffer.rpartition(".")[0]
    name = type(model.get_submodule(path)).__name__
    return f"{name} (layer {path!r})" if path else name


@dataclass(frozen=True, slots=True)
class Again:
    """Runs the forward passes once more, to find the line that is to blame."""

    recipe: Recipe
    batch: Batch
    keys: Tensor

    def line(self, look: Callable[[], object], where: str = "") -> str:
        """The user's line after which ``look`` gives something else, in brackets; "" where it cannot be known.

        Args:
            look: What changes.
            where: In words; what changes the first time only is looked for in the code.
        """
        found = ""
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = line_that_changes(look, self._run)
        if not found and (named := re.match(r"'(\w+)' of (?:module '(.*)' )?", where)):
            with suppress(AttributeError):
                found = line_that_assigns(self.recipe.model.get_submodule(named[2] or ""), named[1])
        return f" ({found})" if found else ""

    def _run(self) -> None:
        for training in (True, False):
            self.recipe.train_mode() if training else self.recipe.model.eval()
            with KeyedRandom(self.keys):
                _plain_loss(self.recipe, tuple(t.clone() for t in self.batch), training)


def _reason(
    recipe: Recipe,
    before: Mapping[str, object],
    weights: Mapping[str, Tensor],
    drawn: tuple[Any, str],
    again: Again,
) -> str:
    for name, p in recipe.model.named_parameters():
        if not torch.equal(p.detach(), weights[name]) and not bool(weights[name].isnan().any()):
            with torch.no_grad():
                p.copy_(weights[name])  # what it does may show once only: clamping, say
            line = again.line(lambda p=p: tensor_key(p))  # type: ignore[misc]
            return f"its forward pass writes to the parameter {name!r}{line}"
    after = state_of(recipe)
    for where in before:
        if before[where] != after.get(where):
            line = again.line(lambda where=where: state_of(recipe).get(where), where)  # type: ignore[misc]
            return f"its forward pass changes {where}, which a trace would do only once{line}"
    no_form = "which have no keyed form"
    if drawn[0] != random.getstate():
        return f"its forward pass draws random numbers from Python's random, {no_form}{again.line(random.getstate)}"
    if drawn[1] != repr(np.random.get_state()):
        line = again.line(lambda: repr(np.random.get_state()))
        return f"its forward pass draws random numbers from NumPy, {no_form}{line}"
    return ""


def _plain_loss(recipe: Recipe, batch: Batch, training: bool) -> None:
    with torch.set_grad_enabled(training):
        loss = recipe.loss_of(recipe.model, recipe.transformed(batch) if training else batch)
        if recipe.predict is not None and not training:
            recipe.shown(recipe.model, batch)
    if training and isinstance(loss, Tensor) and loss.requires_grad and loss.dim() == 0:
        trained = [p for p in recipe.model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, trained, allow_unused=True)


def state_of(recipe: Recipe) -> dict[str, object]:
    """Everything in Python that a forward pass can reach, by where it is."""
    known, out = names_of(recipe.model), dict[str, object]()
    for path, module in recipe.model.named_modules():
        of = f"module {path!r} ({type(module).__name__})" if path else type(module).__name__
        for name, value in vars(module).items():
            if name not in MODULE_INTERNALS and name not in derived(module):
                out[f"{name!r} of {of}"] = Reader(known).key(value)
        code = f"what the code of {type(module).__name__} refers to (a global, a default, an attribute of the class)"
        if code not in out:
            out[code] = Reader(known).key(type(module))
    for name in ("loss", "predict", "transform"):
        out[f"what {name} refers to"] = Reader(known).key(getattr(recipe, name))
    return out


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer back afterwards: the tensor that it was, with what was in it."""
    contents = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        with kept(model):
            yield
    finally:
        with torch.no_grad():
            for tensor, content in contents:
                tensor.copy_(content)


def same_in_any(recipe: Recipe, data: Sequence[Tensor], sizes: Collection[int]) -> bool:
    """Whether a sample's output is the same in batches of all these sizes: a forward pass may look at the size."""
    named = {**dict(recipe.model.named_parameters()), **dict(recipe.model.named_buffers())}
    return _same_in_any(recipe, data, sizes, named) and _same_in_any(recipe, data, sizes, moved(named))


def _same_in_any(
    recipe: Recipe, data: Sequence[Tensor], sizes: Collection[int], tensors_: Mapping[str, Tensor]
) -> bool:
    small, *larger = sorted({n for n in sizes if n > 0})
    first: Tensor | None = None
    for n in (small, *larger):
        batch, keys = batch_of(data, n)
        copies = {name: t.detach().clone() for name, t in tensors_.items()}
        with torch.no_grad(), KeyedRandom(keys):
            out = functional_call(recipe.model, copies, *recipe.form.inputs(batch))[:small]
        first = out if first is None else first
        if not bool(((out - first).abs().max() <= 1e-5 * first.abs().max().clamp(min=1e-12)).item()):
            return False
    return True


# -- numbers ------------------------------------------------------------------------------------------------------------------


def liftable(recipe: Recipe, places: Mapping[str, Place], batch: Batch, keys: Tensor) -> tuple[tuple[str, ...], Guards]:
    """Which places may hold a lane's own number, and the comparisons that the code makes of them.

    A number is lifted if loss, gradients, buffers and outputs over two lanes, with its own value and with another one, are what
    plain forward passes with these two values give.
    """
    trial = _Trial(recipe, places, batch, keys)
    names = tuple(places)
    guards = trial.agree(names)
    if guards is None:
        names = tuple(name for name in names if trial.agree((name,)) is not None)
        guards = trial.agree(names) if names else None
    return ((), Guards()) if guards is None else (names, guards)


class _Trial:
    """Runs a recipe with numbers lifted and plain, and compares."""

    def __init__(self, recipe: Recipe, places: Mapping[str, Place], batch: Batch, keys: Tensor) -> None:
        self.recipe, self.places, self.batch, self.keys = recipe, places, batch, keys
        named = dict(recipe.model.named_parameters())
        self.params = {f"model.{n}": p.detach().clone() for n, p in named.items() if p.requires_grad}
        self.fixed = {f"model.{n}": p.detach().clone() for n, p in named.items() if not p.requires_grad}
        self.buffers = {f"model.{n}": b.detach().clone() for n, b in recipe.model.named_buffers()}
        self.values = {n: t.clone() for n, t in criterion_values(recipe.loss).items()} if is_known(recipe.loss) else {}
        first = next(iter(self.params.values()))
        self.dtype, self.device = first.dtype, first.device
        self.weights = torch.full((len(keys),), 1.0 / len(keys), dtype=self.dtype, device=self.device)
        self.tolerance = 1e-9 if self.dtype == torch.float64 else 1e-4

    def agree(self, names: Sequence[str]) -> Guards | None:
        """The guards of a run with these numbers lifted, if it does what the plain numbers do; else None."""
        own = values_of(self.places, names)
        try:
            guards = Guards()
            self._run(self._lanes(own), guards)
            other = self._other(own, guards)
            if other is None:
                return None
            lanes = [self._lanes(own), self._lanes(other)]
            stacked = {name: torch.stack([lane[name] for lane in lanes]) for name in names}
            # The run asks the same questions again; its hints are the first lane's, and the guards hold for both.
            mine = (self.batch, self.keys, self.params, self.buffers)
            twice = tree_map(lambda t: torch.stack([t, t]), mine)
            got = vmap(lambda numbers, *own: self._run(numbers, Guards(), own))(stacked, *twice)
            expected = [self._run({}, Guards())]
            with holding(self.places, other):
                expected.append(self._run({}, Guards()))
        except Exception:  # whatever the code does with it, it cannot do with a lane's number
            return None
        for k, plain in enumerate(expected):
            for a, b in zip(got, plain, strict=True):
                if a[k].shape != b.shape or a.dtype != b.dtype or not self._close(a[k], b):
                    return None
        return guards

    def _close(self, a: Tensor, b: Tensor) -> bool:
        if not a.dtype.is_floating_point:
            return bool(torch.equal(a, b))
        if not a.numel():
            return True
        same = (a == b) | (a.isnan() & b.isnan())
        scale = b.abs().nan_to_num(posinf=0.0).max().clamp(min=1e-12)
        return bool((same | ((a - b).abs() <= self.tolerance * scale)).all())

    def _lanes(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        return tensors(values, self.dtype, self.device)

    def _other(self, own: Mapping[str, Value], guards: Guards) -> dict[str, Value] | None:
        for factor in _FACTORS:
            other = {name: _moved(value, factor) for name, value in own.items()}
            if guards.hold(other):
                try:
                    with holding(self.places, other):
                        self._run({}, Guards())
                except Exception:  # a value that the code refuses: try another
                    continue
                return other
        return None

    def _run(self, numbers: Mapping[str, Tensor], guards: Guards, own: tuple[Any, ...] = ()) -> list[Tensor]:
        """Gradients, loss, new buffers, and what evaluation gives, with these numbers lifted.

        Args:
            own: A lane's batch, keys, parameters and buffers, where they are stacked.
        """
        recipe, objective = self.recipe, Objective(self.recipe.model, self.recipe)
        batch, keys, trained, buffers = own or (self.batch, self.keys, self.params, self.buffers)

        @contextmanager
        def within() -> Iterator[Batch]:
            with (
                KeyedRandom(keys, lanes=bool(numbers)),
                filled(self.places, numbers, guards),
                Sealed() if numbers else nullcontext(),
            ):
                yield tuple(t.clone() for t in batch)

        def loss_of(params: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            given = {**params, **self.fixed, **{n: b.clone() for n, b in buffers.items()}}
            with within() as samples:
                loss, _ = functional_call(objective, given, (samples, self.weights, self.values, False))
            return loss, {name: given[name] for name in buffers}

        grads, (loss, advanced) = grad_and_value(loss_of, has_aux=True)(trained)
        recipe.model.eval()
        try:
            given = {**trained, **self.fixed, **{n: b.clone() for n, b in buffers.items()}}
            with torch.no_grad(), within() as samples:
                evaluated, seen = functional_call(objective, given, (samples, self.weights, self.values, True))
        finally:
            recipe.train_mode()
        out: list[Any] = [*grads.values(), loss, *advanced.values(), evaluated, *([] if seen is None else [seen])]
        if not all(isinstance(t, Tensor) for t in out):
            raise FuseError("its outputs are not tensors")
        return out


def _moved(value: Value, factor: float) -> Value:
    if isinstance(value, Tensor):
        if value.dtype.is_floating_point or value.dtype.is_complex:
            return value * factor + (factor - 1.0)
        return value.flatten().roll(1).view(value.shape)  # other indices, within the same range
    return value * factor if value else factor - 1.0
