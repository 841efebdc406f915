"""What shares a program and what must not: keys tell code and constants apart; what no key sees, the admission check does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from lanes_helpers import assert_same_trail, class_data, open_fleet, ready, specs_of, train_fused, train_solo, work_of
from shoal.errors import FuseError
from shoal.lanes.pool import Candidate, Pool
from shoal.recipe import Recipe
from shoal.replay import replay
from shoal.signature import Signature, Signer, lane_trial

DATA = class_data(40, dtype=torch.float32)
SIGNER = Signer(DATA.train.tensors)


def signature(model: nn.Module, **more: Any) -> Signature:
    return SIGNER.sign(recipe(model, **more))


def recipe(
    model: nn.Module,
    loss: Any = None,
    batch: int = 16,
    optimizer: Callable[[Any], optim.Optimizer] | None = None,
    **more: Any,
) -> Recipe:
    trained = [p for p in model.parameters() if p.requires_grad]
    built = (optimizer or (lambda p: optim.SGD(p, lr=0.1)))(trained)
    return Recipe(model, built, nn.CrossEntropyLoss() if loss is None else loss, batch, **more)


def net(*, act: nn.Module | None = None, p: float = 0.1, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, width), nn.ReLU() if act is None else act, nn.Dropout(p), nn.Linear(width, 4))


# --- what does not split -----------------------------------------------------------------------------------------

ALIKE: dict[str, Callable[[], Recipe]] = {
    "another activation": lambda: recipe(net(act=nn.GELU())),
    "another slope": lambda: recipe(net(act=nn.LeakyReLU(0.3))),
    "another dropout": lambda: recipe(net(p=0.7)),
    "another learning rate": lambda: recipe(
        net(), optimizer=lambda p: optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)
    ),
    "another optimizer": lambda: recipe(net(), optimizer=lambda p: optim.AdamW(p, lr=0.01)),
    "parameter groups": lambda: recipe(
        net(), optimizer=lambda p: optim.Adam([{"params": [t], "lr": 0.1} for t in p], lr=0.3)
    ),
    "a schedule": lambda: _scheduled(),
    "a batch size of the same quantum": lambda: recipe(net(), batch=15),
}


def _scheduled() -> Recipe:
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule=optim.lr_scheduler.StepLR(optimizer, 1))


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_a_lanes_own_does_not_split(name: str) -> None:
    ours, theirs = SIGNER.sign(recipe(net())), SIGNER.sign(ALIKE[name]())
    assert ours.differs(theirs) == [] and ours.key == theirs.key


def test_label_smoothing_and_class_weights_are_lanes_own() -> None:
    a, b = (signature(net(), loss=nn.CrossEntropyLoss(label_smoothing=s)) for s in (0.1, 0.3))
    assert a.key == b.key
    a, b = (signature(net(), loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, w, 1, 1]))) for w in (0.1, 0.3))
    assert a.key == b.key


# --- what splits -------------------------------------------------------------------------------------------------


class Flagged(nn.Module):
    """A forward that reads an attribute of one kind or another."""

    def __init__(self, flag: Any) -> None:
        super().__init__()
        self.layer, self.flag = nn.Linear(10, 4), flag

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2.0 if self.flag else 1.0)  # type: ignore[no-any-return]


class Listed(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layer, self.hidden = nn.Linear(10, 4), [nn.Softplus(scale)]  # in a plain list: torch does not see it

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](self.layer(x))  # type: ignore[no-any-return]


def closed(scale: float) -> nn.Module:
    model = net()
    model.scale = lambda x: x * scale  # type: ignore[assignment]
    return model


def patched(scale: float) -> nn.Module:
    model = net()
    forward: Callable[[Tensor], Tensor] = model.forward
    model.forward = lambda input: forward(input) * scale  # type: ignore[method-assign]
    return model


def hooked(scale: float) -> nn.Module:
    model = net()
    model[3].register_forward_hook(lambda module, args, out: out * scale)
    return model


def frozen(layer: int) -> nn.Module:
    model = net()
    model[layer].requires_grad_(False)
    return model


def resting(eval_mode: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[1].train(not eval_mode)
    return model


def local(scale: float) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * scale  # type: ignore[no-any-return]

    return Net()


def tied(yes: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    if yes:
        model[2].weight = model[1].weight
    return model


SPLIT: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "flag": (lambda: Flagged(True), lambda: Flagged(False)),
    "number that is compared": (lambda: Flagged(0.0), lambda: Flagged(2.0)),
    "whole number": (lambda: Flagged(1), lambda: Flagged(2)),
    "plain tensor": (lambda: Flagged(torch.tensor([1.0])), lambda: Flagged(torch.tensor([2.0]))),
    "array": (lambda: Flagged(np.ones(1)), lambda: Flagged(np.zeros(1))),
    "list": (lambda: Flagged([1, 2]), lambda: Flagged([1, 3])),
    "module in a list": (lambda: Listed(1.0), lambda: Listed(2.0)),
    "closure": (lambda: closed(1.0), lambda: closed(2.0)),
    "patched forward": (lambda: patched(1.0), lambda: patched(2.0)),
    "hook": (lambda: hooked(1.0), lambda: hooked(2.0)),
    "hook or none": (net, lambda: hooked(1.0)),
    "frozen parameters": (lambda: frozen(0), lambda: frozen(3)),
    "batch norm in eval": (lambda: resting(True), lambda: resting(False)),
    "class made in a function": (lambda: local(1.0), lambda: local(2.0)),
    "width": (net, lambda: net(width=9)),
    "tied weights": (lambda: tied(True), lambda: tied(False)),
    "in-place activation": (net, lambda: net(act=nn.ReLU(inplace=True))),
    "hooked activation": (net, lambda: _hooked_activation()),
    "norm eps": (
        lambda: nn.Sequential(nn.Linear(10, 4), nn.LayerNorm(4)),
        lambda: nn.Sequential(nn.Linear(10, 4), nn.LayerNorm(4, eps=1e-3)),
    ),
}


def _hooked_activation() -> nn.Module:
    model = net()
    model[1].register_forward_hook(lambda module, args, out: out + 1)
    return model


@pytest.mark.parametrize("name", SPLIT)
def test_what_a_trace_would_bake_in_splits(name: str) -> None:
    one, other = SPLIT[name]
    assert signature(one()).key == signature(one()).key
    assert signature(one()).key != signature(other()).key


def test_losses_and_batch_sizes_split_where_they_must() -> None:
    by_loss = [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(ignore_index=0),
        lambda model, batch: model(batch[0]).sum(),
    ]
    assert len({signature(net(), loss=c).key for c in by_loss}) == len(by_loss)
    weighted = nn.CrossEntropyLoss(weight=torch.ones(4), label_smoothing=0.1)  # a lane's own
    assert signature(net(), loss=weighted).key == signature(net(), loss=nn.CrossEntropyLoss()).key
    assert signature(net(), batch=16).key != signature(net(), batch=8).key  # another quantum
    a, b = signature(resting(False), batch=16), signature(resting(False), batch=15)
    assert a.exact and b.exact and a.differs(b) == ["batch size"]
    assert not signature(resting(True), batch=16).exact  # a batch norm at rest mixes nothing


class Contrast(nn.Module):
    """Compares the samples of a batch with each other, without any layer that is known to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return z - z.mean(0, keepdim=True) * 0.01  # type: ignore[no-any-return]


def test_models_that_mix_samples_are_trained_on_whole_batches() -> None:
    assert signature(Contrast(), batch=40).exact and signature(Contrast(), batch=40).quantum == 40
    assert not signature(net(), batch=40).exact and signature(net(), batch=40).quantum == 20
    assert signature(net(), loss=lambda model, batch: model(batch[0]).square().mean(), batch=40).exact


def test_what_has_no_lane_form_says_why() -> None:
    cases: list[tuple[Callable[[Any], optim.Optimizer], str]] = [
        (lambda p: optim.LBFGS(p), r"LBFGS evaluates the loss as often as its line search asks for"),
        (lambda p: optim.Adafactor(p), r"Adafactor keeps means over the rows and columns of whole matrices"),
        (lambda p: optim.Adam(p, differentiable=True), r"Adam\(differentiable=True\) has no lane form"),
    ]
    for make, message in cases:
        with pytest.raises(FuseError, match=message):
            signature(net(), optimizer=make)
    mixed = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 4).double())
    with pytest.raises(FuseError, match="several dtypes"):
        signature(mixed)


# --- nothing of the user's is touched ----------------------------------------------------------------------------


def test_signing_and_tracing_leave_the_users_objects_and_generators_alone() -> None:
    def define(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))
        return recipe(model)

    work, spec = work_of(DATA), specs_of([{}])[0]
    mine = replay(define, spec, DATA.train.n)
    before = copy.deepcopy(mine.model.state_dict())
    torch.manual_seed(5)
    states = torch.get_rng_state(), repr(np.random.get_state())
    Signer(DATA.train.tensors).sign(mine)
    fleet = open_fleet(define, spec, 2, work)
    fleet.admit(lane_trial(spec, mine, DATA.train.tensors[-1]))
    fleet.arrange()
    fleet.run_epoch()
    assert torch.equal(torch.get_rng_state(), states[0]) and repr(np.random.get_state()) == states[1]
    for name, tensor in mine.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [type(m) for m in mine.model] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]  # type: ignore[attr-defined]
    assert all(m.training for m in mine.model.modules()) and all(p.grad is None for p in mine.model.parameters())
    assert torch.equal(DATA.train.tensors[0], class_data(40, dtype=torch.float32).train.tensors[0])


def test_a_batch_norm_at_rest_stays_at_rest_in_a_lane() -> None:
    def define(trial: Any) -> Recipe:
        model = resting(True).double()
        return recipe(model, batch=trial.params["batch"])

    work, specs = work_of(class_data(40)), specs_of([{"batch": 16}, {"batch": 15}])
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        solo = train_solo(define, spec, work, 2)
        assert_same_trail(fused[spec.number], solo, 1e-10)
        assert torch.equal(fused[spec.number].states[-1]["1.running_mean"], torch.zeros(8, dtype=torch.float64))


def test_frozen_parameters_stay_as_they_are() -> None:
    def define(trial: Any) -> Recipe:
        return recipe(frozen(0).double(), optimizer=lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.5))

    work, specs = work_of(class_data(40)), specs_of([{}, {}])
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-10)
        made_first = replay(define, spec, 40).model.state_dict()["0.weight"]
        assert torch.equal(fused[spec.number].states[-1]["0.weight"], made_first)


# --- what no key can see -----------------------------------------------------------------------------------------

SCALE = 1.0  # a global that a forward pass reads: no key looks there


class ReadsGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * SCALE  # type: ignore[no-any-return]


def pooled(define: Any, n: int) -> tuple[Pool, list[Candidate]]:
    work = work_of(class_data(40, dtype=torch.float32))
    pool = Pool(work, lambda spec: replay(define, spec, 40), measure=False)
    candidates = []
    for spec in specs_of([{"i": i} for i in range(n)]):
        made_for = replay(define, spec, 40)
        s = Signer(work.data.train.tensors).sign(made_for)
        candidates.append(Candidate(spec, made_for, ready(define, spec, work), s.key, s.quantum, s.exact))
    return pool, candidates


def test_a_trial_whose_lane_does_not_do_what_it_does_alone_ends_up_solo(monkeypatch: pytest.MonkeyPatch) -> None:
    def define(trial: Any) -> Recipe:
        return recipe(ReadsGlobal())

    pool, candidates = pooled(define, 3)
    assert len({c.signature for c in candidates}) == 1
    pool.admit(candidates[:2])
    first = pool.run_epoch()
    assert [m.trial for m in first] == [0, 1]
    assert not [e for e in pool.drain_events() if e.kind == "solo"]
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    pool.admit(candidates[2:])
    second = {m.trial: m for m in pool.run_epoch()}
    alone = train_solo(define, candidates[2].spec, pool.work, 1)
    reasons = [(e.trial, str(e.data.get("reason"))) for e in pool.drain_events() if e.kind == "solo"]
    assert [t for t, _ in reasons] == [2] and "its first loss in a lane was" in reasons[0][1]
    assert second[2].train_loss == alone.rows[0].train_loss and second[2].epoch == 1
    for name, tensor in pool.state_dict(2).items():
        assert torch.equal(tensor, alone.states[0][name])
    assert {0, 1} <= second.keys()


def test_a_model_that_reads_a_value_into_python_trains_solo() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.layer(x)
            return z * 2 if z.sum() > 0 else z  # type: ignore[no-any-return]

    def define(trial: Any) -> Recipe:
        return recipe(Branches())

    pool, candidates = pooled(define, 2)
    pool.admit(candidates)
    rows = pool.run_epoch()
    assert [m.trial for m in rows] == [0, 1]
    assert {e.trial for e in pool.drain_events() if e.kind == "solo"} == {0, 1}
    for m in rows:
        assert m.train_loss == train_solo(define, candidates[m.trial].spec, pool.work, 1).rows[0].train_loss
