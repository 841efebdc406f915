"""Population-based training: who copies whom, in simulated time; and what a copy is, in lanes, alone and between processes."""

from __future__ import annotations

import math
import multiprocessing
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import Bench
from shoal.errors import UsageError
from shoal.lanes.copying import go_on, take
from shoal.lanes.solo import Solo
from shoal.lanes.workers import pools
from shoal.moving import space_of
from shoal.records import Copied, EpochRow, TrialRecord, TrialSpec, TrialState
from shoal.replay import run_define
from shoal.schedulers import (
    PB2,
    Decision,
    Observation,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    Space,
    resolve,
)
from shoal.schedulers._dimension import Dimension
from shoal.schedulers._gp import FadingGp
from shoal.schedules import Schedule, Step, schedules_of
from shoal.storage import load_study

NAN = math.nan
FLOAT = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}'


def pbt(max_epochs: int = 20, **options: Any) -> PopulationBasedTraining:
    made = PopulationBasedTraining(max_epochs, **{"perturbation_interval": 2, **options})
    made.begin(Space({"lr": FLOAT}), seed=0)
    return made


def wave(epoch: int, values: Sequence[float], lr: float = 0.1) -> list[Observation]:
    return [Observation(trial, epoch, value, {"lr": lr, "size": 8}) for trial, value in enumerate(values)]


def sources(scheduler: PopulationBasedTraining, rows: Sequence[Observation]) -> dict[int, int | None]:
    verdicts = scheduler.observe(rows)
    assert all(v.decision is Decision.COPY for v in verdicts.values())
    return {trial: v.source for trial, v in verdicts.items()}


@pytest.mark.parametrize(
    ("rows", "replaced", "allowed"),
    [
        (wave(2, [0, 1, 2, 3]), {3}, {0}),
        (wave(2, [3, 2, 1, 0, 4, 5, 6, 7]), {6, 7}, {3, 2}),
        (wave(2, [5, 5, 5, 5]), {3}, {0}),  # a tie goes to the lower number
        (wave(3, [0, 1, 2, 3]), set(), set()),  # between comparisons
        (wave(20, [0, 1, 2, 3]), set(), set()),  # at the end
        (wave(2, [0]), set(), set()),
        (wave(2, [1, 0]), {0}, {1}),
        (wave(3, [0, 1, NAN, 3]), {2}, {0}),  # who diverged is replaced at once
        (wave(2, [0, 1, NAN, NAN]), {2, 3}, {0}),
        (wave(3, [NAN, NAN]), set(), set()),
        (wave(20, [0, NAN]), set(), set()),
        # Only equal epochs are compared; but for want of others, anybody who is sound will do.
        ([*wave(2, [0, 1])[:1], Observation(1, 4, 9.0)], set(), set()),
        ([Observation(0, 2, 5.0), Observation(1, 3, NAN)], {1}, {0}),
    ],
)
def test_who_copies_whom(rows: list[Observation], replaced: set[int], allowed: set[int]) -> None:
    found = sources(pbt(), rows)
    assert set(found) == replaced and set(found.values()) <= allowed
    shuffled = random.Random(1).sample(rows, len(rows))
    assert sources(pbt(), shuffled) == found


def test_burn_in_and_seed() -> None:
    assert not pbt(burn_in_period=2).observe(wave(2, [0, 1, 2, 3]))
    rows = wave(4, range(16))
    assert sources(pbt(burn_in_period=2), rows) == sources(pbt(), rows)
    other = pbt()
    other.begin(Space({"lr": FLOAT}), seed=1)
    assert other.observe(rows) != pbt().observe(rows)


def test_what_moves_and_what_is_taken_over() -> None:
    rows = [replace(row, params={"lr": 0.1, "size": row.trial}) for row in wave(2, range(40))]
    verdicts = pbt(resample_probability=0.0).observe(rows)
    assert {round(float(v.params["lr"] or 0), 3) for v in verdicts.values()} == {0.08, 0.12}
    assert all(v.params["size"] == v.source for v in verdicts.values())
    drawn = {v.params["lr"] for v in pbt(resample_probability=1.0).observe(rows).values()}
    assert len(drawn) == 10 and all(0.001 <= float(lr or 0) <= 1.0 for lr in drawn)


DISTRIBUTIONS = st.one_of(
    st.builds(
        lambda low, width, log: optuna.distributions.FloatDistribution(low, low + width, log=log),
        st.floats(0.001, 10), st.floats(0.001, 100), st.booleans(),
    ),
    st.builds(
        lambda low, n, step: optuna.distributions.FloatDistribution(low, low + n * step, step=step),
        st.integers(-5, 5), st.integers(1, 9), st.sampled_from([0.125, 0.25, 2.0]),
    ),
    st.builds(
        lambda low, n, step: optuna.distributions.IntDistribution(low, low + n * step, step=step),
        st.integers(0, 50), st.integers(1, 40), st.integers(1, 7),
    ),
    st.just(optuna.distributions.CategoricalDistribution(["a", 1, 1.0, True, None])),
)  # fmt: skip


@given(DISTRIBUTIONS, st.integers(0, 10**6), st.lists(st.sampled_from([0.8, 1.2, 0.5, 2.0]), max_size=6))
@settings(max_examples=80, deadline=None)
def test_values_stay_in_their_range(distribution: Any, seed: int, factors: list[float]) -> None:
    dimension = Dimension.of(optuna.distributions.distribution_to_json(distribution))
    value = dimension.drawn(random.Random(seed))
    for factor in [1.0, *factors]:
        value = value if factor == 1.0 else dimension.near(value, factor)
        assert distribution._contains(distribution.to_internal_repr(value)), (distribution, value)
        if dimension.numeric:
            assert dimension.at(dimension.share(value)) == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_a_population_finds_what_no_fixed_choice_does() -> None:
    """Jaderberg et al., figure 2: each choice of h lets gradients see one of two parameters only."""
    h = '{"name": "CategoricalDistribution", "attributes": {"choices": [0, 1]}}'

    def loss(theta: Sequence[float]) -> float:
        return theta[0] ** 2 + theta[1] ** 2

    def trained(population: bool) -> float:
        scheduler = PopulationBasedTraining(100, perturbation_interval=5, hyperparameters=["h"])
        scheduler.begin(Space({"h": h}), seed=3)
        thetas, chosen = [[0.9, 0.9] for _ in range(4)], [{"h": i % 2} for i in range(4)]
        for epoch in range(1, 101):
            for theta, params in zip(thetas, chosen, strict=True):
                theta[params["h"]] *= 0.9
            rows = [
                Observation(i, epoch, loss(t), dict(p)) for i, (t, p) in enumerate(zip(thetas, chosen, strict=True))
            ]
            for trial, verdict in scheduler.observe(rows).items() if population else ():
                assert verdict.source is not None
                thetas[trial], chosen[trial] = [*thetas[verdict.source]], {"h": int(verdict.params["h"] or 0)}
        return min(map(loss, thetas))

    assert trained(population=False) == pytest.approx(0.81, abs=1e-3)
    assert trained(population=True) < 0.02


def test_a_bandit_moves_towards_what_improves() -> None:
    """What a trial gains per comparison is higher the nearer its x is to 0.7; random perturbation is far less sure of it."""
    x = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'

    def found(scheduler: PopulationBasedTraining) -> float:
        scheduler.begin(Space({"x": x}), seed=0)
        values, chosen = [10.0] * 8, [{"x": 0.05 * i} for i in range(8)]
        tried: list[float] = []
        for epoch in range(1, 25):
            values = [v - max(0.0, 1 - abs(p["x"] - 0.7)) for v, p in zip(values, chosen, strict=True)]
            rows = [Observation(i, epoch, v, dict(p)) for i, (v, p) in enumerate(zip(values, chosen, strict=True))]
            shuffled = random.Random(epoch + len(tried)).sample(rows, 8)
            for trial, verdict in scheduler.observe(shuffled).items():
                assert verdict.source is not None
                values[trial], chosen[trial] = values[verdict.source], {"x": float(verdict.params["x"] or 0)}
                tried.append(abs(chosen[trial]["x"] - 0.7))
        return sum(tried[-6:]) / 6

    bandit = found(PB2(30, perturbation_interval=2))
    assert bandit < 0.05 < found(PopulationBasedTraining(30, perturbation_interval=2))
    assert bandit == found(PB2(30, perturbation_interval=2))


@pytest.mark.parametrize("d", [1, 2])
def test_the_process_is_that_of_scikit_learn(d: int) -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    rng = np.random.default_rng(0)
    x, y, at = rng.random((30, d)), rng.standard_normal(30), rng.random((7, d))
    model = FadingGp(x, np.zeros(30), y, 0.4, 0.5, 0.2)  # all at one time: nothing fades
    theirs = GaussianProcessRegressor(RBF(0.4), alpha=0.2 + 1e-8, optimizer=None).fit(x, y)
    mean, deviation = theirs.predict(at, return_std=True)
    mine = model.predict(at, 0.0)
    np.testing.assert_allclose(mine[0], mean, rtol=1e-7)
    np.testing.assert_allclose(mine[1], deviation, rtol=1e-7)
    constant = 15 * math.log(2 * math.pi)
    assert model.log_likelihood - constant == pytest.approx(theirs.log_marginal_likelihood_value_)
    faded = model.predict(at, 4.0)[0]
    np.testing.assert_allclose(faded, mean * 0.5**2, rtol=1e-7)
    assert model.with_pending(at[0], 0.0).predict(at[:1], 0.0)[1][0] < deviation[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 1}, "max_epochs must be a whole number, 2 or more; got 1"),
        ({"perturbation_interval": 20}, "perturbation_interval must be below max_epochs, or nobody is ever replaced"),
        ({"quantile_fraction": 0.6}, "quantile_fraction must be a number above 0 and at most 0.5; got 0.6"),
        ({"resample_probability": -0.1}, "resample_probability must be a number at least 0 and at most 1"),
        ({"perturbation_factors": (0.8, 0.9)}, "perturbation_factors must be one number below 1 and one above"),
        ({"hyperparameters": "lr"}, "hyperparameters must be a list of names, not the text 'lr'"),
        ({"hyperparameters": ["lrr"]}, "pbt is to move 'lrr', which define\\(\\) does not ask for. Did you mean 'lr'"),
    ],
)
def test_what_pbt_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pbt(**{"max_epochs": 20, **options})


def test_schedules_are_read_backwards_through_copies(tmp_path: Path) -> None:
    def trial(number: int, *copies: tuple[int, int, float]) -> TrialRecord:
        moved = {epoch: Copied(source, {"lr": lr}, 7) for epoch, source, lr in copies}
        rows = tuple(EpochRow(number, e, 0.0, 0.0, {}, copied=moved.get(e)) for e in range(1, 7))
        return TrialRecord(TrialSpec(number, number, {"lr": float(number)}, {}), TrialState.FINISHED, 0.0, 6, "", rows)

    trials = (trial(0), trial(1, (2, 0, 0.5)), trial(2, (2, 1, 0.25), (4, 1, 0.125)), trial(3, (3, 3, 9.0)))
    found = schedules_of(shoal.StudyRecord("s", "minimize", trials, (), {}))
    assert {n: s.table() for n, s in found.items()} == {
        1: [(1, 0, {"lr": 0.0}), (3, 1, {"lr": 0.5})],
        2: [(1, 0, {"lr": 0.0}), (3, 1, {"lr": 0.5}), (5, 2, {"lr": 0.125})],
        3: [(1, 3, {"lr": 3.0}), (4, 3, {"lr": 9.0})],
    }
    assert trials[2].trained.params == {"lr": 0.125} and trials[2].trained.origin == 7
    assert found[2].moved == ("lr",) and found[2].at(2) == {"lr": 0.0}
    text = found[2].to_csv(tmp_path / "s.csv").read_text()
    assert text == "epoch,trial,lr\n1,0,0.0\n3,1,0.5\n5,2,0.125\n"
    with pytest.raises(UsageError, match=r"takes one of a study's schedules, as in study.schedules\[3\]; got \{\}"):
        PopulationBasedTrainingReplay({})  # type: ignore[arg-type]


# -- what a copy is -------------------------------------------------------------------------------------------------------------

G = torch.Generator().manual_seed(0)
X = torch.randn(96, 6, generator=G, dtype=torch.float64)
Y = X[:, :3].argmax(dim=1)
CPU = torch.device("cpu")
KINDS = ["sgd", "nadam", "prodigy", "one cycle"]


class Branches(nn.Module):
    """Looks at values to decide, so it has no lane form."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().abs().sum()) >= 0.0 else -x


def define(trial: Any) -> shoal.Recipe:
    width, batch = trial.suggest_categorical("width", [4, 5]), trial.suggest_int("batch", 16, 48, step=16)
    p, smoothing = trial.suggest_float("p", 0.05, 0.5), trial.suggest_float("smoothing", 0.01, 0.2)
    first = Branches() if trial.suggest_categorical("alone", [False, True]) else nn.Identity()
    norm = nn.BatchNorm1d(width) if trial.suggest_categorical("norm", [True, False]) else nn.Identity()
    model = nn.Sequential(first, nn.Linear(6, width), norm, nn.ReLU(), nn.Dropout(p), nn.Linear(width, 3))
    lr, kind = trial.suggest_float("lr", 1e-4, 1.0, log=True), trial.suggest_categorical("kind", KINDS)
    groups = [{"params": model[:3].parameters(), "lr": lr}, {"params": model[3:].parameters(), "lr": lr / 2}]
    model.double()
    optimizer: optim.Optimizer
    if kind == "sgd":
        optimizer = optim.SGD(groups, momentum=trial.suggest_float("momentum", 0.5, 0.9))
        schedule: Any = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    elif kind == "one cycle":  # which keeps its numbers in the parameter groups
        optimizer = optim.SGD(groups, momentum=0.9)
        schedule = optim.lr_scheduler.OneCycleLR(optimizer, [4 * lr, 2 * lr], total_steps=12, pct_start=0.4)
    elif kind == "nadam":
        optimizer, schedule = optim.NAdam(groups, weight_decay=trial.suggest_float("decay", 0.0, 0.1)), None
        schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    else:
        optimizer, schedule = shoal.optim.Prodigy(model.parameters(), lr=lr), None
    heavy = torch.tensor([1.0, 1.0, trial.suggest_float("heavy", 1.0, 4.0)], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(heavy, label_smoothing=smoothing)
    return shoal.Recipe(model, optimizer, loss, batch, schedule=schedule, l1=trial.suggest_float("l1", 1e-6, 1e-2))


BASE = {
    "width": 5,
    "batch": 32,
    "p": 0.2,
    "smoothing": 0.1,
    "norm": False,
    "momentum": 0.9,
    "decay": 0.01,
    "l1": 1e-4,
    "heavy": 2.0,
}
MOVED = {"lr": 0.03, "p": 0.4, "smoothing": 0.02, "momentum": 0.6, "decay": 0.1, "l1": 1e-3, "heavy": 3.0}


def spec(number: int, **params: Any) -> TrialSpec:
    return TrialSpec(number, 100 + number, {**BASE, **params}, {})


def epoch(pool: Any) -> dict[int, tuple[float, float]]:
    out = {}
    for m in pool.run_epoch():
        assert not m.error
        pool.epoch_done(m.trial, m.valid_loss, m.valid_loss)
        out[m.trial] = (m.train_loss, m.valid_loss)
    return out


def by_hand(bench: Bench, source: TrialSpec, target: TrialSpec) -> list[tuple[float, float]]:
    """Two epochs of one trial, then two of another that goes on from it, with nothing but torch's own means."""

    def run(solo: Solo) -> tuple[float, float]:
        m = solo.run_epoch()
        solo.recipe.step_schedule(loss=m.valid_loss, value=m.valid_loss)
        losses.append(m.valid_loss)
        return m.train_loss, m.valid_loss

    losses: list[float] = []
    first = Solo(source, bench.rebuild(source), bench.work)
    for _ in range(2):
        run(first)
    second = Solo(target, bench.rebuild(target), bench.work)
    mine, theirs = second.recipe, first.recipe
    mine.model.load_state_dict(theirs.model.state_dict())
    for loss in losses:
        mine.step_schedule(loss=loss, value=loss)
    learnt = theirs.optimizer.state_dict()
    groups = mine.optimizer.state_dict()["param_groups"]
    for ours, others in zip(groups, learnt["param_groups"], strict=True):
        ours.update({k: v for k, v in others.items() if k in ("k", "d", "d0", "d_max", "d_numerator", "updates")})
    mine.optimizer.load_state_dict({"state": learnt["state"], "param_groups": groups})
    second.epoch = 2
    return [run(second), run(second)]


@pytest.mark.filterwarnings("ignore:.*trains solo:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("alone", "count"), [(False, 1), (True, 1), (False, 2)], ids=["lanes", "solo", "two processes"]
)
def test_a_copy_goes_on_as_by_hand_and_neighbours_notice_nothing(kind: str, alone: bool, count: int) -> None:
    if count > 1 and (kind != "sgd" or "fork" not in multiprocessing.get_all_start_methods()):
        pytest.skip("once is enough, and workers are forked")
    bench = Bench(define, X, Y)
    specs = [spec(n, kind=kind, alone=alone, lr=0.01 * (n + 1), norm=kind == "nadam") for n in range(4)]
    # To the same fleet, and to another one, of another batch size.
    moved = [
        replace(specs[n], params={**specs[0].params, **MOVED, **more}, origin=100)
        for n, more in ((2, {}), (3, {"batch": 16}))
    ]
    with pools(bench.pool, bench.candidate, count) as pool:
        pool.admit([bench.candidate(s) for s in specs])
        straight = [epoch(pool) for _ in range(4)]
    with pools(bench.pool, bench.candidate, count) as pool:
        pool.admit([bench.candidate(s) for s in specs])
        epoch(pool), epoch(pool)
        wrong = replace(specs[1], params={**specs[0].params, "width": 4}, origin=100)
        assert pool.copy([(moved[0], 0), (moved[1], 0), (wrong, 0)]) == {2, 3}
        pool.admit([])
        assert pool.n_running == 4
        after = [epoch(pool), epoch(pool)]
        weights = pool.state_dict(2)
        for i in range(2):
            assert [after[i][n] for n in (0, 1)] == [straight[2 + i][n] for n in (0, 1)]
        for target in moved:
            expected = by_hand(bench, specs[0], target)
            found = [after[i][target.number] for i in range(2)]
            assert found == [pytest.approx(e, rel=1e-8) for e in expected]
    assert set(weights) == {n for n, _ in bench.rebuild(specs[0]).model.state_dict().items()}


class Centred(nn.Module):
    """A loss with a buffer that is given and one that it learns: it trains alone."""

    scale: Tensor
    center: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("center", torch.zeros(3, dtype=torch.float64))

    def forward(self, out: Tensor, target: Tensor) -> Any:
        with torch.no_grad():
            self.center.lerp_(out.mean(0), 0.1)
        return nn.functional.cross_entropy((out - self.center) * self.scale, target)


def centred(trial: Any) -> shoal.Recipe:
    model = nn.Linear(6, 3).double()
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), Centred(trial.params["scale"]), 32)


def test_of_a_loss_a_copy_takes_what_was_learnt_and_not_what_was_given() -> None:
    bench = Bench(centred, X, Y)
    specs = [TrialSpec(n, 100 + n, {"scale": 1.0 + n}, {}) for n in range(2)]
    pool = bench.pool()
    pool.admit([bench.candidate(s) for s in specs])
    epoch(pool)
    source: Any = pool.recipe(0).loss
    learnt = source.center.clone()
    moved = replace(specs[1], params={"scale": 5.0}, origin=100)
    held = take(pool, 0)
    assert held is not None and go_on(pool, [(bench.candidate(moved), held)]) == [""]
    loss: Any = pool.recipe(1).loss
    assert float(loss.scale) == 5.0
    torch.testing.assert_close(loss.center, learnt, rtol=0, atol=0)


# -- whole studies --------------------------------------------------------------------------------------------------------------


def small(trial: Any) -> shoal.Recipe:
    """Some widths, of which none can become another; what diverges now and then; one kind of trial without a lane form."""
    width = trial.suggest_categorical("width", [4, 5])
    first = Branches() if width == 5 else nn.Identity()
    model = nn.Sequential(first, nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3)).double()
    lr = trial.suggest_float("lr", 1e-3, 10.0, log=True)
    rate = lr if lr < 1.0 else math.inf
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=rate, momentum=0.9), nn.CrossEntropyLoss(), 32)


def tune(define: Any = small, **more: Any) -> shoal.Study:
    keywords: dict[str, Any] = {"train": (X, Y), "valid": (X, Y), "metric": "loss", "n_trials": 12, "max_epochs": 6}
    keywords |= {"reproducible": True, "progress": False, "sampler": "random", "scheduler": "pbt"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*trains solo", RuntimeWarning)
        return shoal.tune(define, **{**keywords, **more})


def curves(study: shoal.Study) -> list[Any]:
    return [[(r.value, r.copied) for r in t.rows] for t in study.record.trials]


def test_a_study_its_file_and_its_schedule(tmp_path: Path) -> None:
    study = tune(storage=tmp_path / "s.db", value="best")
    record = study.record
    lost = [t for t in record.trials if math.isnan(t.rows[0].value)]
    assert 0 < len(lost) < 8 and all(len(t.rows) > 1 and t.rows[0].copied for t in lost)  # and went on from others
    assert sum(t.state is TrialState.FINISHED for t in record.trials) >= 9
    copies = [e for e in record.events if e.kind == "copied"]
    assert len(copies) == sum(r.copied is not None for t in record.trials for r in t.rows) > 10
    winner = study.best_trial
    assert winner.trained.params["width"] == study.best_model()[1].out_features  # type: ignore[index]
    with torch.no_grad():
        loss = nn.functional.cross_entropy(study.best_model().double()(X), Y)
    assert float(loss) == pytest.approx(study.best_value, rel=1e-6)

    in_file = optuna.load_study(study_name="shoal", storage=f"sqlite:///{tmp_path / 's.db'}").trials[winner.spec.number]
    assert in_file.params == winner.spec.params  # those that it began with
    moves = [r for r in winner.rows if r.copied is not None]
    assert [m["after_epoch"] for m in in_file.user_attrs["schedule"]] == [r.epoch for r in moves]
    loaded = load_study(str(tmp_path / "s.db"))
    assert schedules_of(loaded) == study.schedules
    again = tune(value="best")
    assert repr(curves(again)) == repr(curves(study))

    schedule = study.schedules[winner.spec.number]
    followed = tune(scheduler=PopulationBasedTrainingReplay(schedule), n_trials=2, seed=5)
    for t in followed.record.trials:
        assert t.spec.params == schedule.first
        assert {r.epoch + 1: r.copied.params for r in t.rows if r.copied is not None} == {
            s.epoch: s.params for s in schedule.steps[1:]
        }
    with pytest.raises(UsageError, match="no script is written of a winner whose hyperparameters were changed"):
        study.export(tmp_path / "out")
    with pytest.raises(UsageError, match="has no single set of hyperparameters to train with again"):
        study.refit()


def test_seeds_are_copied_one_by_one() -> None:
    study = tune(seeds=2, n_trials=6, max_epochs=4)
    assert {t.state for t in study.record.trials} == {TrialState.FINISHED} and study.schedules
    assert all(len(r.lanes) == 2 for t in study.record.trials for r in t.rows)


def test_which_hyperparameters_can_move() -> None:
    space = space_of(lambda trial: run_define(define, trial, 0, 96))
    said = {name: why.split(" ")[2:5] for name, why in space.fixed.items()}
    assert set(space.fixed) == {"width", "norm", "kind"}, space.fixed
    assert said["width"] == ["the", "shape", "of"] and "decides which other" in space.fixed["kind"]
    assert space.on_request == {"batch"}
    scheduler = PopulationBasedTraining(9)
    scheduler.begin(space, 0)
    assert set(scheduler.moving) == {"p", "smoothing", "lr", "l1", "momentum", "decay", "heavy"}


def extended(trial: Any) -> shoal.Recipe:
    recipe = small(trial)
    return shoal.Recipe(recipe.model, recipe.optimizer, recipe.loss, 32, extensions=[shoal.extend.LearningRate()])


def still(trial: Any) -> shoal.Recipe:
    model = nn.Linear(6, trial.suggest_categorical("outputs", [3, 4])).double()
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 32)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (small, {"folds": 2, "valid": None}, "scheduler 'pbt' has no winner to train again on all folds"),
        (
            small,
            {"scheduler": PopulationBasedTraining(6, hyperparameters=["lr", "width"])},
            "pbt cannot move 'width' while a model trains: it changes the shape of the model's parameter '1.weight' from",
        ),
        (still, {}, "pbt finds no hyperparameter to move in define\\(\\) \\(outputs: it changes the shape"),
        (extended, {}, "a recipe with extensions moves hyperparameters by itself"),
        (
            small,
            {"scheduler": PopulationBasedTrainingReplay(Schedule(0, (Step(1, {"lrr": 0.1}, 0),)))},
            "the schedule names 'lrr', which define\\(\\) does not ask for. Did you mean 'lr'",
        ),
        (
            small,
            {
                "scheduler": PopulationBasedTrainingReplay(
                    Schedule(0, (Step(1, {"width": 4}, 0), Step(2, {"width": 5}, 0)))
                )
            },
            "the schedule moves 'width', which cannot move while a model trains: it changes the shape",
        ),
    ],
)
def test_what_tune_refuses(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tune(make, **options)


def test_by_name() -> None:
    assert repr(resolve("pbt", max_epochs=30, n_trials=8)) == "PopulationBasedTraining(30, perturbation_interval=3)"
