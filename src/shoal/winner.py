"""What the winner predicts, boiled down to a few kilobytes of numbers that the report can draw without the model.

Glossary: ``outputs`` is ``(n, ...)``, one per sample of a split, and ``targets`` likewise; ``C`` is the number of
classes; a *score* is a metric's value on the split with the ends of its confidence interval.

The interval of an accuracy is Wilson's, since that is a share of samples. Others are percentile bootstrap intervals (Efron
1979): the metric is computed again on ``n`` samples drawn with
replacement, many times, and the middle 95 % of what comes out is the interval. It says how much the score owes to which
samples happened to be in the split; it does not say what another training run would give.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from shoal.data import Split
from shoal.errors import StorageError
from shoal.lanes.criteria import scale_of
from shoal.lanes.fleet import Work
from shoal.lanes.solo import measure
from shoal.metrics import IGNORE_INDEX, Meter, Metric, Scale
from shoal.recipe import Recipe
from shoal.records import Json, TrialSpec
from shoal.scores import wilson

if TYPE_CHECKING:
    from shoal.history import History

LEVEL: Final = 0.95
# Of output elements that all redraws together may go through, so that a large split costs about a second and no more.
MAX_WORK: Final = 100_000_000
MAX_REDRAWS: Final = 500
MIN_REDRAWS: Final = 100
# A matrix beyond this is no longer read; the classes' own numbers are kept up to the second limit.
MAX_MATRIX: Final = 64
MAX_CLASSES: Final = 1000
MAX_CONFUSIONS: Final = 100
MAX_BINS: Final = 40
MIN_BINS: Final = 8

Score = Callable[[Tensor, Tensor], float]


def score_winner(history: History, work: Work, trained: Callable[[TrialSpec], Recipe]) -> None:
    """Look at the winner once, on the test split where there is one, and write what was seen into ``history.meta``.

    ``meta["test"]`` holds its metrics; ``meta["winner"]`` has its number, ``valid`` and ``test`` (see `split_scores`), and
    what `predictions` finds on the split named by ``split``. A winner that has been looked at is not looked at again.

    Args:
        history: Of the study.
        work: Splits, metrics and device.
        trained: A trial's recipe with its trained weights.
    """
    best, meta = history.record.best(), history.meta
    known = meta.get("winner")
    if best is None or (isinstance(known, dict) and known.get("trial") == best.spec.number):
        return
    try:
        recipe = trained(best.trained)
    except StorageError:
        if work.data.test is not None:
            raise
        return  # its weights are gone, and nothing that was asked for needs them
    recipe.model.to(work.device)
    if isinstance(recipe.loss, nn.Module):
        recipe.loss.to(work.device)
    winner: dict[str, Json] = {"trial": best.spec.number}
    for name, split in (("valid", work.data.valid), ("test", work.data.test)):
        if split is None or (split is work.data.train):  # with folds, the winner was trained on all that is no test row
            continue
        measured, outputs, winner[name] = look_at(recipe, split, work.metrics, best.spec.seed)
        winner["split"] = name
        found = predictions(outputs, split.tensors[-1], cut=0.5 if scale_of(recipe) == "probabilities" else 0.0)
        winner.update(found or {})
        if name == "test":
            meta["test"], meta["test_trial"] = dict[str, Json](measured), best.spec.number
    meta["winner"] = winner


def look_at(
    recipe: Recipe, split: Split, metrics: Sequence[Metric], seed: int
) -> tuple[dict[str, float], Tensor | None, dict[str, Json]]:
    """What a trained recipe does on a split: metrics, outputs (n, ...) or None, and `split_scores`."""
    loss, outputs = measure(recipe, split.tensors, seed, stage="scoring the winner")
    target, scale = split.tensors[-1], scale_of(recipe)
    measured = {"loss": loss, **metrics_of(outputs, target, metrics, scale)}
    return measured, outputs, split_scores(outputs, target, measured, metrics, of_loss(recipe), seed, scale)


def metrics_of(outputs: Tensor | None, target: Tensor, metrics: Sequence[Metric], scale: Scale) -> dict[str, float]:
    """Each metric of outputs (n, ...); none without outputs."""
    if outputs is None:
        return {}
    meter = Meter(metrics, target, scale)
    meter.add(outputs[None])
    return {name: float(value[0]) for name, value in meter.results().items()}


def of_loss(recipe: Recipe) -> Score | None:
    """The recipe's loss as a function of outputs, if it is one."""
    if not recipe.is_criterion or recipe.predict is not None:
        return None
    return lambda outputs, targets: float(recipe.loss(outputs, targets))


def split_scores(
    outputs: Tensor | None,
    targets: Tensor,
    measured: Mapping[str, float],
    metrics: Sequence[Metric],
    loss: Score | None = None,
    seed: int = 0,
    scale: Scale = "logits",
) -> dict[str, Json]:
    """A split's scores, each with its interval where one can be had.

    Args:
        outputs: (n, ...), or None when the recipe shows none.
        targets: (n, ...).
        measured: Metric name -> value on the whole split.
        metrics: What to compute again on redrawn samples.
        loss: (outputs, targets) -> mean loss, if that is what the recipe's loss is.
        seed: Of the redraws.
        scale: What the outputs are.

    Returns:
        ``n``, ``level``, and ``scores``: name -> ``{"value", "low", "high", "method"}``, the last three absent where unknown.
    """
    ranges: dict[str, tuple[float, float]] = {}
    shares = _shares(measured, targets) if outputs is not None else {}
    if outputs is not None:
        functions: dict[str, Score] = {m.name: _of_metric(m, scale) for m in metrics}
        # A loss that sums, or whose parts do not add up to the whole, says something else about redrawn samples.
        if loss is not None and math.isclose(_quietly(loss, outputs, targets), measured["loss"], rel_tol=1e-3):
            functions["loss"] = loss
        ranges = _bootstrap(
            outputs, targets, {k: f for k, f in functions.items() if k in measured and k not in shares}, seed
        )
    found: dict[str, Json] = {}
    for name, value in measured.items():
        entry: dict[str, Json] = {"value": value}
        if name in shares or name in ranges:
            entry["low"], entry["high"] = shares.get(name) or ranges[name]
            entry["method"] = "wilson" if name in shares else "bootstrap"
        found[name] = entry
    return {"n": int(targets.shape[0]), "level": LEVEL, "scores": found}


# Metrics that are the share of samples which are right.
_SHARE = re.compile(r"accuracy|top_\d+_accuracy")


def _shares(measured: Mapping[str, float], targets: Tensor) -> dict[str, tuple[float, float]]:
    """Wilson's intervals of metrics that count samples. Pixels of one image are no samples: they are alike."""
    if targets.numel() != len(targets) or not len(targets):
        return {}
    n = int((targets != IGNORE_INDEX).sum())
    return {k: wilson(v * n, n) for k, v in measured.items() if n and _SHARE.fullmatch(k) and 0 <= v <= 1}


def _of_metric(metric: Metric, scale: Scale) -> Score:
    return lambda outputs, targets: float(metric.compute(outputs[None], targets, scale)[0])


def _bootstrap(
    outputs: Tensor, targets: Tensor, functions: Mapping[str, Score], seed: int
) -> dict[str, tuple[float, float]]:
    n = targets.shape[0]
    redraws = min(MAX_REDRAWS, MAX_WORK // max(outputs.numel() * max(len(functions), 1), 1))
    if n < 2 or redraws < MIN_REDRAWS:
        return {}
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(redraws):
        rows = torch.randint(n, (n,), generator=generator).to(outputs.device)
        some, their_targets = outputs[rows], targets[rows]
        for name, function in functions.items():
            drawn[name].append(_quietly(function, some, their_targets))
    tail = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    ranges: dict[str, tuple[float, float]] = {}
    for name, values in drawn.items():
        low, high = torch.tensor(values, dtype=torch.float64).quantile(tail).tolist()
        if math.isfinite(low) and math.isfinite(high):
            ranges[name] = (low, high)
    return ranges


def _quietly(function: Score, outputs: Tensor, targets: Tensor) -> float:
    """A score of some samples, or NaN: a metric of the user's may refuse a draw that lacks a class, or warn of it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return function(outputs, targets)
        except Exception:
            return math.nan


def predictions(outputs: Tensor | None, targets: Tensor, cut: float = 0.0) -> dict[str, Json] | None:
    """Confusion counts for classes, binned residuals for numbers, None for anything else.

    Args:
        outputs: (n, C) or (n, C, ...) logits, (n,) or (n, 1) binary logits; for regression, the targets' shape.
        targets: (n, ...).
        cut: Above it, one output per sample means class 1.

    Returns:
        ``{"classes": ...}`` (see ``_classes``) or ``{"residuals": ...}`` (see ``_residuals``).
    """
    if outputs is None or not len(targets) or not bool(torch.isfinite(outputs).all()):
        return None
    if targets.is_complex() or outputs.is_complex():
        return None
    n = len(targets)
    if not targets.is_floating_point():
        if outputs.numel() == targets.numel() == n == len(outputs):  # one logit per sample: two classes
            return {"classes": _classes((outputs > cut).long(), targets, 2)}
        if outputs.ndim == targets.ndim + 1 and (n, *outputs.shape[2:]) == tuple(targets.shape):
            return {"classes": _classes(outputs.argmax(dim=1), targets, outputs.shape[1])}
        return None
    if outputs.numel() != targets.numel() or len(outputs) != n:
        return None
    if outputs.numel() == n and bool(((targets == 0) | (targets == 1)).all()):
        return {"classes": _classes((outputs > cut).long(), targets.long(), 2)}
    return {"residuals": _residuals(outputs, targets)}


def _classes(predicted: Tensor, targets: Tensor, n_classes: int) -> dict[str, Json] | None:
    """Counts: ``matrix[true][predicted]`` up to 64 classes, else the largest confusions; hits, predicted, support."""
    predicted, targets = predicted.reshape(-1).cpu().long(), targets.reshape(-1).cpu().long()
    kept = (targets != IGNORE_INDEX) & (targets >= 0) & (targets < n_classes)
    predicted, targets = predicted[kept], targets[kept]
    if n_classes > MAX_CLASSES or not len(targets):
        return None
    counts = torch.bincount(targets * n_classes + predicted, minlength=n_classes**2).view(n_classes, n_classes)
    found: dict[str, Json] = {
        "n": n_classes,
        "hits": counts.diagonal().tolist(),
        "predicted": counts.sum(dim=0).tolist(),
        "support": counts.sum(dim=1).tolist(),
    }
    if n_classes <= MAX_MATRIX:
        found["matrix"] = counts.tolist()
        return found
    wrong = counts.clone().fill_diagonal_(0).reshape(-1)
    top = wrong.topk(min(MAX_CONFUSIONS, len(wrong)))
    found["confusions"] = [
        [int(cell) // n_classes, int(cell) % n_classes, int(count)]
        for count, cell in zip(top.values, top.indices, strict=True)
        if count
    ]
    return found


def _residuals(outputs: Tensor, targets: Tensor) -> dict[str, Json]:
    """Predicted minus true, over all samples and features: a histogram, quantiles, and a grid against the truth.

    ``grid[row][column]`` counts predictions in ``row`` for truths in ``column``, both over ``range`` in equal bins;
    ``counts`` is the histogram of residuals over ``span``. What lies outside the middle 99.8 % is in the last bins.
    """
    truth = targets.detach().reshape(-1).cpu().double()
    output = outputs.detach().reshape(-1).cpu().double()
    error = output - truth
    marks = torch.tensor([0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999], dtype=torch.float64)
    quantiles = _quantiles(error, marks)
    both = _quantiles(torch.cat([truth, output]), marks)
    low, high = _widened(both[0], both[-1])
    first, last = _widened(quantiles[0], quantiles[-1])
    # Few values in many bins are a comb.
    n_bins = min(max(round(2 * math.sqrt(error.numel())), MIN_BINS), MAX_BINS)
    cells = _bins(output, low, high, n_bins) * n_bins + _bins(truth, low, high, n_bins)
    grid = torch.bincount(cells, minlength=n_bins**2).view(n_bins, n_bins)
    return {
        "n": int(error.numel()),
        "mean": float(error.mean()),
        "std": float(error.std(correction=0)),
        "quantiles": {f"{q:g}": v for q, v in zip(marks.tolist(), quantiles, strict=True)},
        "range": [low, high],
        "grid": grid.tolist(),
        "span": [first, last],
        "counts": torch.bincount(_bins(error, first, last, n_bins), minlength=n_bins).tolist(),
    }


def _quantiles(values: Tensor, at: Tensor) -> list[float]:
    # torch.quantile refuses more than 16 million elements; sorting has no such limit.
    ordered = values.sort().values
    found: list[float] = ordered[(at * (len(ordered) - 1)).round().long()].tolist()
    return found


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _bins(values: Tensor, low: float, high: float, n_bins: int) -> Tensor:
    return ((values - low) / (high - low) * n_bins).long().clamp(0, n_bins - 1)
