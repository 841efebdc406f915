"""Schedule-free optimizers, Prodigy and D-Adaptation: against their authors' packages, and lanes against the plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import dadaptation
import prodigyopt
import pytest
import schedulefree
import torch
from torch import Tensor, nn, optim

from lanes_helpers import (
    assert_same_trail,
    class_data,
    labels,
    made,
    open_fleet,
    ready,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from shoal import optim as ours
from shoal.errors import StudyError, UsageError
from shoal.recipe import Recipe
from shoal.records import ParamValue, TrialSpec

Make = Callable[[Any], optim.Optimizer]


def split(m: nn.Module, **options: Any) -> list[dict[str, Any]]:
    parameters = [*m.parameters()]
    return [{"params": parameters[:2]}, {"params": parameters[2:], **options}]


# name -> (ours, the authors')
PAIRS: dict[str, tuple[Make, Make]] = {
    "sgd": (
        lambda m: ours.SGDScheduleFree(m.parameters(), lr=0.5),
        lambda m: schedulefree.SGDScheduleFree(m.parameters(), lr=0.5),
    ),
    "sgd all": (
        lambda m: ours.SGDScheduleFree(
            m.parameters(), lr=0.3, momentum=0.7, weight_decay=0.05, warmup_steps=4, r=1.0, weight_lr_power=1.0
        ),
        lambda m: schedulefree.SGDScheduleFree(
            m.parameters(), lr=0.3, momentum=0.7, weight_decay=0.05, warmup_steps=4, r=1.0, weight_lr_power=1.0
        ),
    ),
    "sgd groups": (
        lambda m: ours.SGDScheduleFree(split(m, momentum=0.6, lr=0.1), lr=0.3, weight_decay=0.05),
        lambda m: schedulefree.SGDScheduleFree(split(m, momentum=0.6, lr=0.1), lr=0.3, weight_decay=0.05),
    ),
    "adamw": (
        lambda m: ours.AdamWScheduleFree(m.parameters(), lr=0.02),
        lambda m: schedulefree.AdamWScheduleFree(m.parameters(), lr=0.02),
    ),
    "adamw all": (
        lambda m: ours.AdamWScheduleFree(
            m.parameters(), lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.1, warmup_steps=5
        ),
        lambda m: schedulefree.AdamWScheduleFree(
            m.parameters(), lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.1, warmup_steps=5
        ),
    ),
    "prodigy": (
        lambda m: ours.Prodigy(m.parameters()),
        lambda m: prodigyopt.Prodigy(m.parameters()),
    ),
    "prodigy all": (
        lambda m: ours.Prodigy(
            split(m, weight_decay=0.01),
            betas=(0.8, 0.95),
            eps=1e-6,
            weight_decay=0.1,
            use_bias_correction=True,
            safeguard_warmup=True,
            d_coef=1.5,
            d0=1e-4,
            growth_rate=1.5,
        ),
        lambda m: prodigyopt.Prodigy(
            split(m, weight_decay=0.01),
            betas=(0.8, 0.95),
            eps=1e-6,
            weight_decay=0.1,
            use_bias_correction=True,
            safeguard_warmup=True,
            d_coef=1.5,
            d0=1e-4,
            growth_rate=1.5,
        ),
    ),
    "prodigy l2": (
        lambda m: ours.Prodigy(m.parameters(), weight_decay=0.02, decouple=False, lr=0.5),
        lambda m: prodigyopt.Prodigy(m.parameters(), weight_decay=0.02, decouple=False, lr=0.5),
    ),
    "dadapt": (
        lambda m: ours.DAdaptAdam(m.parameters()),
        lambda m: dadaptation.DAdaptAdam(m.parameters()),
    ),
    "dadapt all": (
        lambda m: ours.DAdaptAdam(
            m.parameters(),
            betas=(0.8, 0.95),
            eps=1e-6,
            weight_decay=0.05,
            decouple=True,
            use_bias_correction=True,
            d0=1e-4,
            growth_rate=2.0,
        ),
        lambda m: dadaptation.DAdaptAdam(
            m.parameters(),
            betas=(0.8, 0.95),
            eps=1e-6,
            weight_decay=0.05,
            decouple=True,
            use_bias_correction=True,
            d0=1e-4,
            growth_rate=2.0,
        ),
    ),
    "dadapt l2": (
        lambda m: ours.DAdaptAdam(split(m, weight_decay=0.3), weight_decay=0.02),
        lambda m: dadaptation.DAdaptAdam(split(m, weight_decay=0.3), weight_decay=0.02),
    ),
}


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)


def define(trial: Any) -> Recipe:
    got = trial.params
    model = net(getattr(torch, got.get("dtype", "float64")))
    optimizer = PAIRS[got["opt"]][got.get("theirs", 0)](model)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.9) if got.get("schedule") else None
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), got["batch"], schedule, "step")


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", PAIRS)
def test_an_optimizer_does_what_its_authors_package_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = made(40, 10), labels(40, 4)
    models, optimizers = [], []
    for make in PAIRS[name]:
        torch.manual_seed(0)
        models.append(net())
        optimizers.append(make(models[-1]))
    for step in range(30):
        for model, optimizer in zip(models, optimizers, strict=True):
            if hasattr(optimizer, "train"):
                optimizer.train()
            rows = slice(8 * (step % 5), 8 * (step % 5) + 8)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if hasattr(optimizer, "eval") and step % 7 == 0:
                optimizer.eval()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-12), step
    torch.manual_seed(0)
    start = net()
    assert not torch.allclose(next(start.parameters()), next(models[0].parameters()), rtol=1e-4)


def test_lanes_are_the_plain_loop() -> None:
    work = work_of(class_data(44))
    cases: list[dict[str, ParamValue]] = [{"opt": o, "batch": b} for o in PAIRS for b in (20, 40)]
    cases += [{"opt": o, "batch": 20, "schedule": True} for o in ("sgd all", "adamw", "prodigy", "dadapt")]
    specs = specs_of(cases)
    fused = train_fused(define, specs, work, 2, width=16, stops={0: 1})
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-9)


@pytest.mark.filterwarnings("ignore:.*")
def test_the_packages_themselves_train_solo_with_their_averages() -> None:
    work = work_of(class_data(44))
    for name in ("sgd", "adamw all"):
        mine, theirs = specs_of([{"opt": name, "batch": 20}, {"opt": name, "batch": 20, "theirs": 1}])
        same = TrialSpec(theirs.number, mine.seed, theirs.params, {})
        a, b = train_solo(define, mine, work, 2), train_solo(define, same, work, 2)
        assert a.rows[-1].valid_loss == pytest.approx(b.rows[-1].valid_loss, rel=1e-9)
        for key, tensor in a.states[-1].items():
            assert torch.allclose(tensor, b.states[-1][key], rtol=1e-9, atol=1e-12)


def test_neighbours_change_no_bit_and_pausing_neither() -> None:
    work = work_of(class_data(50, dtype=torch.float32))
    cases: list[dict[str, ParamValue]] = [
        {"opt": o, "batch": b, "dtype": "float32"}
        for o in ("sgd groups", "adamw", "prodigy", "prodigy all", "dadapt")
        for b in (20, 40)
    ]
    specs = specs_of(cases)
    fleet = open_fleet(define, specs[0], len(specs), work)

    def train(present: Sequence[TrialSpec], *, pause: bool = False) -> dict[int, dict[str, Tensor]]:
        fleet.lanes = [None] * fleet.width
        for spec in present:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        fleet.run_epoch()
        if pause:
            held = [(fleet.state.take(i).to_host(), fleet.leave(i)) for i, t in enumerate(fleet.lanes) if t is not None]
            fleet.state.flat.fill_(math.nan)
            for row, trial in reversed(held):
                fleet.readmit(trial, row)
            fleet.arrange()
        fleet.run_epoch()
        return {s.number: fleet.state.state_dict(fleet.lane_of(s.number)) for s in present}

    together = train(specs)
    rounds = [train(specs[::-1], pause=True), train(specs[4:5])]
    fleet.state.flat.fill_(math.inf)
    fleet.state.grads.fill_(math.inf)
    rounds += [train(specs[3:8])]
    for states in rounds:
        for number, state in states.items():
            for key, tensor in state.items():
                assert torch.equal(tensor, together[number][key]), f"{key} of {specs[number].params}"


P = [nn.Parameter(torch.zeros(2))]
BAD: list[tuple[Callable[[], object], str]] = [
    (
        lambda: ours.SGDScheduleFree(P, momentum=0.0),
        r"SGDScheduleFree\(momentum=...\) must be a number between 0 and 1",
    ),
    (lambda: ours.SGDScheduleFree(P, lr=-1), r"SGDScheduleFree\(lr=...\) must be a number of at least 0; got -1"),
    (
        lambda: ours.AdamWScheduleFree(P, betas=(0.0, 0.9)),
        r"betas=...\) must be two numbers .*, the first above 0; got \(0.0, 0.9\)",
    ),
    (
        lambda: ours.Prodigy(P, betas=(0.9, 1.0)),
        r"Prodigy\(betas=...\) must be two numbers of at least 0 and below 1; got",
    ),
    (lambda: ours.Prodigy(P, d0=0), r"Prodigy\(d0=...\) must be a number above 0; got 0"),
    (
        lambda: ours.DAdaptAdam(P, growth_rate="fast"),  # type: ignore[arg-type]
        r"DAdaptAdam\(growth_rate=...\) must be a number of at least 1; got 'fast'",
    ),
    (
        lambda: ours.Prodigy([{"params": P}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}]),
        "Prodigy estimates one distance for all parameters: its groups must agree in lr, got 1.0 and 0.5",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_numbers(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_step_in_evaluation_mode_is_refused() -> None:
    optimizer = ours.SGDScheduleFree(P)
    optimizer.eval()
    with pytest.raises(StudyError, match=r"SGDScheduleFree.step\(\) in evaluation mode: call train\(\) first"):
        optimizer.step()
