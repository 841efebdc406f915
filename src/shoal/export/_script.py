"""The training script of a winner: plain PyTorch, with only those lines that its recipe makes use of."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from shoal.export._source import STAND_INS, OwnCode
from shoal.lanes.lane import EVALUATION_EPOCH, learning_rate
from shoal.recipe import Recipe
from shoal.records import TrialRecord


@dataclass(frozen=True, slots=True)
class Facts:
    """What a script says of the search.

    Attributes:
        version: Of Shoal.
        metric: The study's; "loss" if that is a function of the user's own.
        found: What the search measured of it.
        judged: On which split: "valid", or with folds "test" or "train".
        metric_code: An expression of ``outputs`` and ``target`` for it, or "" for the loss.
        n_train: Samples of the training split.
        chunk: Samples that are evaluated at once.
        device: "cpu" or "cuda": where the study ran.
        splits: "train", without folds "valid", and perhaps "test".
    """

    version: str
    metric: str
    found: float
    judged: str
    metric_code: str
    n_train: int
    chunk: int
    device: str
    splits: tuple[str, ...]


def script(best: TrialRecord, recipe: Recipe, code: OwnCode, facts: Facts) -> str:
    """The text of ``train.py``."""
    parts = [
        _head(best, code, recipe, facts) + _keyed(recipe, facts),
        _stand_ins(code, facts),
        _evaluate(recipe, facts),
        _train(recipe, best, folded="valid" not in facts.splits),
        _main(facts),
    ]
    text = "\n\n\n".join(part.strip() for part in parts) + "\n"
    ast.parse(text)  # what is written is Python
    return text


def literal(value: Any) -> str:
    """Python's notation of plain data, numbers that are not finite included.

    >>> literal({"lr": float("inf"), "on": True})
    "{'lr': float('inf'), 'on': True}"
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


# What people call the split that the script's result is of.
_LABELS: Final = {"valid": "validation", "test": "test", "train": "training rows"}


def _head(best: TrialRecord, code: OwnCode, recipe: Recipe, facts: Facts) -> str:
    names = recipe.form.names
    batches = f"NAMES = {names!r}  # of the tensors in a batch\n" if names else ""
    return f'''"""Trains trial {best.spec.number} of a search with Shoal {facts.version} again, in plain PyTorch.

Run it with: python train.py. It needs torch, numpy, and what lies beside it: {code.module}.py (the code that makes the
model), data.npz (the samples) and plain/ (orders of samples and dropout masks). It leaves the weights in trained.pt.
"""

import importlib.util
import math
import random
import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

PARAMS = {literal(dict(best.spec.params))}
NUMBER, SEED = {best.spec.number}, {best.spec.seed}
EPOCHS = {best.epoch}
METRIC, FOUND = {facts.metric!r}, {literal(facts.found)}  # what the search measured ({_LABELS[facts.judged]})
N_TRAIN = {facts.n_train}
CHUNK = {facts.chunk}  # samples that are evaluated at once
EVALUATION_EPOCH = {EVALUATION_EPOCH}
{batches}'''


def _keyed(recipe: Recipe, facts: Facts) -> str:
    device = f'torch.device("{facts.device}")'
    if facts.device != "cpu":
        device = f'torch.device("{facts.device}" if torch.{facts.device}.is_available() else "cpu")'
    dtype = torch.get_default_dtype()
    precision = f"torch.set_default_dtype({dtype})\n" if dtype != torch.float32 else ""
    order = "permutation" if recipe.sample_weights is None else "weighted_order"
    names = ", ".join(sorted(("KeyedRandom", "derive", order, "sample_keys"), key=lambda n: (not n[0].isupper(), n)))
    return f"""DEVICE = {device}
{precision}
from plain.keyed import {names}  # noqa: E402
"""


def _stand_ins(code: OwnCode, facts: Facts) -> str:
    parts = "".join(
        f'\nshoal.{part} = sys.modules["shoal.{part}"] = importlib.import_module("plain.{part}")'
        for part in sorted(code.parts - STAND_INS)
    )
    if "extend" in code.parts:
        parts += _EXTEND
    imported = code.function if code.function == "define" else f"{code.function} as define"
    return f'''
class Trial:
    """Answers define() with the parameters of the trial."""

    number, params, user_attrs = NUMBER, PARAMS, {{}}

    def suggest_float(self, name, *args, **kwargs):
        return float(PARAMS[name])

    def suggest_int(self, name, *args, **kwargs):
        return int(PARAMS[name])

    def suggest_categorical(self, name, choices):
        return next(c for c in choices if c is PARAMS[name] or c == PARAMS[name])

    def set_user_attr(self, name, value):
        self.user_attrs[name] = value


class Recipe:
    """What define() returns."""

    def __init__(
        self, model, optimizer, loss, batch_size, schedule=None, schedule_every="epoch", clip_norm=None, clip_value=None,
        l1=0.0, l2=0.0, max_norm=None, transform=None, predict=None, **others,
    ):
        self.model, self.optimizer, self.loss, self.batch_size = model, optimizer, loss, batch_size
        self.schedule, self.transform, self.predict = schedule, transform, predict


# {code.module}.py imports Shoal for these.
shoal = types.ModuleType("shoal")
shoal.Recipe = Recipe
shoal.steps_per_epoch = lambda trial, batch_size: math.ceil(N_TRAIN / batch_size){parts}
sys.modules["shoal"] = shoal
if importlib.util.find_spec("optuna") is None:  # for annotations
    sys.modules["optuna"] = types.ModuleType("optuna")
    sys.modules["optuna"].Trial = Trial

from {code.module} import {imported}  # noqa: E402


def load():
    """The samples of each split, as tensors."""
    with np.load(HERE / "data.npz", allow_pickle=False) as file:
        return {{
            split: tuple(torch.from_numpy(file[f"{{split}}_{{i}}"]).to(DEVICE) for i in range(int(file["n_tensors"])))
            for split in {facts.splits!r}
        }}


def build():
    """The trial's recipe, with the weights that training starts from."""
    torch.manual_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED & 0xFFFFFFFF)
    recipe = define(Trial())
    recipe.model.to(DEVICE)
    if isinstance(recipe.loss, torch.nn.Module):
        recipe.loss.to(DEVICE)
{_follow(facts)}    return recipe

'''


_EXTEND: Final = """
shoal.extend = sys.modules["shoal.extend"] = types.ModuleType("shoal.extend")
# What moved while the winner trained was a learning rate, if anything, and data.npz has where to.
shoal.extend.__getattr__ = lambda name: lambda *args, **options: None"""


def _follow(facts: Facts) -> str:
    """What an optimizer has made before its first step has to go where its parameters have gone."""
    if facts.device == "cpu":
        return ""
    return """    for state in recipe.optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and name != "step":
                state[name] = value.to(DEVICE)
"""


def _evaluate(recipe: Recipe, facts: Facts) -> str:
    """The function that measures the model on a split."""
    total = " / n" if getattr(recipe.loss, "reduction", "mean") == "sum" else ""
    lines, loss, given = [], "", _given(recipe, "batch")
    if recipe.is_criterion:
        lines.append(f"outputs.append({_outputs(recipe, 'batch')})")
        loss = f"float(recipe.loss(torch.cat(outputs), target)){total}"
    else:
        lines.append(f"losses.append(float(recipe.loss(recipe.model, {given})) * len(batch[0]) / n)")
        loss = "sum(losses)"
    if recipe.predict is not None:
        lines.append(f"shown.append(recipe.predict(recipe.model, {given}))")
    kinds = ["outputs" if recipe.is_criterion else "losses"] + (["shown"] if recipe.predict is not None else [])
    lists = f"{', '.join(kinds)} = {', '.join('[]' for _ in kinds)}"
    scores = f'scores = {{"loss": {loss}}}'
    if facts.metric_code:
        # An attribute named like the metric, which may be the loss by another name.
        scores += f"\n    outputs = torch.cat({kinds[-1]})\n    scores[METRIC] = {facts.metric_code}"
    return f'''
def evaluate(recipe, data):
    """The loss of a split and the metric that the search decided by."""
    recipe.model.eval()
    n, target = len(data[0]), data[-1]
    keys = torch.from_numpy(sample_keys(SEED, EVALUATION_EPOCH, n)).to(DEVICE)
    {lists}
    with torch.no_grad():
        for at in range(0, n, CHUNK):
            batch = tuple(t[at : at + CHUNK].clone() for t in data)
            with KeyedRandom(keys[at : at + CHUNK]):
{indent(chr(10).join(lines), " " * 16)}
    {scores}
    return scores

'''


def _given(recipe: Recipe, batch: str) -> str:
    """A batch as the user's code takes it, as an expression."""
    return f"dict(zip(NAMES, {batch}))" if recipe.form.names else batch


def _outputs(recipe: Recipe, batch: str) -> str:
    """What the model gives for a batch beside a criterion, as an expression; see `shoal.batches.Form.inputs`."""
    names = recipe.form.names
    if len(names) > 2:
        return f"recipe.model(**dict(zip(NAMES[:-1], {batch})))"
    return f"recipe.model(*{batch}[:-1])"


def _forward(recipe: Recipe) -> list[str]:
    """A batch's loss, under its own draws."""
    seen, lines = "batch", []
    if recipe.transform is not None:
        seen, changed = "seen", f"recipe.transform({_given(recipe, 'batch')})"
        lines.append(f"seen = {f'tuple(map({changed}.__getitem__, NAMES))' if recipe.form.names else changed}")
    loss = f"recipe.loss(recipe.model, {_given(recipe, seen)})"
    if recipe.is_criterion:
        loss = f"recipe.loss({_outputs(recipe, seen)}, {seen}[-1])"
    return ["with KeyedRandom(keys[at : at + size]):", *(f"    {line}" for line in (*lines, f"loss = {loss}"))]


def _update(recipe: Recipe) -> list[str]:
    """One update, and its part in the mean training loss."""
    closure = inspect.signature(recipe.optimizer.step).parameters.get("closure")
    inside = [*_forward(recipe), "recipe.optimizer.zero_grad()", "loss.backward()", *_shaping(recipe)]
    if closure is not None and closure.default is inspect.Parameter.empty:
        # A line search comes back to the same batch.
        terms = [f"{recipe.l1!r} * sum(p.detach().abs().sum() for p in trained)"] if recipe.l1 else []
        terms += [f"{recipe.l2 / 2!r} * sum(p.detach().square().sum() for p in trained)"] if recipe.l2 else []
        inside += [
            "losses.append(float(loss.detach()))",
            *([f"penalty = {' + '.join(terms)}"] if terms else []),
            f"return loss.detach(){' + penalty' if terms else ''}",
        ]
        body = ["def closure():", *(f"    {line}" for line in inside), "", "losses = []"]
        body += ["recipe.optimizer.step(closure)", "total += losses[0] * len(rows) / n"]
        return [*body, *_bounded(recipe)]
    if learning_rate(recipe) is not None:
        inside += [
            "for group, rate in zip(recipe.optimizer.param_groups, rates[:, update]):",
            "    group['lr'] = float(rate)",
        ]
        inside += ["update += 1"]
    return [*inside, "recipe.optimizer.step()", "total += float(loss.detach()) * len(rows) / n", *_bounded(recipe)]


def _bounded(recipe: Recipe) -> list[str]:
    """What happens to the weights after an update."""
    if not recipe.max_norm:
        return []
    return [
        "with torch.no_grad():  # the largest norm of a unit's weights",
        "    for p in (p for p in trained if p.ndim > 1):",
        f"        p.copy_(torch.renorm(p, 2, 0, {recipe.max_norm!r}))",
    ]


def _after_epoch(recipe: Recipe, best: TrialRecord, *, folded: bool) -> list[str]:
    """What a schedule that steps per epoch is shown."""
    if recipe.schedule is None or recipe.schedule_every != "epoch":
        return []
    if not isinstance(recipe.schedule, ReduceLROnPlateau):
        return ["recipe.schedule.step()"]
    by_loss = recipe.schedule.mode == "min"
    if not folded:
        return ['recipe.schedule.step(scores["loss"])' if by_loss else "recipe.schedule.step(scores[METRIC])"]
    seen = [row.metrics["loss"] if by_loss else row.value for row in best.rows[: best.epoch]]
    shown = ", ".join(literal(value) for value in seen)
    return ["# What the folds had, on average, after each epoch.", f"recipe.schedule.step([{shown}][epoch])"]


def _train(recipe: Recipe, best: TrialRecord, *, folded: bool) -> str:
    """The function that trains: the loop one would write, with keyed orders and draws."""
    body = _update(recipe)
    every = recipe.schedule_every if recipe.schedule is not None else ""
    if every == "step":
        body.append("recipe.schedule.step()")
    elif every == "fraction":
        body.append("recipe.schedule.step(epoch + at / size / math.ceil(n / size))")
    before, order = [], "permutation(SEED, epoch, n)"
    if recipe.sample_weights is not None:
        before.append('bounds = np.load(HERE / "data.npz")["bounds"]  # samples are drawn by weight')
        order = "weighted_order(SEED, epoch, bounds)"
    if learning_rate(recipe) is not None:
        before += ['rates = np.load(HERE / "data.npz")["rates"]  # learning rates that were learnt, (groups, updates)']
        before.append("update = 0")
    # Optimizers that keep an average swap it in for evaluation.
    modes = callable(getattr(recipe.optimizer, "train", None)) and callable(getattr(recipe.optimizer, "eval", None))
    start, end = (["recipe.optimizer.train()"], ["recipe.optimizer.eval()"]) if modes else ([], [])
    told = 'print(f"epoch {epoch + 1}/{EPOCHS}: training loss {total:.6g}")'
    if not folded:
        end.append('scores = evaluate(recipe, splits["valid"])')
        told = told.replace('")', '; validation: {shown}")')
        end += [
            *_after_epoch(recipe, best, folded=folded),
            'shown = ", ".join(f"{k} {v:.6g}" for k, v in scores.items())',
        ]
    else:
        end += _after_epoch(recipe, best, folded=folded)
    return f'''
def train(recipe, splits):
    """Train for EPOCHS epochs{"" if folded else "; the validation scores of the last"}."""
    data, n, size = splits["train"], N_TRAIN, recipe.batch_size
    modes = [(module, module.training) for module in recipe.model.modules()]
    trained = [p for p in recipe.model.parameters() if p.requires_grad]
{_lines(before, 4)}    for epoch in range(EPOCHS):
        for module, training in modes:
            module.training = training
{_lines(start, 8)}        order = torch.from_numpy({order}).to(DEVICE)
        keys = torch.from_numpy(sample_keys(SEED, epoch, n)).to(DEVICE)
        torch.manual_seed(derive(SEED, epoch))
        total = 0.0
        for at in range(0, n, size):
            rows = order[at : at + size]
            batch = tuple(t[rows] for t in data)
{_lines(body, 12)}{_lines([*end, told], 8)}{"" if folded else "    return scores"}

'''


def _lines(lines: Sequence[str], by: int) -> str:
    return "".join(indent(line, " " * by) + "\n" for line in lines)


def _shaping(recipe: Recipe) -> list[str]:
    """What happens to a gradient before the optimizer takes it."""
    out: list[str] = []
    if recipe.l1:
        out += [
            "for p in trained:  # the penalty on absolute values",
            f"    slope = p.detach().sign() * {recipe.l1!r}",
            "    p.grad = slope if p.grad is None else p.grad.add_(slope)",
        ]
    if recipe.l2:
        out += [
            "for p in trained:  # the penalty on squares",
            f"    slope = p.detach() * {recipe.l2!r}",
            "    p.grad = slope if p.grad is None else p.grad.add_(slope)",
        ]
    if recipe.clip_value:
        out.append(f"torch.nn.utils.clip_grad_value_(trained, {recipe.clip_value!r})")
    if recipe.clip_norm:
        out.append(f"torch.nn.utils.clip_grad_norm_(trained, {recipe.clip_norm!r})")
    return out


def _main(facts: Facts) -> str:
    test = ""
    if "test" in facts.splits:
        test = (
            '    tested = ", ".join(f"{name} {value!r}" for name, value in evaluate(recipe, splits["test"]).items())\n'
            '    print(f"test: {tested}")\n'
        )
    label = _LABELS[facts.judged]
    run = "scores = train(recipe, splits)"
    if facts.judged != "valid":
        run = f'train(recipe, splits)\n    scores = evaluate(recipe, splits["{facts.judged}"])'
    return f"""
if __name__ == "__main__":
    splits, recipe = load(), build()
    {run}
{test}    torch.save(recipe.model.state_dict(), HERE / "trained.pt")
    print(f"{label}: {{METRIC}} {{scores[METRIC]!r}}; the search measured {{FOUND!r}}")
"""


def metric_code(name: str, outputs: Tensor | None, target: Tensor, *, probabilities: bool) -> tuple[str, bool]:
    """A metric as an expression of ``outputs`` and ``target``, and whether it needs Shoal's own metrics beside the script."""
    if name == "loss" or outputs is None:
        return "", False
    numbers = target.is_floating_point()
    if name == "accuracy" and not numbers and target.ndim == 1 and not bool((target < 0).any()):
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            return "float((outputs.argmax(1) == target).double().mean())", False
        if outputs.numel() == len(target):
            cut = 0.5 if probabilities else 0
            return f"float(((outputs.flatten() > {cut}) == target.bool()).double().mean())", False
    error = {"mae": ".abs().mean()", "mse": ".square().mean()", "rmse": ".square().mean().sqrt()"}.get(name)
    if numbers and outputs.shape == target.shape and error is not None:
        return f"float((outputs - target).double(){error})", False
    scale = "probabilities" if probabilities else "logits"
    resolved = f'importlib.import_module("plain.metrics").resolve("{name}", targets=target)'
    return f'float({resolved}.compute(outputs[None], target, "{scale}")[0])', True
