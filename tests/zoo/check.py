"""Trains an entry of the zoo in lanes and alone, and says how far apart the two are.

Everything runs in float64, where rounding cannot hide a mistake: torch's default type is switched for the duration.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lanes_helpers import datasets, gradient_deviation, rebuild, train_solo, work_of
from shoal.asking import Asker
from shoal.errors import FuseError
from shoal.lanes.fleet import Work
from shoal.lanes.pool import Candidate, Pool
from shoal.records import TrialSpec
from shoal.replay import run_define
from shoal.signature import Signer, lane_trial
from zoo.entry import N_TRAIN, Entry

N_TRIALS = 2
EPOCHS = 2


@dataclass(frozen=True)
class Verdict:
    """What became of an entry.

    Args:
        fused: Whether all trials trained in one fleet.
        reason: Why not.
        gradients: Largest deviation of a gradient from the same state, relative to its scale; 0 for solo.
        trajectory: Largest deviation of losses, parameters and buffers after each epoch, relative to 1 or their size.
    """

    fused: bool
    reason: str
    gradients: float
    trajectory: float


@contextmanager
def double() -> Iterator[None]:
    """torch makes float64 by default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def work(entry: Entry) -> Work:
    """The entry's data: 20 samples to train on and 6 to validate with."""
    tensors = entry.data()
    return work_of(datasets([t[:N_TRAIN] for t in tensors], [t[N_TRAIN:] for t in tensors]))


def specs(entry: Entry) -> list[TrialSpec]:
    """Trials with hyperparameters drawn at random, as a study would ask for them."""
    asker, out = Asker("random", "minimize", 0), []
    for _ in range(N_TRIALS):
        trial = asker.ask()
        run_define(entry.define, trial, asker.trial_seed(trial.number), N_TRAIN)
        out.append(asker.spec(trial))
    return out


def check(entry: Entry) -> Verdict:
    """Train the entry both ways."""
    with double(), warnings.catch_warnings():
        # What torch says of an old interface is addressed to those who still use it, as some entries do on purpose.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return _check(entry)


def _check(entry: Entry) -> Verdict:
    task, trials = work(entry), specs(entry)
    signer = Signer(task.data.train.tensors)
    try:
        candidates = [_candidate(entry, spec, task, signer) for spec in trials]
    except FuseError as error:
        return Verdict(False, str(error), 0.0, 0.0)
    if len({c.signature for c in candidates}) > 1:
        return Verdict(False, "its trials have several signatures", 0.0, 0.0)
    pool = Pool(task, lambda spec: rebuild(entry.define, spec, task), measure=False)
    pool.admit(candidates)
    fleet = next(pool._open(), None)
    gradients = 0.0 if fleet is None else gradient_deviation(fleet, entry.define, task)
    alone = {spec.number: train_solo(entry.define, spec, task, EPOCHS) for spec in trials}
    largest = 0.0
    for epoch in range(EPOCHS):
        for row in pool.run_epoch():
            if row.error:
                return Verdict(False, row.error, 0.0, float("inf"))
            solo, expected = alone[row.trial].rows[epoch], alone[row.trial].states[epoch]
            pairs = [(row.train_loss, solo.train_loss), (row.valid_loss, solo.valid_loss)]
            largest = max(largest, *(abs(a - b) / max(1.0, abs(b)) for a, b in pairs))
            state = pool.state_dict(row.trial)
            assert state.keys() == expected.keys(), (state.keys(), expected.keys())
            largest = max(largest, *(_apart(tensor, expected[name]) for name, tensor in state.items()))
    reasons = [str(e.data["reason"]) for e in pool.drain_events() if e.kind in ("solo", "signature solo")]
    if reasons:
        return Verdict(False, reasons[0], 0.0, largest)
    return Verdict(True, "", gradients, largest)


def _candidate(entry: Entry, spec: TrialSpec, task: Work, signer: Signer) -> Candidate:
    recipe = rebuild(entry.define, spec, task)
    s = signer.sign(recipe)
    return Candidate(spec, recipe, lane_trial(spec, recipe, task.data.train.tensors[-1]), s.key, s.quantum, s.exact)


def _apart(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    return (a.double() - b.double()).abs().max().item() / max(1.0, b.double().abs().max().item())
