"""The winner trained once more, on the training and the validation split together: what one would put to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from shoal.data import Datasets, Split
from shoal.errors import StudyError, UsageError
from shoal.lanes.fleet import Work
from shoal.lanes.solo import Solo
from shoal.records import TrialRecord
from shoal.replay import Define, replay
from shoal.scores import Score, scores_of
from shoal.winner import look_at


@dataclass(frozen=True, slots=True)
class Refit:
    """A winner that was trained on all samples but those of the test split.

    Attributes:
        model: Trained, in evaluation mode, on the CPU.
        trial: Whose hyperparameters it has.
        seed: Of its initial weights, orders and draws.
        epochs: It was trained for.
        n: Samples it was trained on.
        train_losses: Mean training loss of each epoch.
        test_scores: Metric -> its score on the test split; empty without one.
    """

    model: nn.Module
    trial: int
    seed: int
    epochs: int
    n: int
    train_losses: tuple[float, ...]
    test_scores: Mapping[str, Score]


def refit(
    best: TrialRecord, define: Define, work: Work, *, epochs: int | None = None, seed: int | None = None
) -> Refit:
    """Train a trial's recipe from the start on train + valid.

    There is no validation split left to stop by, so it trains for as many epochs as the trial was judged by. A
    ``ReduceLROnPlateau`` is shown what the trial measured, epoch by epoch: its rates fall when they fell then.

    Args:
        best: The trial.
        define: Of its study.
        work: Splits, metrics and device.
        epochs: By default the epoch that the trial was judged by.
        seed: By default the trial's own.

    Raises:
        UsageError: If ``epochs`` or ``seed`` is no whole number, or the trial's hyperparameters moved.
        StudyError: If the loss does not stay finite.
    """
    for name, given, least in (("epochs", epochs, 1), ("seed", seed, 0)):
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < least):
            raise UsageError(f"refit({name}=...) must be a whole number of at least {least}, or None; got {given!r}.")
    if any(row.copied is not None for row in best.rows):
        raise UsageError(
            f"trial {best.spec.number} has no single set of hyperparameters to train with again: they were changed on the way. "
            f"Use tune() with scheduler=shoal.schedulers.PopulationBasedTrainingReplay(study.schedules[{best.spec.number}])."
        )
    data = work.data
    both = data.train  # with folds, all rows that are no test rows
    if work.parts is None or not work.parts.folds:
        tensors = zip(data.train.tensors, data.valid.tensors, strict=True)
        both = Split(tuple(torch.cat(pair) for pair in tensors), data.train.names)
    spec = best.spec if seed is None else replace(best.spec, seed=seed)
    all_of_it = Work(Datasets(both, data.valid, data.test, data.fingerprint, data.held_out), work.metrics, work.device)
    solo = Solo(spec, replay(define, spec, both.n, both.form), all_of_it)
    recipe, losses = solo.recipe, []
    for epoch in range(best.epoch if epochs is None else epochs):
        losses.append(solo.train_epoch()[0])
        if losses[-1] - losses[-1] != 0:
            raise StudyError(
                f"trial {spec.number}: its loss was not finite in epoch {epoch + 1} of the refit. Try another seed: "
                "refit(seed=1)."
            )
        if recipe.schedule is not None and recipe.schedule_every == "epoch":
            seen = best.rows[min(epoch, len(best.rows) - 1)]
            recipe.step_schedule(loss=seen.metrics["loss"], value=seen.value)
    scores = {} if data.test is None else scores_of(look_at(recipe, data.test, work.metrics, spec.seed)[2])
    recipe.model.eval().cpu()
    return Refit(recipe.model, spec.number, spec.seed, len(losses), both.n, tuple(losses), scores)
