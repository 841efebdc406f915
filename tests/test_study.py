"""``tune`` from start to end on a small problem: what it returns, what it leaves alone, and that it repeats."""

from __future__ import annotations

import builtins
import multiprocessing
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils.data import Dataset, TensorDataset

import shoal
import shoal.winner
from shoal.errors import RecipeError, StorageError, StudyError, UsageError
from shoal.lanes.solo import measure
from shoal.records import Progress, TrialState

Pair = tuple[Tensor, Tensor]


def pair(n: int = 128, seed: int = 0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return x, x[:, :3].argmax(dim=1)


TRAIN, VALID, TEST = pair(), pair(64, 1), pair(64, 2)


def define(trial: Any) -> shoal.Recipe:
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[trial.suggest_categorical("activation", ["relu", "tanh"])]
    model = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 3))
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=32)


def tune(define: Callable[[Any], Any] = define, **more: Any) -> shoal.Study:
    keywords: dict[str, Any] = {"train": TRAIN, "valid": VALID, "n_trials": 6, "max_epochs": 2, "progress": False}
    # Two pools or one, fused or solo: on so small a problem that hangs on measured time, unless it is pinned.
    return shoal.tune(define, **{**keywords, "reproducible": True, **more})


def rows(study: shoal.Study) -> list[tuple[object, ...]]:
    return [
        (
            t.spec.number,
            tuple(t.spec.params.items()),
            t.state,
            t.value,
            tuple((r.epoch, r.train_loss, r.value) for r in t.rows),
        )
        for t in study.record.trials
    ]


def accuracy(model: nn.Module, data: Pair) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return VALID[0][index], int(VALID[1][index])


@pytest.mark.parametrize("value", ["last", "best"])
@pytest.mark.parametrize("storage", [None, "s.db"])
def test_the_best_model_is_what_the_best_value_was_measured_on(tmp_path: Path, value: str, storage: str | None) -> None:
    study = tune(value=value, max_epochs=6, storage=tmp_path / storage if storage else None, scheduler="none")
    best = study.best_trial
    values = [r.value for r in best.rows]
    assert study.best_value == (max(values) if value == "best" else values[-1]) == values[best.epoch - 1]
    assert accuracy(study.best_model(), VALID) == pytest.approx(study.best_value)
    assert study.best_value == max(t.value or 0.0 for t in study.record.trials)
    assert not study.best_model().training and study.best_params == best.spec.params
    assert not study.interrupted and "6 trials, 6 finished" in repr(study)


def test_best_keeps_an_epoch_that_was_better_than_the_last() -> None:
    # A learning rate that explodes after three epochs: the last epoch is the worst.
    def explodes(trial: Any) -> shoal.Recipe:
        recipe = define(trial)
        schedule = optim.lr_scheduler.LambdaLR(recipe.optimizer, lambda epoch: 1.0 if epoch < 3 else 1000.0)
        return shoal.Recipe(recipe.model, recipe.optimizer, recipe.loss, 32, schedule=schedule)

    study = tune(explodes, value="best", metric="loss", max_epochs=6, scheduler="none")
    best = study.best_trial
    assert best.epoch < 6 and best.value == min(r.value for r in best.rows) < best.rows[-1].value
    with torch.no_grad():
        loss = nn.functional.cross_entropy(study.best_model()(VALID[0]), VALID[1])
    assert float(loss) == pytest.approx(study.best_value, rel=1e-4)


@pytest.mark.parametrize(
    "splits",
    [
        {"train": TensorDataset(*TRAIN), "valid": Items(), "test": TensorDataset(*TEST)},
        {"train": tuple(t.numpy() for t in TRAIN), "valid": tuple(t.numpy() for t in VALID), "test": None},
        {"train": TRAIN, "valid": 0.25, "test": 0.25},
        {"train": list(TRAIN), "valid": None, "test": None},
    ],
)
def test_data_comes_in_many_forms(splits: dict[str, Any]) -> None:
    study = tune(**splits, n_trials=2, max_epochs=1)
    assert 0 <= study.best_value <= 1
    assert bool(study.test_metrics) == (splits["test"] is not None)


def test_the_test_set_is_measured_once_and_for_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    real = measure

    def counting(recipe: shoal.Recipe, data: Any, seed: int, **more: Any) -> Any:
        measured.append(len(data[0]))
        return real(recipe, data, seed, **more)

    monkeypatch.setattr(shoal.winner, "measure", counting)
    test = pair(48, 2)  # of another size than the validation set, which the winner is measured on too
    study = tune(test=test, storage=tmp_path / "s.db")
    assert measured.count(48) == 1
    assert study.test_metrics["accuracy"] == pytest.approx(accuracy(study.best_model(), test))
    again = tune(test=test, storage=tmp_path / "s.db")
    assert measured.count(48) == 1 and again.test_metrics == study.test_metrics


def test_what_comes_out_is_an_optuna_study(tmp_path: Path) -> None:
    for storage in (None, f"sqlite:///{tmp_path}/s.db"):
        study = tune(storage=storage)
        theirs = study.optuna_study
        assert theirs.best_params == study.best_params and theirs.best_value == study.best_value
        assert len(theirs.trials) == 6 and theirs.direction.name == "MAXIMIZE"
    assert optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/s.db").best_value == study.best_value


def test_data_frame_and_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    study = tune(n_trials=2, max_epochs=1)
    real = builtins.__import__

    def without(name: str, *args: Any, **keywords: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StudyError, match=r"needs pandas: run `pip install pandas`"):
        study.trials_dataframe()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    frame = study.trials_dataframe()
    assert len(frame) == 2 and {"number", "value", "params_lr", "state"} <= set(frame.columns)


def test_report(tmp_path: Path) -> None:
    path = tune(n_trials=2, max_epochs=1).report(tmp_path / "r.html")
    assert path == tmp_path / "r.html" and "<html" in path.read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_study() -> None:
    pinned: dict[str, Any] = {"n_trials": 10, "max_epochs": 4, "seed": 3}
    first, second, other = tune(**pinned), tune(**pinned), tune(**{**pinned, "seed": 4})
    assert rows(first) == rows(second) != rows(other)
    free = tune(**pinned, reproducible=False, sampler="random")
    assert [t.spec for t in free.record.trials] == [t.spec for t in tune(**pinned, sampler="random").record.trials]


def test_a_study_is_continued_with_more_trials_and_with_more_epochs(tmp_path: Path) -> None:
    short = tune(storage=tmp_path / "s.db", n_trials=4, scheduler="none")
    more = tune(storage=tmp_path / "s.db", n_trials=7, scheduler="none")
    assert rows(more)[:4] == rows(short) and len(rows(more)) == 7
    nothing = tune(storage=tmp_path / "s.db", n_trials=7, scheduler="none")
    assert rows(nothing) == rows(more) and nothing.record.events == more.record.events
    longer = tune(storage=tmp_path / "s.db", n_trials=7, max_epochs=5, scheduler="none")
    assert [t.spec for t in longer.record.trials] == [t.spec for t in more.record.trials]
    assert [len(t.rows) for t in longer.record.trials] == [5] * 7
    assert accuracy(longer.best_model(), VALID) == pytest.approx(longer.best_value)
    with pytest.raises(UsageError, match=r"trains up to 5 epochs; it cannot go on with fewer"):
        tune(storage=tmp_path / "s.db", n_trials=7, max_epochs=2)
    with pytest.raises(UsageError, match=r"max_epochs=2 is less than the study's 5"):
        shoal.resume(tmp_path / "s.db", define, train=TRAIN, valid=VALID, max_epochs=2)
    assert len(shoal.resume(tmp_path / "s.db", define, train=TRAIN, valid=VALID, progress=False).record.trials) == 7


def test_a_winner_that_trains_on_is_measured_anew(tmp_path: Path) -> None:
    common: dict[str, Any] = {"test": TEST, "storage": tmp_path / "s.db", "n_trials": 1, "scheduler": "none"}
    short = tune(**common, max_epochs=1)
    longer = tune(**common, max_epochs=6)
    assert longer.test_metrics != short.test_metrics
    assert longer.test_metrics["accuracy"] == pytest.approx(accuracy(longer.best_model(), TEST))


def test_a_time_limit_leaves_a_study_that_goes_on(tmp_path: Path) -> None:
    study = tune(storage=tmp_path / "s.db", timeout_s=1e-9)
    assert study.interrupted and study.timed_out and not study.record.trials
    with pytest.raises(StudyError, match=r"no trial of study 'shoal' has finished yet"):
        _ = study.best_value
    assert not tune(storage=tmp_path / "s.db").interrupted


def test_metrics_and_directions() -> None:
    def wrong(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(-1) != targets).float().mean())

    study = tune(metric=wrong, direction="minimize")
    assert study.best_value == min(t.value or 0.0 for t in study.record.trials)
    assert accuracy(study.best_model(), VALID) == pytest.approx(1 - study.best_value)
    assert study.optuna_study.direction.name == "MINIMIZE"
    assert tune(metric="loss").record.direction == "minimize" and tune(metric="f1").record.direction == "maximize"
    worst = tune(metric="accuracy", direction="minimize")
    assert worst.best_value == min(t.value or 0.0 for t in worst.record.trials)


@pytest.mark.parametrize("sampler", ["tpe", "random", optuna.samplers.RandomSampler(seed=0), None])
def test_samplers(sampler: Any) -> None:
    assert len(tune(sampler=sampler).record.trials) == 6


class Watching(optuna.samplers.RandomSampler):
    """Notes the states of the trials that it could learn from."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.seen: set[str] = set()

    def sample_independent(self, study: Any, *args: Any) -> Any:
        self.seen |= {t.state.name for t in study.get_trials(deepcopy=False)}
        return super().sample_independent(study, *args)


def test_samplers_see_stopped_trials_as_pruned(tmp_path: Path) -> None:
    sampler = Watching()
    study = tune(sampler=sampler, n_trials=40, max_epochs=6, storage=tmp_path / "s.db")
    states = {t.state for t in study.record.trials}
    assert TrialState.STOPPED in states and {"PRUNED", "RUNNING"} <= sampler.seen
    with pytest.raises(UsageError, match=r"started with a metric, sampler or scheduler object, which no file can hold"):
        shoal.resume(tmp_path / "s.db", define, train=TRAIN, valid=VALID)
    # Optuna sees the same in the file, with nothing of Shoal.
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/s.db")
    assert {t.state.name for t in stored.trials} == {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize("reproducible", [True, False])
def test_the_users_own_random_state_and_threads_are_left_alone(reproducible: bool) -> None:
    def draws(trial: Any) -> shoal.Recipe:
        random.random(), np.random.rand(), torch.rand(1)
        recipe = define(trial)
        model = nn.Sequential(nn.Dropout(0.1), recipe.model)
        return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 32)

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads())
    tune(draws, test=TEST, reproducible=reproducible, n_trials=32)
    after = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads())
    assert before == after


def test_from_a_thread(tmp_path: Path) -> None:
    found: list[shoal.Study] = []
    thread = threading.Thread(
        target=lambda: found.append(tune(storage=tmp_path / "s.db", reproducible=False, n_trials=16))
    )
    thread.start()
    thread.join(60)
    assert len(found[0].record.trials) == 16
    assert accuracy(found[0].best_model(), VALID) == pytest.approx(found[0].best_value)


def _in_a_process(path: str, queue: Any) -> None:
    queue.put(tune(storage=path, reproducible=False, n_trials=16).best_value)


@pytest.mark.parametrize("daemon", [True, False])
def test_from_a_spawned_process(tmp_path: Path, daemon: bool) -> None:
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_in_a_process, args=(str(tmp_path / "s.db"), queue), daemon=daemon)
    process.start()
    value = queue.get(timeout=120)
    process.join(30)
    assert process.exitcode == 0
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/s.db")
    assert stored.best_value == value


def test_progress_can_be_a_function() -> None:
    seen: list[Progress] = []
    tune(progress=seen.append)
    assert seen[-1].finished + seen[-1].stopped == 6 and seen[-1].n_trials == 6


def test_studies_that_cannot_be_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    tune(storage=path, n_trials=2, max_epochs=1)

    def other(trial: Any) -> shoal.Recipe:
        trial.suggest_float("momentum", 0, 1)
        return define(trial)

    for keywords, message in (
        ({"define": other}, "belongs to other code"),
        ({"train": VALID}, "started with other data"),
        ({"metric": "f1"}, "judged by 'accuracy', not by 'f1'"),
        ({"seed": 9}, "has seed=0, not 9"),
        ({"value": "best"}, "has value='last', not 'best'"),
        ({"direction": "minimize"}, "direction|maximize"),
    ):
        with pytest.raises(StorageError, match=message):
            tune(**{"storage": path, "n_trials": 4, "max_epochs": 1, **keywords})  # type: ignore[arg-type]
    assert len(tune(storage=path, n_trials=2, max_epochs=1).record.trials) == 2


SPACE: dict[str, list[Any]] = {"width": [4, 8]}


def test_another_search_space_behind_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_table(trial: Any) -> shoal.Recipe:
        model = nn.Linear(4, 3)
        trial.suggest_categorical("width", SPACE["width"])
        return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 32)

    tune(from_table, storage=tmp_path / "s.db", n_trials=2, max_epochs=1)
    monkeypatch.setitem(SPACE, "width", [4, 8, 16])
    # Either the fingerprint or the search space itself gives it away.
    with pytest.raises(shoal.ShoalError, match=r"search space has changed|other code"):
        tune(from_table, storage=tmp_path / "s.db", n_trials=4, max_epochs=1)


def test_a_metric_that_needs_outputs_which_the_loss_does_not_show() -> None:
    def opaque(trial: Any) -> shoal.Recipe:
        recipe = define(trial)
        return shoal.Recipe(recipe.model, recipe.optimizer, _opaque, 32)

    with pytest.raises(StudyError, match=r"trial 0: the metric 'accuracy' is measured on outputs.*add predict="):
        tune(opaque, metric="accuracy")
    assert tune(opaque, metric="loss").best_value > 0
    assert issubclass(RecipeError, UsageError)


def _opaque(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
