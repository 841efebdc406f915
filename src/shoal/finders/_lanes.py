"""Training a handful of chosen configurations side by side, each over the same seeds, for a fixed number of epochs.

Glossary: ``C`` configurations, ``S`` seeds, ``E`` epochs. Configurations of one seed start from the same draws and see samples
in the same order, so that their differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import StudyError
from shoal.finders._start import Setting
from shoal.keyed import derive
from shoal.lanes import native
from shoal.lanes.fleet import Work
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.workers import n_workers, pools
from shoal.planner import WIDEST
from shoal.progress import stages_shown
from shoal.records import Direction, ParamValue, TrialSpec
from shoal.replay import Define, replay
from shoal.session import candidate
from shoal.signature import Signer
from shoal.stages import counted

_SEED_STREAM = 5  # of seeds, beside those of a study's trials


def seed_of(start: Setting, s: int) -> int:
    """The trial seed of the s-th run of every configuration."""
    return derive(start.seed, _SEED_STREAM, s)


@dataclass(frozen=True, slots=True)
class Curves:
    """What came of it; NaN from the epoch on in which a trial's loss was no longer finite.

    Attributes:
        train_loss, valid_loss: (C, S, E).
        value: (C, S, E), the metric in the user's own direction.
        metric, direction: Its name, and which way is better.
        errors: What the first trial of each configuration raised that did.
    """

    train_loss: NDArray[np.float64]
    valid_loss: NDArray[np.float64]
    value: NDArray[np.float64]
    metric: str
    direction: Direction
    errors: Mapping[int, str]


def side_by_side(
    define: Define,
    start: Setting,
    points: Sequence[Mapping[str, ParamValue]],
    *,
    seeds: int,
    epochs: int,
    said: str,
) -> Curves:
    """Train every configuration under every seed.

    Args:
        define: Makes a trial's recipe.
        start: Data, metric, device, and the seed that the seeds follow from.
        points: The configurations.
        seeds, epochs: How many.
        said: What is shown while it runs.

    Raises:
        StudyError: If every trial of every configuration raised.
    """
    data, metric, device = start.data, start.metric, start.device
    shape = (len(points), seeds, epochs)
    train, valid, value = (np.full(shape, np.nan) for _ in range(3))
    specs = {
        c * seeds + s: TrialSpec(c * seeds + s, seed_of(start, s), dict(p), {})
        for c, p in enumerate(points)
        for s in range(seeds)
    }
    signer, target = Signer(data.train.tensors), data.train.tensors[-1]
    work = Work(data, () if metric is None else (metric,), device)

    def rebuild(spec: TrialSpec) -> Any:
        return replay(define, spec, data.train.n, data.train.form)

    def admission(spec: TrialSpec) -> Candidate:
        return candidate(spec, rebuild(spec), signer, target)

    def make_pool() -> Pool:
        return Pool(work, rebuild, measure=True, native=True)

    errors: dict[int, str] = {}
    if device.type == "cpu":
        native.prepare()
    waiting, waves = list(specs.values()), []
    while waiting:
        waves.append(waiting[:WIDEST])
        waiting = waiting[WIDEST:]
    count = n_workers(min(len(specs), WIDEST), device=device, reproducible=False)
    with stages_shown(start.progress), pools(make_pool, admission, count) as pool:
        rounds = counted(((w, e) for w in waves for e in range(epochs)), said, len(waves) * epochs)
        for wave, epoch in rounds:
            if epoch == 0:
                pool.admit([admission(spec) for spec in wave])
            for m in pool.run_epoch():
                c, s = divmod(m.trial, seeds)
                if m.error:
                    errors.setdefault(c, m.error)
                else:
                    shown = m.valid_loss if metric is None else m.metrics.get(metric.name, np.nan)
                    train[c, s, epoch], valid[c, s, epoch], value[c, s, epoch] = m.train_loss, m.valid_loss, shown
                    pool.epoch_done(m.trial, m.valid_loss, shown)
                if m.error or not m.finite or epoch == epochs - 1:
                    pool.remove(m.trial)
            pool.drain_events()
    if len(errors) == len(points):
        raise StudyError(f"every configuration failed. The first: {errors[0]}")
    bad = ~np.isfinite(train) | ~np.isfinite(valid)
    for grid in (train, valid, value):
        grid[np.maximum.accumulate(bad, axis=2)] = np.nan
    name = metric.name if metric is not None else "loss"
    return Curves(train, valid, value, name, metric.direction if metric is not None else "minimize", errors)
