"""Samplers by name, grids, enqueued trials and warm starts: what they take, what they refuse, and that they repeat."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn, optim

import shoal
from shoal.asking import Asker
from shoal.errors import UsageError
from shoal.records import TrialRecord, TrialResult, TrialSpec, TrialState
from shoal.samplers import NAMES, quiet, resolve
from shoal.spaces import Grid, check_points, point_key, probe

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(dim=1)


def discrete(trial: Any) -> None:
    trial.suggest_int("depth", 1, 5, step=2)
    trial.suggest_categorical("activation", ["relu", "tanh"])


def continuous(trial: Any) -> None:
    discrete(trial)
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_float("dropout", 0.0, 0.5)


def branching(trial: Any) -> None:
    if trial.suggest_categorical("kind", ["a", "b"]) == "a":
        trial.suggest_int("n", 1, 3)
    else:
        trial.suggest_categorical("flag", [True, False])


def specs(asker: Asker, define: Callable[[Any], None], n: int, *, first: int = 0) -> list[TrialSpec]:
    out = []
    for number in range(first, first + n):
        trial = asker.ask()
        define(trial)
        out.append(asker.spec(trial))
        if number % 4:  # some are still running when the next is asked for
            asker.tell(result(out[-1]))
    return out


def result(spec: TrialSpec) -> TrialResult:
    value = float(spec.params["depth"]) + float(spec.params.get("lr") or 0.0)  # type: ignore[arg-type]
    return TrialResult(spec.number, (TrialState.FINISHED, TrialState.STOPPED)[spec.number % 2], value, 3)


LEARNERS = ("tpe", "gp", "cmaes", "nsgaii", "nsgaiii")


# One looks at recipes, which there are none of here: tests/test_refine.py.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "gradient_refine"])
def test_every_name_repeats_under_its_seed(name: str) -> None:
    define = discrete if name in ("grid", "brute_force") else continuous
    n = {"gp": 14, "grid": 6, "brute_force": 6}.get(name, 25)

    def run(seed: int) -> list[TrialSpec]:
        return specs(Asker(name, "minimize", seed, define=define), define, n)

    assert run(0) == run(0) != run(1)
    assert Asker(name, "minimize", 0, define=define).learns == (name in LEARNERS)


@pytest.mark.parametrize("name", ["tpe", "random", "grid", "qmc", "gp"])
def test_a_restored_study_is_asked_for_what_it_would_have_been(name: str) -> None:
    define = discrete if name == "grid" else continuous
    before, after = (4, 2) if name == "grid" else (13, 3)
    whole = Asker(name, "minimize", 3, define=define)
    records = []
    for s in specs(whole, define, before):
        r = result(s)
        running = s.number % 4 == 0
        records.append(
            TrialRecord(s, TrialState.RUNNING, None, 0, "", ())
            if running
            else TrialRecord(s, r.state, r.value, 3, "", ())
        )
    restored = Asker(name, "minimize", 3, define=define)
    restored.restore(records)
    assert specs(restored, define, after, first=before) == specs(whole, define, after, first=before)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_options_reach_the_sampler() -> None:
    plan = resolve({"name": "tpe", "n_startup_trials": 3, "multivariate": False})
    assert plan.fresh is not None and plan.as_json == {"name": "tpe", "n_startup_trials": 3, "multivariate": False}
    sampler: Any = plan.fresh(0, 1)
    assert type(sampler) is optuna.samplers.TPESampler and sampler._n_startup_trials == 3
    assert resolve({"name": "nsgaii", "crossover": optuna.samplers.nsgaii.UniformCrossover()}).as_json is None
    assert resolve(optuna.samplers.QMCSampler(seed=0, scramble=True)).learns is False


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("cma-es", "sampler='cma-es' is not known. Did you mean 'cmaes'"),
        ({"n_startup_trials": 3}, 'needs a "name", such as "tpe"'),
        ({"name": "tpe", "startup": 3}, "sampler='tpe' has no option 'startup'."),
        ({"name": "tpe", "seed": 3}, "give tune(seed=...) instead"),
        ({"name": "qmc", "qmc_type": "sobbol"}, "sampler='qmc' does not take {'qmc_type': 'sobbol'}"),
        ({"name": "grid", "sace": {}}, "sampler='grid' has no option 'sace'. Did you mean 'space'"),
        (3, "must be a name, a dict with a name, or an optuna.samplers object, not int"),
        (optuna.samplers.TPESampler, "sampler=TPESampler is a class: pass an object, TPESampler(...)."),
    ],
)
def test_what_is_no_sampler(sampler: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(sampler)
    assert message in str(caught.value)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_objects_that_try_everything_once_are_asked_by_name() -> None:
    grid = resolve(optuna.samplers.GridSampler({"lr": [0.1, 0.2], "width": [4]}))
    assert (grid.name, grid.learns, grid.options) == ("grid", False, {"space": {"lr": [0.1, 0.2], "width": [4]}})
    assert resolve(optuna.samplers.BruteForceSampler()).name == "brute_force"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"sampler='cmaes' needs cmaes: run `pip install cmaes`"):
        resolve("cmaes")


# -- spaces and grids -----------------------------------------------------------------------------------------------------


def test_a_probe_finds_every_branch() -> None:
    def raises_sometimes(trial: Any) -> None:
        branching(trial)
        if trial.params.get("flag"):
            raise ValueError

    for define in (branching, raises_sometimes):
        space, always = probe(define)
        assert set(space) == {"kind", "n", "flag"} and always == {"kind"}


def test_a_grid_is_every_combination_once_in_an_order_of_its_seed() -> None:
    space, always = probe(continuous)
    given = {"lr": [1e-3, 1e-2], "dropout": (0.0, 0.25, 0.5)}
    grid = Grid.of(space, always, given, seed=1)
    points = [tuple(sorted(grid.point(i).items())) for i in range(len(grid))]
    assert len(grid) == len(set(points)) == 3 * 2 * 2 * 3
    other = Grid.of(space, always, given, seed=2)
    assert [other.point(i) for i in range(36)] != [grid.point(i) for i in range(36)]


@pytest.mark.parametrize(
    ("define", "given", "message"),
    [
        (continuous, {}, "needs values for dropout, lr, which may be any number"),
        (continuous, {"lrr": [0.1]}, "names 'lrr', which define() does not ask for. Did you mean 'lr'"),
        (continuous, {"lr": []}, "values of 'lr' must be a list of at least one value"),
        (continuous, {"lr": [1.0]}, "the grid's value 1.0 of 'lr' is not in FloatDistribution"),
        (discrete, {"activation": ["gelu"]}, "the grid's value 'gelu' of 'activation' is not in"),
        (branching, {}, "but flag, n depends on others; use sampler='brute_force'"),
        (
            lambda trial: [trial.suggest_int(f"x{i}", 0, 9) for i in range(7)],
            {},
            "10,000,000 points, more than 1,000,000",
        ),
    ],
)
def test_what_is_no_grid(define: Callable[[Any], None], given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Asker({"name": "grid", "space": given}, "minimize", 0, define=define)
    assert message in str(caught.value)


def test_configurations_are_the_same_when_all_of_it_is() -> None:
    def key(params: dict[str, Any], **distributions: Any) -> object:
        return point_key(params, {k: optuna.distributions.distribution_to_json(d) for k, d in distributions.items()})

    flag, n, lr = CategoricalDistribution([1, True]), IntDistribution(0, 3), FloatDistribution(0, 1, step=0.5)
    assert key({"f": 1, "n": 2}, f=flag, n=n) == key({"n": 2, "f": 1}, n=n, f=flag)
    assert key({"f": 1}, f=flag) != key({"f": True}, f=flag) and key({"x": 0.5}, x=lr) is not None
    assert key({"x": 0.5, "n": 1}, x=FloatDistribution(0, 1), n=n) is None and key({}) is None


# -- in a study -----------------------------------------------------------------------------------------------------------


def recipe(lr: float, activation: str = "relu") -> shoal.Recipe:
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    model = nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 3))
    return shoal.Recipe(model, optim.Adam(model.parameters(), lr=lr), nn.CrossEntropyLoss(), 32)


def small(trial: Any) -> shoal.Recipe:
    lr = trial.suggest_categorical("lr", [0.001, 0.01, 0.1])
    return recipe(lr, trial.suggest_categorical("activation", ["relu", "tanh"]))


def branches(trial: Any) -> shoal.Recipe:
    if trial.suggest_categorical("kind", ["fixed", "free"]) == "fixed":
        return recipe(0.01)
    return recipe(
        trial.suggest_categorical("lr", [0.001, 0.1]), trial.suggest_categorical("activation", ["relu", "tanh"])
    )


def wide(trial: Any) -> shoal.Recipe:
    return recipe(
        trial.suggest_float("lr", 1e-3, 1e-1, log=True), trial.suggest_categorical("activation", ["relu", "tanh"])
    )


def tune(define: Callable[[Any], shoal.Recipe], **more: Any) -> shoal.Study:
    keywords: dict[str, Any] = {"train": (X, Y), "valid": (X, Y), "metric": "loss", "n_trials": 20, "max_epochs": 2}
    return shoal.tune(define, **{**keywords, "progress": False, "reproducible": True, **more})


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("define", "sampler", "n_points"),
    [
        (small, "grid", 6),
        (small, "brute_force", 6),
        (branches, "brute_force", 5),
        (small, {"name": "grid", "space": {"lr": [0.01, 0.1]}}, 4),
        (small, optuna.samplers.GridSampler({"lr": [0.01, 0.1], "activation": ["relu"]}, seed=0), None),
    ],
)
def test_a_space_that_is_tried_out_ends_the_study(
    define: Any, sampler: Any, n_points: int | None, tmp_path: Path
) -> None:
    study = tune(define, sampler=sampler, storage=tmp_path / "s.db")
    points = [tuple(sorted(t.spec.params.items())) for t in study.record.trials]
    assert not study.interrupted and {t.state for t in study.record.trials} == {TrialState.FINISHED}
    if n_points is None:  # an object of the user's is asked ahead, and says only afterwards that it is done
        assert 2 <= len(points) <= 20
        return
    assert len(points) == len(set(points)) == n_points
    again = shoal.resume(tmp_path / "s.db", define, train=(X, Y), valid=(X, Y), n_trials=30, progress=False)
    assert len(again.record.trials) == n_points and not again.interrupted


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii"])
def test_no_configuration_runs_twice_at_once_where_there_are_enough(sampler: str) -> None:
    def define(trial: Any) -> shoal.Recipe:
        trial.suggest_int("unused", 1, 8)
        return small(trial)

    study = tune(define, sampler=sampler, n_trials=24, max_epochs=1)
    first = [tuple(sorted(t.spec.params.items())) for t in study.record.trials]
    assert len(set(first)) >= 23  # 48 points: ten more tries miss a free one once in 20,000 at worst
    replicates = tune(small, sampler=sampler, n_trials=12, max_epochs=1)
    assert len(replicates.record.trials) == 12  # six points only: run again under other seeds
    values = {(tuple(t.spec.params.items()), t.value) for t in replicates.record.trials}
    assert len(values) == 12


def test_enqueued_trials_come_first(tmp_path: Path) -> None:
    enqueue = [{"lr": 0.05, "activation": "tanh"}, {"lr": 0.002}]
    study = tune(wide, enqueue=enqueue, storage=tmp_path / "s.db", n_trials=4)
    params = [t.spec.params for t in study.record.trials]
    assert params[0] == enqueue[0] and params[1]["lr"] == 0.002 and params[2]["lr"] not in (0.05, 0.002)
    more = shoal.resume(tmp_path / "s.db", wide, train=(X, Y), valid=(X, Y), n_trials=6, progress=False)
    assert [t.spec.params for t in more.record.trials][:4] == params
    with_grid = tune(small, sampler="grid", enqueue=[{"lr": 0.1, "activation": "relu"}])
    assert len(with_grid.record.trials) == 7


@pytest.mark.parametrize(
    ("define", "enqueue", "message"),
    [
        (wide, {"lr": 0.1}, "enqueue must be a list of dicts, one per trial"),
        (
            wide,
            [{"lr": 0.01}, {"lrr": 0.1}],
            "enqueue[1] sets 'lrr', which define() does not ask for with these parameters.",
        ),
        (wide, [{"lr": 5.0}], "enqueue[0]: lr=5.0 is not in FloatDistribution"),
        (wide, [["lr"]], "enqueue[0] must be a dict of parameter names and values"),
        (wide, [{"activation": "gelu"}], "enqueue[0]: define() raised ValueError"),
        (branches, [{"kind": "fixed", "lr": 0.1}], "enqueue[0] sets 'lr', which define() does not ask for"),
    ],
)
def test_points_that_cannot_be_enqueued(define: Any, enqueue: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        tune(define, enqueue=enqueue)
    assert message in str(caught.value)
    check_points(branches, [{"kind": "free", "lr": 0.1}, {"kind": "fixed"}, {}])


@pytest.mark.parametrize("in_file", [False, True])
def test_a_warm_start_is_learnt_from_and_leaves_no_trace(in_file: bool, tmp_path: Path) -> None:
    earlier = tune(wide, storage=tmp_path / "old.db" if in_file else None)
    given: Any = tmp_path / "old.db" if in_file else earlier
    cold, warm = tune(wide, n_trials=12), tune(wide, n_trials=12, warm_start=given, storage=tmp_path / "new.db")
    assert (
        [t.spec.number for t in warm.record.trials] == list(range(12)) == [t.number for t in warm.optuna_study.trials]
    )
    # Ten trials are drawn at random without it; with it, TPE begins at once.
    assert [t.spec.params for t in warm.record.trials] != [t.spec.params for t in cold.record.trials]
    assert [t.spec.seed for t in warm.record.trials] == [t.spec.seed for t in cold.record.trials]
    again = tune(wide, n_trials=12, warm_start=earlier)
    assert [t.spec for t in again.record.trials] == [t.spec for t in warm.record.trials]
    assert [t.number for t in again.optuna_study.trials] == list(range(12))
    keywords: dict[str, Any] = {"train": (X, Y), "valid": (X, Y), "progress": False, "n_trials": 14}
    if in_file:
        assert len(shoal.resume(tmp_path / "new.db", wide, **keywords).record.trials) == 14
    else:
        with pytest.raises(UsageError, match="started warm from a study in memory, which no file can hold"):
            shoal.resume(tmp_path / "new.db", wide, **keywords)


def test_a_warm_start_from_another_space_leaves_out_what_differs() -> None:
    def narrower(trial: Any) -> shoal.Recipe:
        assert trial.number < 4
        lr = trial.suggest_float("lr", 1e-3, 1e-2, log=True)
        return recipe(lr, trial.suggest_categorical("activation", ["tanh", "relu"]))

    study = tune(narrower, n_trials=4, warm_start=tune(wide))
    assert all(0.001 <= float(t.spec.params["lr"] or 0) <= 0.01 for t in study.record.trials)


def test_warm_starts_that_make_no_sense() -> None:
    earlier = tune(wide, n_trials=2)
    with pytest.raises(UsageError, match=r"warm_start does nothing for sampler='random'.*use 'tpe' or 'gp'"):
        tune(wide, warm_start=earlier, sampler="random")
    with pytest.raises(UsageError, match=r"it had 'loss' to minimize, this one has 'accuracy' to maximize"):
        tune(wide, warm_start=earlier, metric="accuracy")


def test_what_was_picked_is_said_in_one_line() -> None:
    said: list[str] = []
    tune(wide, max_epochs=4, n_trials=40, progress=lambda p: said.append(p.message))
    (line,) = {text for text in said if text}
    assert line.startswith(
        "picked sampler tpe (learns from trials as they end, 32 at a time) and scheduler asha (at epochs 1"
    )
    said.clear()
    tune(wide, n_trials=3, progress=lambda p: said.append(p.message))
    assert "all 3 trials start at once" in said[0] and "scheduler none (nothing to save" in said[0]
    said.clear()
    tune(wide, n_trials=3, sampler="random", progress=lambda p: said.append(p.message))
    assert not any(said)


def test_quiet_mutes_optuna_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    theirs, mine = logging.getLogger("optuna.study"), logging.getLogger("mine")
    optuna.logging.enable_propagation()
    level = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        with quiet(), quiet():
            theirs.warning("a line of Optuna's")
            theirs.error("an error")
            mine.warning("a line of the user's")
        theirs.info("heard again")
    finally:
        optuna.logging.set_verbosity(level)
        optuna.logging.disable_propagation()
    heard = list(dict.fromkeys(r.getMessage() for r in caplog.records))
    assert heard == ["an error", "a line of the user's", "heard again"]
