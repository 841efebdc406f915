"""`shoal.GradientRefine`: which parameters it follows, where it goes from the best points, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from torch import nn, optim

import shoal
from lanes_helpers import labels, made
from shoal._refining import moved
from shoal.errors import UsageError
from shoal.recipe import Recipe
from shoal.refine import SLOPES, GradientRefine, slopes_of
from shoal.samplers import resolve
from shoal.study import Study

X, Y = made(140, 6, dtype=torch.float32), labels(140, 3)
TRAIN, VALID = (X[:100], Y[:100]), (X[100:], Y[100:])
FOLLOWED = {"lr": ("slope/lr",), "decay": ("slope/weight_decay",), "p": ("slope/dropout",)}


def define(trial: Any) -> Recipe:
    width = trial.suggest_categorical("width", [8, 12])
    p = trial.suggest_float("p", 0.0, 0.6)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Dropout(p), nn.Linear(width, 3))
    lr, decay = trial.suggest_float("lr", 1e-4, 1.0, log=True), trial.suggest_float("decay", 1e-6, 1e-1, log=True)
    optimizer = optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), 20)


def run(sampler: Any, n_trials: int = 12, **options: Any) -> Study:
    given = {"train": TRAIN, "valid": VALID, "metric": "loss", "max_epochs": 3, "scheduler": "none", "progress": False}
    return shoal.tune(define, sampler=sampler, n_trials=n_trials, reproducible=True, **{**given, **options})


def params(study: Study) -> list[Mapping[str, Any]]:
    return [t.spec.params for t in study.record.trials]


REFINE = GradientRefine(wave=6, points=2, step=0.2, every=2)


def test_trials_after_the_wave_are_the_best_ones_moved_against_their_slopes(tmp_path: Path) -> None:
    study = run(REFINE, storage=tmp_path / "a.db")
    trials = study.record.trials
    assert {t.state.value for t in trials} == {"finished"}
    candidates = []
    for t in trials:
        slopes = slopes_of(t.rows, FOLLOWED)
        assert set(slopes) == set(FOLLOWED)
        frozen = optuna.trial.create_trial(
            value=t.value,
            params=dict(t.spec.params),
            distributions={n: optuna.distributions.json_to_distribution(d) for n, d in t.spec.distributions.items()},
            system_attrs={SLOPES: slopes},
        )
        candidates += [moved(frozen, 0.2 * length) for length in (1.0, 2.0, 0.5, 4.0, 0.25)]
    drawn = [t.spec.number for t in trials if dict(t.spec.params) not in candidates]
    assert drawn == list(range(6))
    paths = study.trajectories(0)
    assert set(paths) >= {path for names in FOLLOWED.values() for path in names}
    assert len(paths["slope/lr"].values) == 3
    # By name, with options, the same; and again after an interruption.
    options = {"name": "gradient_refine", "wave": 6, "points": 2, "step": 0.2, "every": 2}
    assert study.record.meta["options"]["sampler"] == options  # type: ignore[index, call-overload]
    run(options, 9, storage=tmp_path / "b.db")
    again = run(options, 10, storage=tmp_path / "b.db")
    assert params(again)[:6] == params(study)[:6]
    assert all(dict(p) in candidates for p in params(again)[6:])


def test_what_is_measured_changes_nothing_that_trains() -> None:
    enqueue = [{"lr": 0.1, "p": 0.3, "decay": 0.01, "width": 8}, {"lr": 0.02, "p": 0.1, "decay": 0.001, "width": 12}]
    with_slopes, without = (run(s, 2, enqueue=enqueue) for s in (REFINE, "random"))
    for a, b in zip(with_slopes.record.trials, without.record.trials, strict=True):
        assert [r.train_loss for r in a.rows] == [r.train_loss for r in b.rows]
        assert a.value == b.value


def test_a_move_goes_down_the_slope_in_scaled_parameters() -> None:
    ranges = {"lr": FloatDistribution(1e-4, 1.0, log=True), "p": FloatDistribution(0.0, 0.5)}
    trial = optuna.trial.create_trial(
        value=1.0,
        params={"lr": 1e-2, "p": 0.2, "act": "relu"},
        distributions={**ranges, "act": CategoricalDistribution(["relu", "tanh"])},
        system_attrs={SLOPES: {"lr": 30.0, "p": -8.0}},
    )
    went = moved(trial, 0.1)
    wide = math.log(1e4)
    along = {"lr": 30.0 * 1e-2 * wide, "p": -8.0 * 0.5}
    norm = math.hypot(*along.values())
    assert math.log(went["lr"]) == pytest.approx(math.log(1e-2) - 0.1 * wide * along["lr"] / norm)
    assert went["p"] == pytest.approx(0.2 - 0.1 * 0.5 * along["p"] / norm)
    assert went["act"] == "relu"
    far = moved(trial, 50.0)
    assert 1e-4 <= far["lr"] == pytest.approx(1e-4) and far["p"] == 0.5  # within the ranges
    trial.system_attrs[SLOPES] = {"lr": 0.0}
    assert moved(trial, 0.1)["lr"] == pytest.approx(1e-2)


def two_groups(trial: Any) -> Recipe:
    """A learning rate of a schedule, L1, smoothing, two dropouts of one rate; the momentum has no hypergradient."""
    p, lr = trial.suggest_float("p", 0.1, 0.5), trial.suggest_float("lr", 1e-3, 1e-1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(p), nn.Linear(8, 8), nn.Dropout(p), nn.Linear(8, 3))
    momentum = trial.suggest_float("momentum", 0.5, 0.9)
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.5 / (k + 1))
    loss = nn.CrossEntropyLoss(label_smoothing=trial.suggest_float("smoothing", 0.01, 0.2))
    return Recipe(model, optimizer, loss, 20, schedule, l1=trial.suggest_float("l1", 1e-6, 1e-3, log=True))


def test_parameters_are_found_in_the_recipes() -> None:
    assert GradientRefine().follow(define) == FOLLOWED
    assert GradientRefine().follow(two_groups) == {
        "p": ("slope/dropout/0", "slope/dropout/1"),
        "lr": ("slope/lr",),
        "smoothing": ("slope/label_smoothing",),
        "l1": ("slope/l1",),
    }


def linear(make: Callable[[Any, Any], optim.Optimizer], **recipe: Any) -> Callable[[Any], Recipe]:
    def define(trial: Any) -> Recipe:
        model = nn.Linear(6, 3)
        return Recipe(model, make(model.parameters(), trial), nn.CrossEntropyLoss(), 20, **recipe)

    return define


def rate(trial: Any) -> float:
    return float(trial.suggest_float("lr", 0.01, 1.0))


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: GradientRefine(wave=0), r"GradientRefine\(wave=...\) must be a whole number of at least 1, not 0"),
    (lambda: GradientRefine(points=True), r"GradientRefine\(points=...\) must be a whole number"),
    (lambda: GradientRefine(step=0), r"GradientRefine\(step=...\) must be a number above 0 and at most 1, not 0"),
    (
        lambda: GradientRefine(method="t2"),  # type: ignore[arg-type]
        r"GradientRefine\(method=...\) must be 't1t2', 'unrolled' or 'implicit', not 't2'",
    ),
    (lambda: GradientRefine(every=0), r"GradientRefine\(every=...\) must be a whole number of at least 1, not 0"),
    (lambda: resolve({"name": "gradient_refine", "waves": 3}), r"has no option 'waves'.*did you mean 'wave'"),
    (lambda: resolve("gradient_refin"), r"is not known.*did you mean 'gradient_refine'"),
    (
        lambda: GradientRefine().follow(linear(lambda p, t: optim.SGD(p, lr=0.1))),
        r"moves continuous hyperparameters.*no parameter is continuous. Use sampler='tpe'",
    ),
    (
        lambda: GradientRefine().follow(linear(lambda p, t: optim.SGD(p, lr=2 * rate(t)))),
        r"passed on by define\(\) as they are sampled; here lr cannot be followed",
    ),
    (
        lambda: GradientRefine().follow(linear(lambda p, t: optim.RMSprop(p, lr=rate(t)))),
        r"cannot measure a hypergradient of these recipes: .*not of RMSprop",
    ),
    (
        lambda: GradientRefine().follow(linear(lambda p, t: optim.SGD(p, lr=rate(t)), clip_norm=1.0)),
        r"cannot measure a hypergradient of these recipes: .*clipped update",
    ),
    (lambda: run(REFINE, valid=None, folds=3), r"leave folds= and seeds= out, or use 'tpe'"),
    (lambda: run(REFINE, seeds=2), r"leave folds= and seeds= out"),
    (lambda: run(REFINE, metric=["loss", "n_parameters"]), r"descends one loss, and the study has 2 objectives"),
]


@pytest.mark.parametrize(("call", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_bad_input(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"(?is){said}"):
        call()


def test_trials_without_a_derivative_fail_and_say_why() -> None:
    def either(trial: Any) -> Recipe:
        model, lr = nn.Linear(6, 3), rate(trial)
        known = trial.suggest_categorical("known", [True, False])
        optimizer = (optim.SGD if known else optim.RMSprop)(model.parameters(), lr=lr)
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 20)

    study = shoal.tune(
        either, train=TRAIN, valid=VALID, sampler=GradientRefine(wave=4), n_trials=8, max_epochs=1, progress=False
    )
    for t in study.record.trials:
        known = t.spec.params["known"]
        assert t.state.value == ("finished" if known else "failed")
        assert bool(slopes_of(t.rows, {"lr": ("slope/lr",)})) is known
        why = "not of RMSprop. Leave such recipes out of the search space, or use sampler='tpe'"
        assert known or ("cannot measure a hypergradient of this trial" in t.reason and why in t.reason)


def test_a_number_that_a_trial_lacks_is_not_measured() -> None:
    refine, followed = GradientRefine(), {"lr": ("slope/lr",), "decay": ("slope/weight_decay",)}
    recipe = refine.measuring(linear(lambda p, t: optim.SGD(p, lr=0.1)), followed, 40)(None)
    assert [e.HYPERPARAMETER for e in recipe.extensions] == ["lr"]


def test_options_can_be_stored() -> None:
    plan = resolve(GradientRefine(points=2))
    assert plan.as_json == {"name": "gradient_refine", "points": 2} == json.loads(json.dumps(plan.as_json))
    assert resolve("gradient_refine").as_json == "gradient_refine" and plan.learns and not plan.warms
