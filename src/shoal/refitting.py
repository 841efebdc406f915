"""The winner trained once more, on all rows but the test split's: for a study with folds its end, otherwise on request."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from shoal.data import Datasets
from shoal.errors import StudyError, UsageError
from shoal.lanes.fleet import Work
from shoal.lanes.solo import Solo
from shoal.preparing import Prepared
from shoal.records import TrialRecord, TrialSpec
from shoal.replay import Define, replay
from shoal.scores import Score, scores_of
from shoal.stages import counted
from shoal.weights import WeightStore
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
        preparation: What ``prepare=`` learnt from these samples, to prepare others with; None without.
    """

    model: nn.Module
    trial: int
    seed: int
    epochs: int
    n: int
    train_losses: tuple[float, ...]
    test_scores: Mapping[str, Score]
    preparation: object = None


def trained_again(
    trial: TrialRecord, spec: TrialSpec, define: Define, work: Work, epochs: int
) -> tuple[Solo, tuple[float, ...]]:
    """Train a trial's recipe from the start, in the plain loop, on all of ``work``'s training split.

    No row is left to watch it, so a schedule that watches the validation is shown what the trial measured after the same epoch
    (with folds, their mean): its rates fall when they fell then.

    Args:
        trial: The trial, with its rows.
        spec: Its own, perhaps under another seed.
        define: Of its study.
        work: The training split, all of which is trained on, metrics and device.
        epochs: To train for, 1 or more.

    Returns:
        The trial as it is then, and the mean training loss of each epoch, the last of them the first that is not finite.
    """
    train, losses = work.data.train, []
    solo = Solo(spec, replay(define, spec, train.n, train.form), replace(work, parts=None))
    recipe = solo.recipe
    for epoch in counted(range(epochs), "training the winner", epochs):
        losses.append(solo.train_epoch()[0])
        if not math.isfinite(losses[-1]):
            break
        if recipe.schedule is not None and recipe.schedule_every == "epoch":
            seen = trial.rows[min(epoch, len(trial.rows) - 1)]
            recipe.step_schedule(loss=seen.metrics["loss"], value=seen.value)
    return solo, tuple(losses)


def keep_trained(trial: TrialRecord, define: Define, work: Work, weights: WeightStore) -> None:
    """Train the winner of a study with folds for as many epochs as it was judged by, and keep its weights, unless they are kept.

    Args:
        trial: The winner.
        define: Of its study.
        work: Of all rows but the test split's.
        weights: Where they go.
    """
    number = trial.spec.number
    if number in weights:
        return
    assert trial.value is not None  # only a finished trial wins
    solo, losses = trained_again(trial, trial.spec, define, work, trial.epoch)
    if not math.isfinite(losses[-1]):
        warnings.warn(
            f"trial {number} won, but its loss was not finite in epoch {len(losses)} of training on all folds together: "
            "best_model() is of no use. Try study.refit(seed=1), or another range of learning rates.",
            RuntimeWarning,
            stacklevel=2,
        )
    weights.offer(number, trial.values, solo.state_dict)


def refit(
    best: TrialRecord,
    define: Define,
    work: Work,
    prepared: Prepared,
    *,
    epochs: int | None = None,
    seed: int | None = None,
) -> Refit:
    """Train a trial's recipe from the start on train + valid, which are prepared as one.

    There is no validation split left to stop by, so it trains for as many epochs as the trial was judged by.

    Args:
        best: The trial.
        define: Of its study.
        work: Metrics and device.
        prepared: The study's data.
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
    joined, preparation = prepared.joined()
    data: Datasets = joined.to(work.device)
    spec = best.spec if seed is None else replace(best.spec, seed=seed)
    solo, losses = trained_again(best, spec, define, replace(work, data=data), best.epoch if epochs is None else epochs)
    if not math.isfinite(losses[-1]):
        raise StudyError(
            f"trial {spec.number}: its loss was not finite in epoch {len(losses)} of the refit. Try another seed: refit(seed=1)."
        )
    recipe = solo.recipe
    scores = {} if data.test is None else scores_of(look_at(recipe, data.test, work.metrics, spec.seed)[2])
    recipe.model.eval().cpu()
    learnt = None if preparation is None else preparation.objects
    return Refit(recipe.model, spec.number, spec.seed, len(losses), data.train.n, losses, scores, learnt)
