"""Trace one trial's step once, for all lanes of a fleet: gradients while training, outputs and losses while evaluating.

``functional_call`` + ``grad`` + ``vmap`` over stacked tensors, traced by ``make_fx`` to a flat ATen graph. The model is a template
of the signature, rebuilt by replay and never the caller's own, with its lifted modules replaced by stand-ins.

Glossary: ``lanes`` the fleet's width; ``q`` samples per micro-batch; every stacked tensor has lanes as its first axis.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, grad, grad_and_value, vmap

from shoal.errors import FuseError, line_of
from shoal.extend._weighted import task_alone
from shoal.lanes import graph
from shoal.lanes.criteria import SMOOTHING, criterion_values, denominator, is_known, numerators
from shoal.lanes.kernels import Kernels
from shoal.lanes.lift import lift_template, lift_values
from shoal.lanes.mixtures import as_one
from shoal.lanes.numbers import Guards, Place, filled, places, tensors, values_of
from shoal.lanes.rng import KeyedRandom
from shoal.lanes.sealed import Sealed
from shoal.recipe import Batch, Recipe
from shoal.transforms import by_sample

_TRACED_WIDTHS = (3, 5)  # any two that differ will do; narrow ones are quick to run through
# One lane's step: its graph, inputs like those it was traced with, and which of its placeholders an epoch leaves alone.
LaneGraph = tuple[torch.fx.GraphModule, list[Tensor], set[torch.fx.Node]]
ALIGN = 64  # elements: every parameter starts on a cache line, and no row of a flat buffer ends inside a vector


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of a trial lives. Trainable parameters share one flat row of ``size`` elements per lane."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    size: int
    dtype: torch.dtype
    frozen: tuple[str, ...]
    buffers: tuple[str, ...]
    lifted: tuple[str, ...]
    values: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> Layout:
        """The layout of a recipe; equal for all recipes of a signature.

        Raises:
            FuseError: If trainable parameters are of more than one dtype.
        """
        named = dict(recipe.model.named_parameters())
        trainable = {name: p for name, p in named.items() if p.requires_grad}
        dtypes = {p.dtype for p in trainable.values()}
        if any(not d.is_floating_point for d in dtypes):
            raise FuseError(f"its parameters are {', '.join(sorted(map(str, dtypes)))}, and lanes hold real numbers")
        if len(dtypes) > 1:
            raise FuseError(f"its parameters have several dtypes ({', '.join(sorted(map(str, dtypes)))})")
        offsets, size = [], 0
        for p in trainable.values():
            offsets.append(size)
            size += -(-p.numel() // ALIGN) * ALIGN
        return cls(
            names=tuple(trainable),
            shapes=tuple(p.shape for p in trainable.values()),
            offsets=tuple(offsets),
            size=size,
            dtype=dtypes.pop(),
            frozen=tuple(name for name in named if name not in trainable),
            buffers=tuple(name for name, _ in recipe.model.named_buffers()),
            lifted=tuple(lift_values(recipe.model)),
            values=tuple(values_by_name(recipe)),
        )

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters inside a flat buffer (lanes, size): a list of (lanes, *shape) that share its memory."""
        lanes = flat.shape[0]
        return [flat[:, o : o + s.numel()].view(lanes, *s) for o, s in zip(self.offsets, self.shapes, strict=True)]

    @property
    def n_parameters(self) -> int:
        return sum(s.numel() for s in self.shapes)


def places_of(recipe: Recipe) -> dict[str, Place]:
    """Where a recipe keeps numbers that might be lifted."""
    functions = {"predict": recipe.predict, "transform": recipe.transform}
    return places(recipe.model, functions if is_known(recipe.loss) else {"loss": recipe.loss, **functions})


def values_by_name(recipe: Recipe) -> dict[str, Tensor]:
    """Numbers of a recipe's loss and of the user's own modules that may differ between lanes."""
    out = criterion_values(recipe.loss) if is_known(recipe.loss) else {}
    if recipe.lifts:
        first = next(p for p in recipe.model.parameters() if p.requires_grad)
        out.update(tensors(values_of(places_of(recipe), recipe.lifts), first.dtype, first.device))
    return out


def keeps_targets(transform: object, before: Batch, after: Batch) -> bool:
    """Whether a batch may be split although it is transformed: each sample is changed by itself, and the target is not."""
    return by_sample(transform) and after[-1] is before[-1]


class Objective(nn.Module):
    """A recipe's forward pass and loss as one module, so that ``functional_call`` reaches the model inside a callable loss."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self._recipe = (recipe,)  # in a tuple: its loss may be a module, and must not become a child of this one
        self._places = {name: place for name, place in places_of(recipe).items() if name in recipe.lifts}

    def forward(
        self,
        batch: Batch,
        weights: Tensor,
        values: dict[str, Tensor],
        evaluate: bool,
        uses: frozenset[str] | None = None,
        slopes: bool = False,
    ) -> tuple[Tensor, Any]:
        """(weighted sum of numerators or the user's scalar, outputs if evaluating); the last two as for ``numerators``."""
        with filled(self._places, {name: values[name] for name in self._places}, Guards()):
            return self._forward(batch, weights, values, evaluate, uses, slopes)

    def _forward(
        self,
        batch: Batch,
        weights: Tensor,
        values: dict[str, Tensor],
        evaluate: bool,
        uses: frozenset[str] | None,
        slopes: bool,
    ) -> tuple[Tensor, Any]:
        recipe = self._recipe[0]
        given = batch if evaluate else recipe.transformed(batch)
        if not recipe.is_criterion:
            return recipe.loss_of(self.model, given), (recipe.shown(self.model, given) if evaluate else None)
        out, target = recipe.outputs(self.model, given), given[-1]
        if not is_known(recipe.loss):
            loss = recipe.loss(out, target)
        else:
            each = numerators(recipe.loss, out, target, values, uses, slopes)
            if given is batch or keeps_targets(recipe.transform, batch, given):
                loss = (each * weights).sum()
            else:  # the slots' weights follow from the data's own targets; such a batch is whole
                loss = each.sum() / denominator(recipe.loss, out, target, values, uses)
        seen = None
        if evaluate:
            seen = out if recipe.predict is None else recipe.shown(self.model, given)
        return loss, seen


@contextmanager
def _unvalidated_distributions() -> Iterator[None]:
    """``torch.distributions`` checks its arguments by their values, which lanes may not do; a wrong one gives a loss of NaN."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _trace(f: Callable[..., Any], inputs: Sequence[Tensor]) -> torch.fx.GraphModule:
    # These import sympy: half a second that `import shoal` need not pay.
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        with warnings.catch_warnings(), _unvalidated_distributions():
            # vmap says where it loops over lanes; what that costs is measured, not guessed from a warning.
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            # Each node is given an empty tensor of its shape. Without a mode in sight make_fx makes a new one for every node,
            # which is half the time of a trace.
            with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
                gm = make_fx(f)(*inputs)
    except FuseError as error:
        raise FuseError(f"{error}{line_of(error)}") from error
    except Exception as error:  # whatever the user's forward raises under tracing: it has no batched form
        raise FuseError(f"{_why(error)}{line_of(error)}") from error
    graph.check(gm)
    return gm


# What torch says when a trace cannot go on, and what that means for the person who wrote the forward pass.
_MEANINGS = (
    ("called random operation", "its forward pass draws random numbers in a way that has no keyed form"),
    ("calling .item()", "its forward pass reads a tensor's value into Python"),
    (
        "setup_context",
        "its forward pass uses an autograd.Function without setup_context, which torch.func cannot follow",
    ),
    (
        "generate_vmap_rule",
        "its forward pass uses an autograd.Function without a rule for vmap (generate_vmap_rule = True)",
    ),
    ("dynamic shape", "its forward pass makes tensors whose shape depends on values"),
)


def _why(error: Exception) -> str:
    said = str(error).strip()
    for words, meaning in _MEANINGS:
        if words in said:
            return meaning
    reason = said.splitlines()[0] if said else type(error).__name__
    return f"it cannot be traced over lanes ({type(error).__name__}: {reason[:200]})"


class Program:
    """The traced steps of one signature at one width.

    Args:
        template: A recipe of the signature that nobody else uses; its model is changed in place.
        layout: The signature's layout.
        width: Lanes.
        kernels: Gives what the fleet's own operations run on now.
        runs: ``runs(name)`` gives the current runs of equal activations at a lifted place.
        blueprints: What the signature's programs of other widths have traced, shared between them; None where that must be done
            for each width.
        example: ``example(width)`` gives the state's tensors at another width, to trace with.
    """

    def __init__(
        self,
        template: Recipe,
        layout: Layout,
        width: int,
        kernels: Callable[[], Kernels],
        runs: Callable[[str], Any],
        blueprints: dict[tuple[str, int], graph.Blueprint | None],
        example: Callable[[int], Sequence[Tensor]],
    ) -> None:
        self.layout, self.width = layout, width
        self._recipe, self._kernels, self._runs = template, kernels, runs
        self._blueprints, self._example = blueprints, example
        self._objective = Objective(template.model, template)
        self._uses: frozenset[str] | None = None  # which numbers of the loss the steps look at; None for all
        self.graphs: dict[tuple[str, int], torch.fx.GraphModule] = {}
        self._functions: dict[tuple[str, int], graph.Tick] = {}
        # Parameters that the loss does not reach, by position, once a training step is there: torch leaves their gradient at
        # None, and its optimizers leave them alone.
        self.unused: tuple[int, ...] = ()
        self._convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in template.model.modules())

    @staticmethod
    def prepare(template: Recipe) -> Recipe:
        """Replace the template's lifted modules; call once, before any program is built on it."""
        lift_template(template.model)
        return template

    def _lane(
        self, tensors: Sequence[Tensor], n_data: int, *, evaluate: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Batch, Tensor, Tensor]:
        it = iter(tensors)
        la = self.layout
        params = {f"model.{name}": next(it) for name in la.names}
        fixed = {f"model.{name}": next(it) for name in (*la.frozen, *la.lifted)}
        buffers = {f"model.{name}": next(it) for name in la.buffers}
        values = {name: next(it) for name in la.values}
        batch = tuple(next(it) for _ in range(n_data))
        return params, fixed, buffers, values, batch, next(it), next(it)

    def train(self, state: Sequence[Tensor], data: Sequence[Tensor], idx: Tensor, weights: Tensor, keys: Tensor) -> Any:
        """One tick: gradients and new buffers.

        Args:
            state: Parameters, frozen parameters, lifted values, buffers and criterion values, in the layout's order, stacked.
            data: The training split's tensors, (n, ...) each.
            idx, weights, keys: (lanes, q).

        Returns:
            ``[gradients..., new buffers..., loss (lanes,)]``.
        """
        key = (self._step_name("train"), idx.shape[1])
        if key not in self._functions:
            self._functions[key] = self._build(
                key, self._train_step(len(data)), [*state, *data, idx, weights, keys], len(state)
            )
        return self._functions[key](*state, *data, idx, weights, keys)

    def evaluate(self, state: Sequence[Tensor], chunk: Sequence[Tensor], weights: Tensor, keys: Tensor) -> Any:
        """A chunk of validation data: chunk tensors (q, ...), weights and keys (lanes, q) -> ``[outputs?, loss (lanes,)]``."""
        return self._evaluated("evaluate", self._evaluate_step(len(chunk)), state, *chunk, weights, keys)

    def evaluate_rows(
        self, state: Sequence[Tensor], data: Sequence[Tensor], idx: Tensor, weights: Tensor, keys: Tensor
    ) -> Any:
        """As `evaluate`, of rows that differ between lanes: data (n, ...) each; idx, weights and keys (lanes, q)."""
        return self._evaluated("rows", self._evaluate_step(len(data), by_rows=True), state, *data, idx, weights, keys)

    def held_out(
        self, state: Sequence[Tensor], data: Sequence[Tensor], idx: Tensor, weights: Tensor, keys: Tensor
    ) -> Any:
        """Gradients, in the parameters, of the loss in evaluation mode and without label smoothing; arguments as for `train`."""
        before, self._uses = self._uses, self._unsmoothed(self._uses)
        try:
            return self._evaluated("held out", self._held_out_step(len(data)), state, *data, idx, weights, keys)
        finally:
            self._uses = before

    def by_numbers(
        self,
        names: Sequence[str],
        state: Sequence[Tensor],
        data: Sequence[Tensor],
        idx: Tensor,
        weights: Tensor,
        keys: Tensor,
    ) -> dict[str, Tensor]:
        """Gradients of the training loss in numbers of its own or in rates of dropout, by name, (lanes,) each.

        Args:
            names: Numbers of the loss, or rates of dropout, whose masks are then relaxed ones.
            state, data, idx, weights, keys: As for `train`.
        """
        key = (self._step_name("losses" if names[0] in self.layout.values else "rates"), idx.shape[1])
        if key not in self._functions:
            inputs = [*state, *data, idx, weights, keys]
            self._functions[key] = self._build(key, self._numbers_step(len(data), names), inputs, len(state))
        return dict(zip(names, self._functions[key](*state, *data, idx, weights, keys), strict=True))

    def _unsmoothed(self, uses: frozenset[str] | None) -> frozenset[str] | None:
        """Numbers of the loss without label smoothing, which only training knows."""
        if SMOOTHING not in self.layout.values:
            return uses
        return frozenset(self.layout.values if uses is None else uses) - {SMOOTHING}

    def _evaluated(self, step: str, f: Callable[..., Any], state: Sequence[Tensor], *inputs: Tensor) -> Any:
        key = (self._step_name(step), inputs[-1].shape[1])
        if key not in self._functions:
            with self._evaluating():
                self._functions[key] = self._build(key, f, [*state, *inputs], len(state))
        return self._functions[key](*state, *inputs)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The template in evaluation mode."""
        flags = {m: m.training for m in self._recipe.model.modules()}
        self._recipe.model.eval()
        try:
            yield
        finally:
            for module, flag in flags.items():
                module.training = flag

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Run small element-wise kernels without oneDNN, whose set-up costs more than they do; convolutions keep it."""
        # Not torch.backends.mkldnn.flags: it also sets TF32 for Intel GPUs, and warns where there is none.
        before = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(before and self._convolves)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(before)

    def _step_name(self, step: str) -> str:
        return " ".join([step, *sorted(self._uses or ())])

    def refresh(self, uses: frozenset[str] | None = None) -> None:
        """Lanes have changed: what the steps computed ahead from lane hyperparameters no longer holds.

        Args:
            uses: Which numbers of the loss some lane makes use of now; each such set has steps of its own.
        """
        self._uses = uses
        for tick in self._functions.values():
            tick.refresh()

    def _build(self, key: tuple[str, int], f: Callable[..., Any], inputs: list[Tensor], stacked: int) -> graph.Tick:
        """Make a step for these inputs, of which the first ``stacked`` and the slots at the end have lanes as their first axis."""
        if key not in self._blueprints:
            self._blueprints[key] = self._blueprint(key, f, inputs, stacked)
        blueprint = self._blueprints[key]
        gm = blueprint.at(self.width) if blueprint is not None else self._traced(f, inputs)
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        la = self.layout
        lifted = len(la.names) + len(la.frozen)
        buffers = lifted + len(la.lifted)
        kinds = dict(zip(placeholders[lifted:buffers], la.lifted, strict=True))
        graph.specialise(gm, self._kernels, self._runs, kinds)
        self.graphs[key] = gm
        if key[0].startswith("train"):  # whatever its loss uses
            self.unused = graph.unreached(gm, len(la.names))
        return graph.Tick(gm, {placeholders[i] for i in self._fixed()})

    def _traced(
        self, f: Callable[..., Any], inputs: Sequence[Tensor], *, for_torch: bool = True
    ) -> torch.fx.GraphModule:
        with torch.no_grad():
            gm = _trace(f, inputs)
        graph.tidy(gm, for_torch=for_torch)
        return gm

    def lane_graph(self, data: Sequence[Tensor], slots: int, uses: frozenset[str] | None) -> LaneGraph:
        """A training step of one lane.

        Args:
            data: The training split's tensors.
            slots: Samples of a batch.
            uses: Which numbers of the loss it looks at, as for ``refresh``.
        """
        return self._lane_graph(self._train_step(len(data)), data, slots, uses)

    def held_out_graph(self, data: Sequence[Tensor], slots: int, uses: frozenset[str] | None) -> LaneGraph:
        """The same of `held_out`: gradients alone."""
        with self._evaluating():
            step = self._held_out_step(len(data))
            return self._lane_graph(step, data, slots, self._unsmoothed(uses))

    def numbers_graph(
        self, names: Sequence[str], data: Sequence[Tensor], slots: int, uses: frozenset[str] | None
    ) -> LaneGraph:
        """The same of `by_numbers`: the gradients in these numbers."""
        return self._lane_graph(self._numbers_step(len(data), names), data, slots, uses)

    def _lane_graph(
        self, f: Callable[..., Any], data: Sequence[Tensor], slots: int, uses: frozenset[str] | None
    ) -> LaneGraph:
        state = self._example(1)
        slots_of = [torch.zeros(1, slots, dtype=d) for d in (torch.int64, self.layout.dtype, torch.int32)]
        inputs = [*state, *data, *(t.to(state[0].device) for t in slots_of)]
        before, self._uses = self._uses, uses
        try:
            with as_one():
                gm = self._traced(f, inputs, for_torch=False)
        finally:
            self._uses = before
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        return gm, inputs, {placeholders[i] for i in self._fixed()}

    def _fixed(self) -> list[int]:
        """Inputs that keep their values during an epoch: frozen parameters, lifted values, numbers of the loss."""
        la = self.layout
        buffers = len(la.names) + len(la.frozen) + len(la.lifted)
        values = buffers + len(la.buffers)
        return [*range(len(la.names), buffers), *range(values, values + len(la.values))]

    @property
    def uses(self) -> frozenset[str] | None:
        """Which numbers of the loss some lane makes use of now; None for all."""
        return self._uses

    @property
    def has_class_loss(self) -> bool:
        """Whether the loss is one of classes, whose weights and smoothing may be left out of a step."""
        return isinstance(self._recipe.loss, nn.CrossEntropyLoss | nn.NLLLoss)

    def _blueprint(
        self, key: tuple[str, int], f: Callable[..., Any], inputs: list[Tensor], stacked: int
    ) -> graph.Blueprint | None:
        """Trace at two narrow widths, on tensors that lie in memory like a fleet's own: a trace decides by strides what to copy."""
        slots = range(len(inputs) - (2 if key[0].startswith("evaluate") else 3), len(inputs))

        def narrow(width: int) -> list[Tensor]:
            rest = [t[:1].repeat(width, *(1 for _ in t.shape[1:])) if i in slots else t for i, t in enumerate(inputs)]
            return [*self._example(width), *rest[stacked:]]

        try:
            return graph.Blueprint({width: self._traced(f, narrow(width)) for width in _TRACED_WIDTHS})
        except graph.WidthError:
            return None

    def _train_step(self, n_data: int) -> Callable[..., list[Tensor]]:
        def lane(*tensors: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
            params, fixed, buffers, values, batch, weights, keys = self._lane(tensors, n_data, evaluate=False)

            def objective(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
                advanced = {name: t.clone() for name, t in buffers.items()}
                given = {**params, **fixed, **advanced}
                with KeyedRandom(keys, lanes=True), Sealed():
                    inputs = (_copied(batch), weights, values, False, self._uses)
                    loss, _ = functional_call(self._objective, given, inputs)
                # A buffer that was assigned to, rather than written in place, is another tensor now.
                advanced = {name: given[name] for name in buffers}
                if not isinstance(loss, Tensor) or loss.dim() != 0:
                    raise FuseError(f"its loss is not a scalar tensor but {_shape(loss)}")
                return loss, advanced

            grads, (loss, advanced) = grad_and_value(objective, has_aux=True)(params, buffers)
            return list(grads.values()), list(advanced.values()), loss

        def step(*inputs: Tensor) -> list[Tensor]:
            state, data, (idx, weights, keys) = inputs[: -3 - n_data], inputs[-3 - n_data : -3], inputs[-3:]
            batch = _gathered(data, idx)
            grads, buffers, loss = vmap(lane)(*state, *batch, weights, keys)
            return [*grads, *buffers, loss]

        return step

    def _held_out_step(self, n_data: int) -> Callable[..., list[Tensor]]:
        def lane(*tensors: Tensor) -> list[Tensor]:
            params, fixed, buffers, values, batch, weights, keys = self._lane(tensors, n_data, evaluate=True)

            def objective(params: dict[str, Tensor]) -> Tensor:
                given = {**params, **fixed, **{name: t.clone() for name, t in buffers.items()}}
                with KeyedRandom(keys, lanes=True), Sealed(), task_alone():
                    inputs = (_copied(batch), weights, values, True, self._uses)
                    loss: Tensor = functional_call(self._objective, given, inputs)[0]
                return loss

            return list(grad(objective)(params).values())

        return _by_rows(lane, n_data)

    def _numbers_step(self, n_data: int, names: Sequence[str]) -> Callable[..., list[Tensor]]:
        relaxed = names[0] not in self.layout.values

        def lane(*tensors: Tensor) -> list[Tensor]:
            params, fixed, buffers, values, batch, weights, keys = self._lane(tensors, n_data, evaluate=False)
            # In the parameters' own dtype: float32 would round what differences of these gradients are taken of.
            here = {n: (values[n] if n in values else fixed[f"model.{n}"]).to(self.layout.dtype) for n in names}

            def objective(rates: dict[str, Tensor]) -> Tensor:
                in_model = {f"model.{name}": t for name, t in rates.items() if name not in values}
                given = {**params, **fixed, **in_model, **{name: t.clone() for name, t in buffers.items()}}
                numbers = {**values, **{name: t for name, t in rates.items() if name in values}}
                with KeyedRandom(keys, lanes=True, relaxed=relaxed), Sealed():
                    inputs = (_copied(batch), weights, numbers, False, self._uses, True)
                    loss: Tensor = functional_call(self._objective, given, inputs)[0]
                return loss

            return list(grad(objective)(here).values())

        return _by_rows(lane, n_data)

    def _evaluate_step(self, n_data: int, *, by_rows: bool = False) -> Callable[..., list[Tensor]]:
        def lane(*tensors: Tensor) -> tuple[Tensor, ...]:
            params, fixed, buffers, values, batch, weights, keys = self._lane(tensors, n_data, evaluate=True)
            scratch = {name: t.clone() for name, t in buffers.items()}
            with KeyedRandom(keys, lanes=True), Sealed():
                loss, seen = functional_call(
                    self._objective, {**params, **fixed, **scratch}, (_copied(batch), weights, values, True, self._uses)
                )
            return (loss,) if seen is None else (seen, loss)

        def step(*inputs: Tensor) -> list[Tensor]:
            n_state = len(inputs) - n_data - 2
            dims = (*(0 for _ in range(n_state)), *(None for _ in range(n_data)), 0, 0)
            return list(vmap(lane, in_dims=dims)(*inputs))

        def rows_step(*inputs: Tensor) -> list[Tensor]:
            state, data, (idx, weights, keys) = inputs[: -3 - n_data], inputs[-3 - n_data : -3], inputs[-3:]
            return list(vmap(lane)(*state, *_gathered(data, idx), weights, keys))

        return rows_step if by_rows else step


def _by_rows(lane: Callable[..., list[Tensor]], n_data: int) -> Callable[..., list[Tensor]]:
    """A step of one lane, over lanes that each have rows of their own of the data."""

    def step(*inputs: Tensor) -> list[Tensor]:
        state, data, (idx, weights, keys) = inputs[: -3 - n_data], inputs[-3 - n_data : -3], inputs[-3:]
        return list(vmap(lane)(*state, *_gathered(data, idx), weights, keys))

    return step


def _gathered(data: Sequence[Tensor], idx: Tensor) -> list[Tensor]:
    """The rows (lanes, q) of each tensor (n, ...), as (lanes, q, ...)."""
    flat = idx.reshape(-1)
    return [t.index_select(0, flat).reshape(*idx.shape, *t.shape[1:]) for t in data]


def _copied(batch: Batch) -> Batch:
    """A forward pass may write to its inputs; where it does not, tidying drops the copy."""
    return tuple(t.clone() for t in batch)


def _shape(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
