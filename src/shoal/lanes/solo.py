"""The plain loop: one recipe, one trial, ordinary PyTorch. The reference that lanes are tested against, and the fallback.

Two things tell it from the loop a user would write: the order of samples and the draws of dropout come from the trial's seed
(``rng``), and results are reported as data.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from shoal.extend import shapes_of
from shoal.extend._by_validation import by_validation
from shoal.lanes import clip, max_norm
from shoal.lanes.criteria import denominators, is_known, scale_of
from shoal.lanes.fleet import Work
from shoal.lanes.hypergradient import PlainRates
from shoal.lanes.lane import EVALUATION_EPOCH, Measured, evaluation_chunk, has_shapes, learning_rate
from shoal.lanes.noise_scale import PlainNoise, batch_size, clock_of, factor_of
from shoal.lanes.order import micro_batch, quantum
from shoal.lanes.regularised import PlainRegularisers, held_out_of
from shoal.lanes.rng import KeyedRandom, derive, sample_keys
from shoal.lanes.sampling import Sampling
from shoal.lanes.unrolled import plain_regularisers
from shoal.metrics import Meter
from shoal.recipe import Batch, Recipe
from shoal.records import TrialSpec
from shoal.stages import counted


class Solo:
    """A trial that trains by itself."""

    def __init__(self, spec: TrialSpec, recipe: Recipe, work: Work) -> None:
        self.spec, self.recipe, self.work = spec, recipe, work
        self._rows, self._valid_rows = work.rows(spec.part)
        self.epoch = 0
        self._sampling: Sampling | None = None
        self._moved: tuple[dict[str, tuple[float, ...]], str] = ({}, "")
        recipe.model.to(work.device)
        self._began: dict[str, Tensor] = {}
        if isinstance(recipe.loss, nn.Module):
            recipe.loss.to(work.device)
            self._began = {name: t.detach().clone() for name, t in _tensors(recipe.loss)}
        follow(recipe.optimizer, work.device)
        _mode(recipe.optimizer, "train")
        self._rates = None if learning_rate(recipe) is None else PlainRates(recipe)
        n = work.data.train.n if self._rows is None else len(self._rows)
        moves = batch_size(recipe)
        self._noise = None if moves is None else PlainNoise(recipe, n, quantum(recipe.batch_size))
        self._regularisers: PlainRegularisers | None = None
        if by_validation(recipe):
            self._regularisers = plain_regularisers(recipe, held_out_of(recipe, work.data), spec.seed, self._rates)
        # LBFGS, and whatever else says in the signature of its ``step`` that it evaluates the loss itself.
        closure = inspect.signature(recipe.optimizer.step).parameters.get("closure")
        self._takes_closure = closure is not None and closure.default is inspect.Parameter.empty

    def configured(self) -> list[str]:
        """Tensors of the loss that are what the recipe has made them, by the name that they are stored under."""
        loss = self.recipe.loss
        now = _tensors(loss) if isinstance(loss, nn.Module) else []
        return [f"loss/{name}" for name, t in now if name in self._began and torch.equal(t, self._began[name])]

    def loss(self, batch: Batch) -> Tensor:
        """The recipe's own loss on a batch."""
        return self.recipe.loss_of(self.recipe.model, batch)

    def step(self, batch: Batch, keys: Tensor, number: int = 0) -> Tensor:
        """One update: the batch's loss before it, without what penalties add; ``number`` counts batches of the epoch from 0."""
        recipe = self.recipe
        losses: list[Tensor] = []

        def closure() -> float:
            if self._noise is None:
                with KeyedRandom(keys):  # the same draws each time that a line search comes back
                    loss = self.loss(recipe.transformed(batch))
                recipe.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                loss = self._backward_in_parts(self._noise, batch, keys, number)
            if self._rates is not None:
                self._rates.before()
            clip.plain(recipe)
            if self._regularisers is not None:
                self._regularisers.before()
            losses.append(loss.detach())
            return losses[-1] + clip.penalty(recipe)  # type: ignore[return-value]

        if self._takes_closure:
            recipe.optimizer.step(closure)
        else:
            with self._followed():
                closure()
                (recipe.optimizer if self._rates is None else self._rates).step()
        max_norm.plain(recipe)
        if self._regularisers is not None:
            self._regularisers.after(batch, keys)
        return losses[0]

    def _backward_in_parts(self, noise: PlainNoise, batch: Batch, keys: Tensor, number: int) -> Tensor:
        """The gradient of a batch and its loss, micro-batch by micro-batch, as lanes take them; their norms are looked at."""
        recipe, moves, n = self.recipe, batch_size(self.recipe), len(keys)
        assert moves is not None
        parameters = [p for p in recipe.model.parameters() if p.requires_grad]
        by_sum = is_known(recipe.loss) and recipe.loss.reduction == "sum"  # type: ignore[union-attr]
        counts = denominators(recipe.loss, batch[-1]) if is_known(recipe.loss) and not by_sum else torch.ones(n)
        whole = float(counts.sum())
        most = micro_batch(number, n, noise.quantum, moves.every)
        sizes, parts, total = [], [], torch.zeros((), device=keys.device)
        added: list[Tensor | None] = [None] * len(parameters)
        for at in range(0, n, most):
            some = slice(at, at + most)
            share = 1.0 if by_sum else float(counts[some].sum()) / whole if whole else math.nan
            with KeyedRandom(keys[some]):
                loss = self.loss(recipe.transformed(tuple(t[some] for t in batch)))
            recipe.optimizer.zero_grad()
            if share != 0.0:  # else all of it is ignored, and its mean is 0 / 0
                (loss * share).backward()  # type: ignore[no-untyped-call]
                total = total + loss.detach() * share
            sizes.append(len(keys[some]))
            parts.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
            added = [
                a if p.grad is None else p.grad if a is None else a + p.grad
                for a, p in zip(added, parameters, strict=True)
            ]
        noise.saw(sizes, parts)
        for p, grad in zip(parameters, added, strict=True):
            p.grad = grad
        return total

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """The learning rates as they follow the batch size, for one update."""
        factor = 1.0 if self._noise is None else factor_of(self._noise.size, self.recipe)
        groups = self.recipe.optimizer.param_groups
        base = [group["lr"] for group in groups] if factor != 1.0 else []
        for group, lr in zip(groups, base, strict=False):
            group["lr"] = lr * factor
        try:
            yield
        finally:
            for group, lr in zip(groups, base, strict=False):
                group["lr"] = lr

    def train_epoch(self) -> tuple[float, float]:
        """One epoch of training: (mean loss over samples, loss of the first batch)."""
        recipe, data = self.recipe, self.work.data.train
        n, device = (data.n if self._rows is None else len(self._rows)), self.work.device
        recipe.train_mode()
        _mode(recipe.optimizer, "train")
        if self._sampling is None:
            self._sampling = Sampling.of(recipe, data, self._rows)
        order = torch.from_numpy(self._sampling.order(self.spec.seed, self.epoch)).to(device)
        keys = torch.from_numpy(sample_keys(self.spec.seed, self.epoch, n)).to(device)
        size = recipe.batch_size if self._noise is None else self._noise.size
        _, n_steps = clock_of(size, recipe.batch_size, n)
        stepped = 0
        first, total = math.nan, torch.zeros((), dtype=torch.float64, device=device)
        # Draws that have no keyed form (dropout inside attention) still repeat: torch's generator starts from the seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.spec.seed, self.epoch))
            for number, at in enumerate(range(0, n, size)):
                rows = order[at : at + size]
                loss = self.step(tuple(t[rows] for t in data.tensors), keys[at : at + size], number)
                if recipe.schedule is not None and recipe.schedule_every != "epoch":
                    end = at + size
                    for i in range(stepped, n_steps if end >= n else min(end // recipe.batch_size, n_steps - 1)):
                        recipe.step_schedule(progress=self.epoch + i / n_steps)
                        stepped = i + 1
                total += loss.double() * (len(rows) / n)
                if at == 0:
                    first = float(loss)
        _mode(recipe.optimizer, "eval")
        self.epoch += 1
        paths, why = ({}, "") if self._rates is None else self._rates.finish()
        if self._noise is not None:
            more, wrong = self._noise.finish()
            paths, why = {**paths, **more}, why or wrong
        if has_shapes(recipe):
            paths = {**paths, **shapes_of([recipe.model])[0]}
        if self._regularisers is not None:
            others, other = self._regularisers.finish()
            paths, why = {**paths, **others}, why or other
        self._moved = paths, why
        return float(total), first

    def run_epoch(self) -> Measured:
        """One epoch of training, then validation."""
        total, first = self.train_epoch()
        valid_loss, metrics = self._validate() if self.work.judged else (0.0, {})
        paths, why = self._moved
        finite = math.isfinite(total) and math.isfinite(valid_loss) and not why
        return Measured(
            self.spec.key, self.epoch, total, valid_loss, metrics, first, finite, trajectories=paths, why=why
        )

    def _validate(self) -> tuple[float, dict[str, float]]:
        """Loss and metrics on the validation split, or on those of its rows that are the trial's."""
        valid = self.work.data.valid.tensors
        if self._valid_rows is not None:
            rows = torch.from_numpy(self._valid_rows).to(self.work.device)
            valid = tuple(t[rows] for t in valid)
        meter = Meter(self.work.metrics, valid[-1], scale_of(self.recipe))
        loss, _ = measure(self.recipe, valid, self.spec.seed, meter)
        return loss, {name: float(value[0]) for name, value in meter.results().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers, copied to the CPU."""
        tensors = {**dict(self.recipe.model.named_parameters()), **dict(self.recipe.model.named_buffers())}
        return {name: t.detach().cpu().clone() for name, t in tensors.items()}


def _mode(optimizer: torch.optim.Optimizer, mode: Literal["train", "eval"]) -> None:
    """Optimizers that keep an average (``shoal.optim``, the package schedulefree) swap it in for evaluation."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def follow(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Move what an optimizer has made before its first step to where its parameters have gone; torch counts steps on the CPU."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "step":
                state[name] = value.to(device)


def measure(
    recipe: Recipe, data: Batch, seed: int, meter: Meter | None = None, stage: str = "measuring"
) -> tuple[float, Tensor | None]:
    """Loss and outputs of a recipe's model on a split, in evaluation mode: (mean loss, outputs (n, ...) or None).

    With a meter, outputs are shown to it chunk by chunk, and none are kept. ``stage`` is what a long measurement is called.
    """
    n, step = data[0].shape[0], evaluation_chunk(data)
    keys = torch.from_numpy(sample_keys(seed, EVALUATION_EPOCH, n)).to(data[0].device)
    share = np.ones(n)
    known = is_known(recipe.loss)
    by_target = known and recipe.loss.reduction != "sum"  # type: ignore[union-attr]
    if by_target:
        share = denominators(recipe.loss, data[-1]).numpy()
    whole = float(share.sum())
    total, parts = 0.0, []
    recipe.model.eval()
    with torch.no_grad():
        for at in counted(range(0, n, step), stage, -(-n // step)):
            # Copied, as a loader would: a forward pass may write to its inputs.
            batch = tuple(t[at : at + step].clone() for t in data)
            size = batch[0].shape[0]
            with KeyedRandom(keys[at : at + size]):
                out = recipe.outputs(recipe.model, batch) if recipe.is_criterion else None
                loss = recipe.loss_of(recipe.model, batch) if out is None else recipe.loss(out, batch[-1])
                shown = out if recipe.predict is None else recipe.shown(recipe.model, batch)
            if meter is not None and shown is not None:
                meter.add(shown[None], size)
            elif shown is not None:
                parts.append(shown)
            if known and not by_target:  # reduction="sum": per sample, so that sizes compare
                total += float(loss) / n
            elif whole == 0 or share[at : at + size].any():  # else the chunk is all ignored, and its mean is 0 / 0
                total += float(loss) * (float(share[at : at + size].sum()) / whole if whole else 1.0)
    return total, (torch.cat(parts) if parts else None)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
