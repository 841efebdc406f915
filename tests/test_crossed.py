"""The equality table, crossed: every pair of values of optimizer, schedule, batch size, dtype, width, order of refills and kind of
model trains in some lane, and is equal to the plain loop. The design is the same each time.

All losses have class weights of the trial's own and an ``ignore_index``. There are 50 samples: batches of 40 are two micro-batches
of 20, batches of 20 are one, so that both share a fleet; the last batch of each is partial.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as lrs

from lanes_helpers import assert_close, assert_same_trail, class_data, specs_of, train_fused, train_solo, work_of
from optimizer_tables import MORE, OPTIMIZERS
from shoal.recipe import Recipe

EPOCHS, SAMPLES, IGNORED = 2, 50, -1
CHOSEN = [
    *(
        "momentum",
        "maximize",
        "rmsprop momentum",
        "rmsprop centered",
        "adam l2",
        "adamw",
        "groups",
        "groups sgd",
        "asgd",
    ),
    *("amsgrad l2", "nadam l2", "radam short", "adamax l2", "adagrad all", "adadelta all", "rprop"),
]
MAKE = {name: {**OPTIMIZERS, **MORE}[name] for name in CHOSEN}


def steps(batch: int) -> int:
    return -(-SAMPLES // batch)


SCHEDULES: dict[str, tuple[Literal["epoch", "step"], Callable[[Any, int], Any]]] = {
    "none": ("epoch", lambda o, n: None),
    "exponential": ("epoch", lambda o, n: lrs.ExponentialLR(o, 0.5)),
    "plateau": ("epoch", lambda o, n: lrs.ReduceLROnPlateau(o, patience=0, threshold=0.9)),
    "lambda per step": ("step", lambda o, n: lrs.LambdaLR(o, lambda k: 1.0 / (1 + k))),
    "cyclic": ("step", lambda o, n: lrs.CyclicLR(o, 1e-3, 0.01, step_size_up=2, cycle_momentum=False)),
    "one cycle": (
        "step",
        lambda o, n: lrs.OneCycleLR(o, 0.01, total_steps=EPOCHS * n + 1, cycle_momentum="momentum" in o.defaults),
    ),
    "chained": ("epoch", lambda o, n: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.3, 1), lrs.CosineAnnealingLR(o, 3)])),
}
FLEET: dict[str, tuple[Any, ...]] = {
    "dtype": (torch.float64, torch.float32),
    "width": (1, 2, 7, 32),
    "refills": ("in order", "backwards", "early stops"),
    "model": ("plain", "dropout", "norm"),
}
TRIAL: dict[str, tuple[Any, ...]] = {
    "optimizer": tuple(MAKE),
    "schedule": tuple(SCHEDULES),
    "batch": (20, 40),
}
Row = dict[str, Any]
# Rprop goes by signs alone: in float32, one that rounding turns is a step in the other direction.
FORBIDDEN = {(("dtype", torch.float32), ("optimizer", "rprop"))}


def pairs(row: Row) -> Iterator[tuple[Any, ...]]:
    yield from itertools.combinations(row.items(), 2)


def allowed(row: Row) -> bool:
    return not FORBIDDEN & set(pairs(row))


def covering(factors: dict[str, tuple[Any, ...]], wanted: set[tuple[Any, ...]], fixed: list[Row]) -> list[Row]:
    """Rows with all wanted pairs: those that some pair asks for, each filled up with what brings most that is new.

    Args:
        fixed: What rows may begin with.
    """
    left, rows = dict.fromkeys(sorted(wanted, key=repr)), list[Row]()
    held = [0] * len(fixed)
    while left:
        pair = dict(next(iter(left)))
        best: tuple[tuple[int, int], int, Row] | None = None
        for k, start in enumerate(fixed):
            if any(start.get(name, value) != value for name, value in pair.items()):
                continue
            row = {**start, **pair}
            for name in (name for name in factors if name not in row):
                gains = {v: sum(p in left for p in pairs(ordered({**row, name: v}))) for v in factors[name]}
                row[name] = max(gains, key=lambda v, gains=gains: gains[v])  # type: ignore[misc]
            if not allowed(row := ordered(row)):
                continue
            gain = (sum(p in left for p in pairs(row)), -held[k])  # of those that bring as much, the emptiest fleet
            if best is None or gain > best[0]:
                best = gain, k, row
        assert best is not None, pair
        _, k, row = best
        held[k] += 1
        rows.append(row)
        for p in pairs(row):
            left.pop(p, None)
    return rows


def ordered(row: Row) -> Row:
    return {name: row[name] for name in (*FLEET, *TRIAL) if name in row}


def every_pair(factors: dict[str, tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    names = itertools.combinations(factors, 2)
    return {((a, x), (b, y)) for a, b in names for x in factors[a] for y in factors[b]}


def design() -> list[tuple[Row, list[Row]]]:
    """Fleets, and the trials of each. A norm's batches are whole, so that each of its fleets has one batch size."""
    fleets: list[Row] = []
    left, every = every_pair(FLEET), [dict(zip(FLEET, v, strict=True)) for v in itertools.product(*FLEET.values())]
    while left:
        fleets.append(max(every, key=lambda row: sum(p in left for p in pairs(row))))
        left -= set(pairs(fleets[-1]))
    norms = itertools.cycle(TRIAL["batch"])
    starts = [{**f, "batch": next(norms)} if f["model"] == "norm" else f for f in fleets]
    rows = covering(TRIAL, every_pair({**FLEET, **TRIAL}) - FORBIDDEN, starts)
    return [
        (f, [r for r in rows if all(r[k] == v for k, v in start.items())])
        for f, start in zip(fleets, starts, strict=True)
    ]


DESIGN = design()


def test_the_design_has_every_pair() -> None:
    found = {p for _, rows in DESIGN for row in rows for p in pairs(row)}
    assert every_pair({**FLEET, **TRIAL}) - found == FORBIDDEN
    assert {f["width"] for f, rows in DESIGN if rows} == {1, 2, 7, 32}


def model_of(kind: str, dropout: float) -> nn.Module:
    if kind == "norm":
        return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
    if kind == "dropout":
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


@pytest.mark.parametrize(("fleet", "rows"), DESIGN, ids=[" ".join(map(str, f.values())) for f, _ in DESIGN])
def test_every_pair_is_equal(fleet: Row, rows: list[Row]) -> None:
    dtype = fleet["dtype"]

    def define(trial: Any) -> Recipe:
        row, number = rows[trial.params["row"]], trial.params["row"]
        model = model_of(fleet["model"], 0.1 + 0.02 * number).to(dtype)
        optimizer: optim.Optimizer = MAKE[row["optimizer"]](model)
        every, make = SCHEDULES[row["schedule"]]
        weight = torch.tensor([0.5, 1.0, 2.0, 0.1 + 0.1 * number], dtype=dtype)
        loss = nn.CrossEntropyLoss(weight, ignore_index=IGNORED)
        return Recipe(model, optimizer, loss, row["batch"], make(optimizer, steps(row["batch"])), every)

    data = class_data(SAMPLES, (6,), 4, dtype, valid=11)
    for split in (data.train, data.valid):
        split.tensors[-1][::7] = IGNORED
    work = work_of(data)
    specs = specs_of([{"row": k} for k in range(len(rows))])
    come = specs[::-1] if fleet["refills"] == "backwards" else specs
    stops = {s.number: 1 for s in specs[::3]} if fleet["refills"] == "early stops" else {}
    trails = train_fused(define, come, work, EPOCHS, width=fleet["width"], stops=stops)
    for spec in come:
        lane, solo = trails[spec.number], train_solo(define, spec, work, EPOCHS)
        assert len(lane.rows) == stops.get(spec.number, EPOCHS)
        if dtype is torch.float64:
            assert_same_trail(lane, solo, 1e-9)
            continue
        for a, b in zip(lane.rows, solo.rows, strict=False):
            assert_close(a.train_loss, b.train_loss, 1e-3, f"train loss of {rows[spec.number]}")
            assert_close(a.valid_loss, b.valid_loss, 1e-2, f"validation loss of {rows[spec.number]}")
