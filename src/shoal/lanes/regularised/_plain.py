"""Regularisers of one recipe that move by a hyper-validation gradient, around its own optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from shoal.data import Split
from shoal.extend._weighted import task_alone, weights_of
from shoal.lanes.criteria import SMOOTHING
from shoal.lanes.hypergradient import PlainRates
from shoal.lanes.lift import dropouts
from shoal.lanes.regularised import _rule as rule
from shoal.lanes.regularised._rule import DECAY_, L1_, LR_, RATES_, SMOOTHING_, Slopes
from shoal.lanes.rng import KeyedRandom
from shoal.lanes.step import Objective, values_by_name
from shoal.recipe import Batch, Recipe

_Vector = list[Tensor]  # one tensor per trainable parameter


class PlainRegularisers:
    """What ``LaneRegularisers`` does, for one recipe in the plain loop.

    Args:
        recipe: With at least one extension that follows a validation gradient.
        held_out: Hyper-validation data.
        seed: Of the trial.
        rates: What moves its learning rate, if anything.
    """

    def __init__(self, recipe: Recipe, held_out: Split, seed: int, rates: PlainRates | None) -> None:
        found = rule.asked(recipe)
        assert found is not None
        self._asked, self._recipe, self._data, self._seed, self._rates = found, recipe, held_out, seed, rates
        self._named = {name: p for name, p in recipe.model.named_parameters() if p.requires_grad}
        self._groups = recipe.optimizer.param_groups
        self._decays = [g["weight_decay"] != 0 for g in self._groups]
        self._group_of = {id(p): k for k, g in enumerate(self._groups) for p in g["params"]}
        self._dropouts = dropouts(recipe.model)
        self._terms = weights_of(recipe.loss)
        self._numbers = rule.numbers_at(recipe)
        self._log = rule.logarithms(recipe)
        size = len(self._log)
        self._base, self._step, self._high = (torch.full((size,), x, dtype=torch.float64) for x in (1.0, 0.0, 1.0))
        self._low, self._warmup = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.int64)
        self._on = torch.zeros(size, dtype=torch.bool)
        for place, (e, base) in found.at.items():
            self._base[place], self._step[place], self._on[place] = base, e.step, True
            self._warmup[place], (self._low[place], self._high[place]) = e.warmup, e.bounds
        self._value = self._base.clone()
        self._kept = (torch.zeros(size, dtype=torch.float64),) * 3
        self._objective = Objective(recipe.model, recipe)
        self._keys = torch.from_numpy(rule.keys_of(seed, held_out))
        self._shares = rule.shares(recipe, held_out.tensors[-1])
        self._updates = 0
        self._bad = [0] * size
        self._slopes = Slopes.none(self._value)
        self._record: list[list[float]] = []
        self._before: list[tuple[Tensor, Tensor | None]] = []

    @torch.no_grad()
    def before(self) -> None:
        """Before an update: keep where it starts, and the gradients that the optimizer sees."""
        self._updates += 1
        self._record.append(self._value.tolist())
        if self._asked.moves_after(self._updates):
            self._before = [
                (p.detach().clone(), None if p.grad is None else p.grad.detach().clone()) for p in self._named.values()
            ]

    def after(self, batch: Batch, keys: Tensor) -> None:
        """After it: move the numbers if it is their turn. The batch and its keys are those of the update."""
        if not self._asked.moves_after(self._updates):
            return
        slope = self._hypergradient(batch, keys)
        finite = torch.isfinite(slope)
        self._slopes.add(slope, self._on)
        for place in (self._on & ~finite).nonzero()[:, 0].tolist():
            self._bad[place] = self._bad[place] or self._updates
        kept, value = rule.moved(
            self._kept,
            self._value,
            torch.where(finite, slope, 0.0),
            torch.tensor(self._updates // self._asked.shared.every, dtype=torch.float64),
            torch.where(self._updates <= self._warmup, 0.0, self._step),
            self._base,
            (self._low, self._high),
            self._log,
        )
        self._kept, self._value = kept, torch.where(self._on, value, self._value)
        self._write()

    def finish(self) -> tuple[dict[str, tuple[float, ...]], str]:
        """The epoch is over: its numbers at each update by name, and what went wrong with them or ""."""
        columns = list(zip(*self._record, strict=True))
        self._record = []
        paths = {name: columns[place] for place, name in self._asked.names.items()} | self._slopes.of(self._asked)
        self._slopes = Slopes.none(self._value)
        return paths, rule.why(self._asked, self._bad)

    # -- the derivative -------------------------------------------------------------------------------------------------

    def _hypergradient(self, batch: Batch, keys: Tensor) -> Tensor:
        """Of the hyper-validation loss in every number, (R,)."""
        v = self._held_out()
        now = [p.detach() for p in self._named.values()]
        implicit = self._asked.shared.method == "implicit"
        if implicit:
            w, point = self._neumann(now, v, batch, keys), now
        else:
            w = [a * b for a, b in zip(v, self._of_update(), strict=True)]
            point = [start for start, _ in self._before]
        out = torch.zeros_like(self._value)
        out[L1_] = _dot(w, [p.sign() for p in point])
        for a, b, p, name in zip(w, v, point, self._named, strict=True):
            k = self._group(name)
            if self._decays[k]:
                apart = self._groups[k].get("decoupled_weight_decay", False) and not implicit
                out[DECAY_] += _dot([-self._rate(k) * b if apart else a], [p])
        if bool(self._on[LR_]):
            steps = [p - start for p, (start, _) in zip(now, self._before, strict=True)]
            out[LR_] = _dot(v, steps) / self._base[LR_]
        if bool(self._on[SMOOTHING_]) or bool(self._on[RATES_:].any()):
            far = rule.nudge(_norm(point), _norm(w), point[0].dtype)
            if far > 0:
                up, down = (self._by_numbers(_along(point, w, sign * float(far)), batch, keys) for sign in (1.0, -1.0))
                places = list(self._numbers.values())
                out[places] = (up - down)[places] / (2 * far)
        return out

    def _group(self, name: str) -> int:
        return self._group_of[id(self._named[name])]

    def _rate(self, group: int) -> float:
        """The learning rate of the last update."""
        return float(self._groups[group]["lr"]) if self._rates is None else self._rates.now[group]

    def _held_out(self) -> _Vector:
        """The gradient of a hyper-validation batch, in evaluation mode and without label smoothing."""
        move = self._updates // self._asked.shared.every
        rows = torch.from_numpy(rule.rows_of(self._seed, move, self._data)[0])
        share = 1.0 if self._shares is None else float(self._shares[rows.numpy()].sum())
        device = self._data.tensors[0].device
        batch = tuple(t[rows.to(device)] for t in self._data.tensors)
        weights = torch.full((len(rows),), 1.0 / share if share else float("inf"), dtype=torch.float64)
        flags = {m: m.training for m in self._recipe.model.modules()}
        self._recipe.model.eval()
        try:
            now = [p.detach() for p in self._named.values()]
            return self._gradient(now, batch, self._keys[rows].to(device), weights, evaluate=True)
        finally:
            for module, flag in flags.items():
                module.training = flag

    def _of_update(self) -> _Vector:
        """The derivative of each element's update in its own gradient: torch's SGD and Adam, differentiated."""
        out = []
        for p, (start, g) in zip(self._named.values(), self._before, strict=True):
            k = self._group_of[id(p)]
            group, state = self._groups[k], self._recipe.optimizer.state.get(p, {})
            lr = self._rate(k)
            if g is None:
                out.append(torch.zeros_like(start))
                continue
            if "betas" not in group:
                momentum = group["momentum"]
                enters = 1.0 if self._updates == 1 or not momentum else 1.0 - group["dampening"]
                share = (1.0 + momentum * enters) if group["nesterov"] else enters
                out.append(torch.full_like(start, -lr * share))
                continue
            b1, b2 = group["betas"]
            if not group.get("decoupled_weight_decay", False):
                g = g + group["weight_decay"] * start
            step = float(state["step"])
            root = state["exp_avg_sq"].sqrt()
            corrected = (1.0 - b2**step) ** -0.5
            bottom = root * corrected + group["eps"]
            falls = torch.where(root > 0, state["exp_avg"] * corrected * (1.0 - b2) * g / root, 0.0)
            out.append(-lr / (1.0 - b1**step) * ((1.0 - b1) / bottom - falls / bottom.square()))
        return out

    def _neumann(self, now: _Vector, v: _Vector, batch: Batch, keys: Tensor) -> _Vector:
        scale, terms = self._asked.shared.scale, self._asked.shared.terms
        decay = [float(self._groups[self._group(name)]["weight_decay"]) for name in self._named]
        term, total = v, v
        for _ in range(terms):
            far = float(rule.nudge(_norm(now), _norm(term), now[0].dtype))
            if far > 0:
                weights = self._weights(batch)
                up, down = (
                    self._gradient(_along(now, term, sign * far), batch, keys, weights, evaluate=False)
                    for sign in (1.0, -1.0)
                )
                curved = [(a - b) / (2 * far) for a, b in zip(up, down, strict=True)]
            else:
                curved = [torch.zeros_like(t) for t in term]
            term = [t - scale * (c + d * t) for t, c, d in zip(term, curved, decay, strict=True)]
            total = [a + b for a, b in zip(total, term, strict=True)]
        return [-scale * t for t in total]

    # -- passes of the model --------------------------------------------------------------------------------------------

    def _weights(self, batch: Batch) -> Tensor:
        share = rule.shares(self._recipe, batch[-1])
        whole = 1.0 if share is None else float(share.sum())
        return torch.full((len(batch[0]),), 1.0 / whole if whole else float("inf"), dtype=torch.float64)

    def _loss(
        self, params: dict[str, Tensor], batch: Batch, weights: Tensor, values: dict[str, Tensor], *, evaluate: bool
    ) -> Tensor:
        """The objective at other parameters; the model's buffers stay as they are."""
        model = self._recipe.model
        given = {f"model.{name}": p for name, p in params.items()}
        given |= {f"model.{name}": b.detach().clone() for name, b in model.named_buffers()}
        first = next(iter(params.values()))
        slopes = any(t.requires_grad for t in values.values())
        inputs = (tuple(t.clone() for t in batch), weights.to(first), values, evaluate, None, slopes)
        loss: Tensor = functional_call(self._objective, given, inputs)[0]
        return loss

    def _gradient(self, at: _Vector, batch: Batch, keys: Tensor, weights: Tensor, *, evaluate: bool) -> _Vector:
        leaves = {name: p.detach().requires_grad_() for name, p in zip(self._named, at, strict=True)}
        values = self._values()
        if evaluate and SMOOTHING in values:
            values[SMOOTHING] = torch.zeros_like(values[SMOOTHING])
        alone = task_alone() if evaluate else contextlib.nullcontext()
        with torch.enable_grad(), KeyedRandom(keys), alone:
            loss = self._loss(leaves, batch, weights, values, evaluate=evaluate)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, at, strict=True)]

    def _by_numbers(self, at: _Vector, batch: Batch, keys: Tensor) -> Tensor:
        """The training loss's derivative in its own numbers and the rates of relaxed dropout, elsewhere, (R,) in float64."""
        out = torch.zeros_like(self._value)
        params, weights, values = dict(zip(self._named, at, strict=True)), self._weights(batch), self._values()
        if bool(self._on[SMOOTHING_]):
            leaf = values[SMOOTHING].clone().requires_grad_()
            with torch.enable_grad(), KeyedRandom(keys):
                loss = self._loss(params, batch, weights, {**values, SMOOTHING: leaf}, evaluate=False)
                out[SMOOTHING_] = torch.autograd.grad(loss, leaf)[0].double()
        moving = [name for name in self._terms if bool(self._on[self._numbers[name]])]
        if moving:
            with self._weights_as_leaves(moving, values) as leaves, torch.enable_grad(), KeyedRandom(keys):
                loss = self._loss(params, batch, weights, values, evaluate=False)
                found = torch.autograd.grad(loss, leaves, allow_unused=True)
            for name, slope in zip(moving, found, strict=True):
                out[self._numbers[name]] = 0.0 if slope is None else slope.double()
        rates_at = slice(RATES_, RATES_ + len(self._dropouts))
        if not bool(self._on[rates_at].any()):
            return out
        held = [(module, module.p) for _, module in self._dropouts]
        try:
            rates = [torch.tensor(p, dtype=torch.float32).to(at[0]).requires_grad_() for _, p in held]
            for (module, _), rate in zip(held, rates, strict=True):
                object.__setattr__(module, "p", rate)
            with torch.enable_grad(), KeyedRandom(keys, relaxed=True):
                loss = self._loss(params, batch, weights, values, evaluate=False)
                found = torch.autograd.grad(loss, rates, allow_unused=True)
        finally:
            for module, p in held:
                object.__setattr__(module, "p", p)
        out[rates_at] = torch.stack([torch.zeros_like(at[0].sum()) if s is None else s for s in found]).double()
        return out

    @contextmanager
    def _weights_as_leaves(self, names: Sequence[str], values: dict[str, Tensor]) -> Iterator[list[Tensor]]:
        """Weights of the loss's terms as tensors with a gradient, in the loss itself and among the numbers of a lane."""
        loss, like = self._recipe.loss, next(iter(self._named.values()))
        held = {name: getattr(loss, name.removeprefix("loss.")) for name in names}
        leaves = {name: torch.tensor(was, dtype=like.dtype, device=like.device) for name, was in held.items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        try:
            for name, leaf in leaves.items():
                setattr(loss, name.removeprefix("loss."), leaf)
                if name in values:
                    values[name] = leaf
            yield list(leaves.values())
        finally:
            for name, was in held.items():
                setattr(loss, name.removeprefix("loss."), was)

    def _values(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in values_by_name(self._recipe).items()}

    def _write(self) -> None:
        """Let the numbers hold from now on."""
        recipe, value, on = self._recipe, self._value.tolist(), self._on.tolist()
        if on[L1_]:
            object.__setattr__(recipe, "l1", value[L1_])
        if on[DECAY_]:
            for group, decays in zip(self._groups, self._decays, strict=True):
                if decays:
                    group["weight_decay"] = value[DECAY_]
        if on[SMOOTHING_]:
            recipe.loss.label_smoothing = value[SMOOTHING_]  # type: ignore[union-attr]
        for k, (_, module) in enumerate(self._dropouts):
            if on[RATES_ + k]:
                module.p = value[RATES_ + k]
        for name in self._terms:
            if on[self._numbers[name]]:
                setattr(recipe.loss, name.removeprefix("loss."), value[self._numbers[name]])


def _dot(a: _Vector, b: _Vector) -> float:
    return sum(float((x * y).double().sum()) for x, y in zip(a, b, strict=True))


def _norm(a: _Vector) -> Tensor:
    return torch.tensor(_dot(a, a), dtype=torch.float64).sqrt()


def _along(point: _Vector, way: _Vector, far: float) -> _Vector:
    return [p + far * w for p, w in zip(point, way, strict=True)]
