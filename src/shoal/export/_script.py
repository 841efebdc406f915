"""The training script of a winner: plain PyTorch, with only those lines that its recipe makes use of."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from shoal.export._source import OwnCode
from shoal.lanes.lane import EVALUATION_EPOCH
from shoal.recipe import Recipe
from shoal.records import TrialRecord


@dataclass(frozen=True, slots=True)
class Facts:
    """What a script says of the search.

    Attributes:
        version: Of Shoal.
        metric: The study's; "loss" if that is a function of the user's own.
        found: What the search measured of it on the validation split.
        metric_code: An expression of ``outputs`` and ``target`` for it, or "" for the loss.
        n_train: Samples of the training split.
        chunk: Samples that are evaluated at once.
        device: "cpu" or "cuda": where the study ran.
        splits: "train", "valid" and perhaps "test".
    """

    version: str
    metric: str
    found: float
    metric_code: str
    n_train: int
    chunk: int
    device: str
    splits: tuple[str, ...]


def script(best: TrialRecord, recipe: Recipe, code: OwnCode, facts: Facts) -> str:
    """The text of ``train.py``."""
    parts = [
        _head(best, code, facts) + _keyed(facts),
        _stand_ins(code, facts),
        _evaluate(recipe, facts),
        _train(recipe),
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


def _head(best: TrialRecord, code: OwnCode, facts: Facts) -> str:
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
METRIC, FOUND = {facts.metric!r}, {literal(facts.found)}  # what the search measured on the validation split
N_TRAIN = {facts.n_train}
CHUNK = {facts.chunk}  # samples that are evaluated at once
EVALUATION_EPOCH = {EVALUATION_EPOCH}
'''


def _keyed(facts: Facts) -> str:
    device = f'torch.device("{facts.device}")'
    if facts.device != "cpu":
        device = f'torch.device("{facts.device}" if torch.{facts.device}.is_available() else "cpu")'
    dtype = torch.get_default_dtype()
    precision = f"torch.set_default_dtype({dtype})\n" if dtype != torch.float32 else ""
    return f"""DEVICE = {device}
{precision}
from plain.keyed import KeyedRandom, derive, permutation, sample_keys  # noqa: E402
"""


def _stand_ins(code: OwnCode, facts: Facts) -> str:
    parts = "".join(
        f'\nshoal.{part} = sys.modules["shoal.{part}"] = importlib.import_module("plain.{part}")'
        for part in sorted(code.parts)
    )
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
    lines, loss = [], ""
    if recipe.is_criterion:
        lines.append("outputs.append(recipe.model(*batch[:-1]))")
        loss = f"float(recipe.loss(torch.cat(outputs), target)){total}"
    else:
        lines.append("losses.append(float(recipe.loss(recipe.model, batch)) * len(batch[0]) / n)")
        loss = "sum(losses)"
    if recipe.predict is not None:
        lines.append("shown.append(recipe.predict(recipe.model, batch))")
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


def _train(recipe: Recipe) -> str:
    """The function that trains: the loop one would write, with keyed orders and draws."""
    closure = inspect.signature(recipe.optimizer.step).parameters.get("closure")
    asks = closure is not None and closure.default is inspect.Parameter.empty
    loss = (
        "recipe.loss(recipe.model(*batch[:-1]), batch[-1])"
        if recipe.is_criterion
        else "recipe.loss(recipe.model, batch)"
    )
    forward = ["batch = recipe.transform(batch)"] if recipe.transform is not None else []
    backward = ["recipe.optimizer.zero_grad()", "loss.backward()", *_shaping(recipe)]
    inside = ["with KeyedRandom(keys[at : at + size]):", *(f"    {s}" for s in [*forward, f"loss = {loss}"]), *backward]
    if asks:
        # A line search comes back to the same batch.
        ask = [s.replace("batch = recipe.transform(batch)", "seen = recipe.transform(batch)") for s in inside]
        ask = [s.replace("batch[", "seen[").replace(", batch)", ", seen)") if forward else s for s in ask]
        head = ["seen = batch"] if forward else []
        terms = [f"{recipe.l1!r} * sum(p.detach().abs().sum() for p in trained)"] if recipe.l1 else []
        terms += [f"{recipe.l2 / 2!r} * sum(p.detach().square().sum() for p in trained)"] if recipe.l2 else []
        penalty = " + penalty" if terms else ""
        extra = [f"penalty = {' + '.join(terms)}"] if terms else []
        body = ["def closure():", *(f"    {s}" for s in [*head, *ask, "losses.append(float(loss.detach()))", *extra])]
        body += [f"    return loss.detach(){penalty}", "", "losses = []", "recipe.optimizer.step(closure)"]
        body += ["total += losses[0] * len(rows) / n"]
    else:
        body = [*inside, "recipe.optimizer.step()", "total += float(loss.detach()) * len(rows) / n"]
    if recipe.max_norm:
        body += [
            "with torch.no_grad():  # the largest norm of a unit's weights",
            "    for p in (p for p in trained if p.ndim > 1):",
            f"        p.copy_(torch.renorm(p, 2, 0, {recipe.max_norm!r}))",
        ]
    every = recipe.schedule_every if recipe.schedule is not None else ""
    if every == "step":
        body.append("recipe.schedule.step()")
    elif every == "fraction":
        body.append("recipe.schedule.step(epoch + at / size / math.ceil(n / size))")
    after = []
    if every == "epoch":
        shown = ""
        if isinstance(recipe.schedule, ReduceLROnPlateau):
            shown = 'scores["loss"]' if recipe.schedule.mode == "min" else "scores[METRIC]"
        after.append(f"recipe.schedule.step({shown})")
    later = indent("\n".join(after) + "\n", " " * 8) if after else ""
    return f'''
def train(recipe, splits):
    """Train for EPOCHS epochs; the validation scores of the last."""
    data, n, size = splits["train"], N_TRAIN, recipe.batch_size
    modes = [(module, module.training) for module in recipe.model.modules()]
    trained = [p for p in recipe.model.parameters() if p.requires_grad]
    for epoch in range(EPOCHS):
        for module, training in modes:
            module.training = training
        order = torch.from_numpy(permutation(SEED, epoch, n)).to(DEVICE)
        keys = torch.from_numpy(sample_keys(SEED, epoch, n)).to(DEVICE)
        torch.manual_seed(derive(SEED, epoch))
        total = 0.0
        for at in range(0, n, size):
            rows = order[at : at + size]
            batch = tuple(t[rows] for t in data)
{indent(chr(10).join(body), " " * 12)}
        scores = evaluate(recipe, splits["valid"])
{later}        shown = ", ".join(f"{{name}} {{value:.6g}}" for name, value in scores.items())
        print(f"epoch {{epoch + 1}}/{{EPOCHS}}: training loss {{total:.6g}}; validation: {{shown}}")
    return scores

'''


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
    return f"""
if __name__ == "__main__":
    splits, recipe = load(), build()
    scores = train(recipe, splits)
{test}    torch.save(recipe.model.state_dict(), HERE / "trained.pt")
    print(f"validation: {{METRIC}} {{scores[METRIC]!r}}; the search measured {{FOUND!r}}")
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
