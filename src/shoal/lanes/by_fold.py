"""Validation where lanes have rows of their own: each is measured on its fold, in as many chunks as it would be alone.

Glossary: ``lanes`` the fleet's width; ``q`` samples of a chunk; a lane's *rows* are those that its fold is validated on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from shoal.lanes.criteria import is_known
from shoal.lanes.lane import LaneTrial, evaluation_chunk, evaluation_weight
from shoal.lanes.parts import Rows
from shoal.metrics import Meter, Scale

if TYPE_CHECKING:
    from shoal.lanes.fleet import Fleet


def by_fold(fleet: Fleet, data: Sequence[Tensor], scale: Scale) -> tuple[Tensor, dict[str, Tensor]]:
    """Measure every lane on the validation rows of its fold.

    Args:
        fleet: Its lanes have just trained an epoch.
        data: The tensors that rows are of, (n, ...) each.
        scale: What the outputs are.

    Returns:
        (loss (lanes,), metric name -> (lanes,)), on the host; metrics that some fold does not have are left out.
    """
    lanes = {i: t for i, t in enumerate(fleet.lanes) if t is not None}
    rows = {i: _rows(t) for i, t in lanes.items()}
    folds: dict[int, list[int]] = {}  # lanes with the same rows
    for i in lanes:
        folds.setdefault(id(rows[i]), []).append(i)
    meters = [(Meter(fleet.work.metrics, _take(data[-1], rows[who[0]]), scale), who) for who in folds.values()]
    loss = _chunks(fleet, data, lanes, rows, meters)
    found = [(meter.results(), who) for meter, who in meters]
    metrics: dict[str, Tensor] = {}
    for name in found[0][0]:
        if all(name in results for results, _ in found):
            metrics[name] = torch.zeros(fleet.width, dtype=torch.float64)
            for results, who in found:
                metrics[name][who] = results[name]
    return loss, metrics


def _rows(trial: LaneTrial) -> Rows:
    assert trial.valid_rows is not None
    return trial.valid_rows


def _take(tensor: Tensor, rows: Rows) -> Tensor:
    return tensor[torch.from_numpy(rows).to(tensor.device)]


def _chunks(
    fleet: Fleet,
    data: Sequence[Tensor],
    lanes: dict[int, LaneTrial],
    rows: dict[int, Rows],
    meters: Sequence[tuple[Meter, list[int]]],
) -> Tensor:
    """The loss of every lane, (lanes,); the meters are shown the outputs of their lanes."""
    device, dtype, size = fleet.work.device, fleet.layout.dtype, evaluation_chunk(data)
    known = is_known(fleet.program._recipe.loss)
    total = torch.zeros(fleet.width, dtype=torch.float64)
    for first in range(0, max(map(len, rows.values())), size):
        sizes = {i: min(size, max(0, len(r) - first)) for i, r in rows.items()}
        q = max(sizes.values())  # of an exact signature, every lane's: its lanes have as many rows each
        idx, keys, weights = (np.zeros((fleet.width, q), dtype=d) for d in (np.int64, np.int32, np.float64))
        for i, t in lanes.items():
            r, n = rows[i], sizes[i]
            if t.valid_weight is None:
                t.valid_weight = evaluation_weight(t.recipe, _take(data[-1], r))
            idx[i] = r[0]  # empty slots hold a sample of the fold, with weight 0
            idx[i, :n] = r[first : first + n]
            keys[i, :n] = t.evaluation_keys(len(r))[first : first + n]
            weights[i, :n] = t.valid_weight
        slots = torch.from_numpy(idx), torch.from_numpy(weights).to(dtype), torch.from_numpy(keys)
        out = fleet.program.evaluate_rows(fleet.state.inputs, data, *(t.to(device) for t in slots))
        losses = out[-1].double().cpu()
        for i, n in sizes.items():
            if n:
                total[i] += losses[i] * (1.0 if known else n / len(rows[i]))
        for meter, who in meters if len(out) > 1 else ():
            if n := sizes[who[0]]:
                seen = out[0][who]
                meter.add(seen[:, :n] if seen.ndim > 1 and seen.shape[1] == q else seen, n)
    return total
