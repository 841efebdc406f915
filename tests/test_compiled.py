"""Compiled epochs against the plain loop and against the fleet's own ticks, and when a signature is compiled at all."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lanes_helpers import (
    COMPILED,
    KERNELS,
    assert_same_trail,
    class_data,
    datasets,
    labels,
    made,
    open_fleet,
    ready,
    rebuild,
    sign,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from optimizer_tables import OPTIMIZERS
from shoal.lanes import native, pool
from shoal.lanes.compiled import Compilation, Unsupported, Variant, _pointwise
from shoal.lanes.compiled._lower import Lowering
from shoal.lanes.compiled._runner import agrees, obstacle, runner
from shoal.lanes.fleet import Fleet, Work
from shoal.lanes.native._build import compiler
from shoal.lanes.pool import Candidate, Pool
from shoal.recipe import Recipe
from shoal.records import TrialSpec
from shoal.signature import lane_trial
from test_bit_identity import CASES, check_neighbours
from test_clipping import SHAPES
from test_clipping import define as clipped
from test_equality import KINDS, definition, mixed

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
NATIVE = [
    name for name in OPTIMIZERS if name in ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "centered")
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own, so that every library here is built here, and once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_CACHE", str(folder))
        patch.delenv("SHOAL_NATIVE", raising=False)
        build = native.library()
        build.start()
        path = build.wait()
        assert path is not None
        KERNELS.append(native.NativeKernels(path))
        COMPILED.append(True)
        yield folder
        COMPILED.pop()
        KERNELS.pop()


# --- lanes do what the plain loop does -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp dropout", "mlp batchnorm", "layernorm", "cnn batchnorm", "regression"])
def test_lanes_take_the_path_of_the_plain_loop(name: str) -> None:
    """The last batch is smaller; batches of several micro-batches, refills and early ends are among it."""
    kind = KINDS[name]
    define, work = definition(kind, torch.float64), work_of(kind.data(torch.float64), kind.metric)
    params = [p for p in mixed(len(OPTIMIZERS)) if p["opt"] in NATIVE]
    specs = specs_of(params)
    fleet = open_fleet(define, specs[0], 1, work)
    assert fleet.tier == "compiled" and nothing_lacks(fleet, define, specs, work)
    trails = train_fused(define, specs, work, 3, width=3, stops={specs[1].number: 1})
    for spec in specs:
        epochs = 1 if spec is specs[1] else 3
        assert_same_trail(trails[spec.number], train_solo(define, spec, work, epochs), 1e-9, loose=kind.loose)


def nothing_lacks(fleet: Fleet, define: Callable[[Any], Recipe], specs: list[TrialSpec], work: Work) -> bool:
    """Whether each of the trials would run compiled in the fleet."""
    for spec in specs:
        fleet.admit(ready(define, spec, work))
        fleet.arrange()
        assert fleet.compiled is not None
        if obstacle(fleet.compiled, fleet):
            return False
        fleet.leave(0)
    return True


class Everything(nn.Module):
    """One operator after the other, with shapes that fill no vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.LayerNorm([5, 6])
        self.slope = nn.PReLU(5)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.out = nn.Linear(30, 4)
        self.side = nn.Linear(11, 9, bias=False)

    def forward(self, words: Tensor, x: Tensor) -> Tensor:
        h = self.table(words)  # (q, 5, 6)
        q, k, v = self.query(h), self.key(h), self.value(h)
        h = h + torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1) @ v
        h = self.norm(self.slope(h))
        y = self.side(x)
        a, b, c = y.split(3, 1)
        y = torch.cat([torch.sigmoid(a) * b.tanh(), (c.abs() + 1).log(), torch.exp(-b.square()), a.clamp(-0.5, 0.5)], 1)
        y = torch.stack([y, F.log_softmax(y, 1), y.softmax(1)], 1).mean(1)
        y = torch.where(y > 0, y.pow(3), y.sin()) - (y**2 + 1).rsqrt()
        h = h * self.scale + F.pad(y.sum(1, keepdim=True)[:, :, None], (0, 5))
        out: Tensor = self.out(h.flatten(1)) + y[:, 2:6].amax(1, keepdim=True) - (1 + y[:, None, 0].square()).sqrt()
        return out


def everything(trial: Any) -> Recipe:
    model = Everything().double()
    return Recipe(
        model, optim.Adam(model.parameters(), lr=trial.params["lr"]), nn.CrossEntropyLoss(label_smoothing=0.1), 8
    )


def test_operators() -> None:
    words = torch.randint(0, 7, (29, 5), generator=torch.Generator().manual_seed(3))
    x, y = made(29, 11), labels(29, 4)
    work = work_of(datasets((words[:20], x[:20], y[:20]), (words[20:], x[20:], y[20:])))
    specs = specs_of([{"lr": 0.003 * (i + 1)} for i in range(3)])
    trails = train_fused(everything, specs, work, 2)
    for spec in specs:
        assert_same_trail(trails[spec.number], train_solo(everything, spec, work, 2), 1e-9)


class Windows(nn.Module):
    """Windows of every kind, with sizes that fill no vector: steps, padding, dilation, groups, one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.plain = nn.Conv2d(6, 5, 1)
        self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False)
        self.depthwise = nn.Conv2d(5, 5, 3, stride=2, groups=5)
        self.back = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.along = nn.Conv1d(3, 7, 4, padding=3, stride=3)
        self.out = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()  # (q, 6, 5, 10)
        a, b = self.depthwise(self.plain(h)), self.grouped(h)
        c = self.norm(self.back(b))
        parts = [
            a,
            F.max_pool2d(b, 3, stride=2, padding=1),
            F.max_pool2d(c, (2, 3), ceil_mode=True, dilation=(2, 1)),
            F.max_pool2d(x, 2),
            F.avg_pool2d(c, 3, stride=2, padding=1, count_include_pad=False),
            F.avg_pool2d(b, 2, ceil_mode=True),
            F.avg_pool2d(b, (2, 3), padding=(1, 0), divisor_override=5),
            self.along(x.flatten(2)),
        ]
        out: Tensor = self.out(torch.cat([p.flatten(1) for p in parts], 1))
        return out


def windows(trial: Any) -> Recipe:
    model = Windows().double()
    with torch.no_grad():
        model(torch.zeros(2, 3, 9, 8, dtype=torch.float64))  # gives the last layer its size
    model.norm.reset_running_stats()
    return Recipe(model, optim.Adam(model.parameters(), lr=trial.params["lr"]), nn.CrossEntropyLoss(), 8)


class Bands(nn.Module):
    """More of an image than is unfolded at once: several bands, and a smaller one at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(10, 5, 5, padding=2)
        self.back = nn.ConvTranspose2d(5, 10, 5, padding=2)
        self.out = nn.Linear(10 * 7, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.back(self.conv(x).tanh()).mean(3).flatten(1))
        return out


def bands(trial: Any) -> Recipe:
    model = Bands().double()
    return Recipe(model, optim.SGD(model.parameters(), lr=trial.params["lr"]), nn.CrossEntropyLoss(), 8)


class Rarer(nn.Module):
    """Operators that convolutional networks and transformers need beside windows and products."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.out = nn.Linear(4 * 4 * 6 + 4 * 9 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x)).add_(0.1)  # (q, 4, 9, 6)
        h = F.relu6(h.mul_(3), inplace=True) + F.gelu(h)
        a, b = F.adaptive_avg_pool2d(h, (4, 6)), F.adaptive_avg_pool2d(h, (3, 2))
        b = F.interpolate(b, scale_factor=(3, 3))  # (q, 4, 9, 6)
        rows = b.flatten(2).transpose(1, 2)[:, :9, :]  # (q, 9, 4)
        rows = torch.cat([rows, rows[:, :, :2]], 2)
        ahead = torch.ones(9, 9, dtype=torch.bool).triu(1)
        rows = rows + self.attention(rows, rows, rows, attn_mask=ahead, need_weights=False)[0]
        q = rows.unflatten(2, (2, 3)).transpose(1, 2)  # (q, 2, 9, 3)
        keys = F.scaled_dot_product_attention(
            q, q[:, :, :5].sin(), q[:, :, :5], attn_mask=q.new_ones(9, 5).tril(-1) - 0.3
        )
        causal = F.scaled_dot_product_attention(q, q.cos(), q, is_causal=True, scale=0.4)
        both = torch.cat([keys, causal], 1).flatten(1).repeat(1, 2)
        out: Tensor = self.out(torch.cat([a.flatten(1), both], 1))
        return out


def rarer(trial: Any) -> Recipe:
    model = Rarer().double()

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        out = model(x)
        # As models write it that do not use a criterion: numbers of classes along an axis, and normal noise by erfinv.
        noise = torch.erfinv(torch.sigmoid(out) * 1.8 - 0.9) * 0.01
        return -F.log_softmax(out + noise, 1).gather(1, y[:, None]).mean()

    return Recipe(model, optim.Adam(model.parameters(), lr=trial.params["lr"]), loss, 8)


@pytest.mark.parametrize(("define", "size"), [(windows, (3, 9, 8)), (bands, (10, 7, 43)), (rarer, (3, 9, 6))])
def test_operators_over_windows_and_sequences(define: Callable[[Any], Recipe], size: tuple[int, ...]) -> None:
    x, y = made(21, *size), labels(21, 4)
    work = work_of(datasets((x[:12], y[:12]), (x[12:], y[12:])))
    specs = specs_of([{"lr": 0.003 * (i + 1)} for i in range(2)])
    fleet = open_fleet(define, specs[0], 1, work)
    assert nothing_lacks(fleet, define, specs, work)
    trails = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(trails[spec.number], train_solo(define, spec, work, 2), 1e-9, loose=("back.bias",))


class Sequences(nn.Module):
    """Every kind of recurrent layer: several layers, both ways, dropout between them, no bias, a given state, packed and not."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
        self.gru = nn.GRU(10, 3, batch_first=True, bidirectional=True)
        self.relu, self.tanh = nn.RNN(6, 7, nonlinearity="relu", bias=False), nn.RNN(7, 2)
        self.out = nn.Linear(10 + 3 + 2, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, (_, c) = self.lstm(packed)
        states = pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])[0]
        steps, last = self.gru(states, states[:, :2, :3].transpose(0, 1).contiguous())
        across, _ = self.relu(steps.transpose(0, 1))
        _, end = self.tanh(across)
        out: Tensor = self.out(torch.cat([c[1], c[2], last[0], end[0]], 1))
        return out


def test_recurrent_layers() -> None:
    def define(trial: Any) -> Recipe:
        model = Sequences().double()
        return Recipe(model, optim.Adam(model.parameters(), lr=trial.params["lr"]), nn.CrossEntropyLoss(), 8)

    x, y = made(21, 6, 3), labels(21, 4)
    lengths = torch.arange(21) % 6 + 1
    work = work_of(datasets((x[:12], lengths[:12], y[:12]), (x[12:], lengths[12:], y[12:])))
    specs = specs_of([{"lr": 0.003 * (i + 1)} for i in range(2)])
    fleet = open_fleet(define, specs[0], 1, work)
    assert nothing_lacks(fleet, define, specs, work)
    trails = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(trails[spec.number], train_solo(define, spec, work, 2), 1e-9)


def test_the_largest_of_a_window_is_torchs_where_numbers_are_not() -> None:
    """The first of equals, and NaN above all: gradients go where torch sends them."""
    x = made(9, 2, 5, 6).round()
    x[0, 0, 1, 2], x[1, 1, 4, 5], x[2, 0, :2] = math.nan, math.nan, -math.inf
    y = labels(9, 3)

    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 5, 6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            h = x * self.scale
            return F.max_pool2d(h, 2).flatten(1)[:, :3] + F.max_pool2d(h, 3, stride=2, padding=1).flatten(1)[:, :3]

    def define(trial: Any) -> Recipe:
        model = Pools()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 3)

    work = work_of(datasets((x, y), (x[3:], y[3:])))
    fleet = open_fleet(define, specs_of([{}])[0], 1, work)
    assert fleet.compiled is not None
    fleet.admit(ready(define, specs_of([{}])[0], work))
    fleet.arrange()
    weights = torch.full((1, fleet.quantum), 1 / 3, dtype=torch.float64)
    for rows in ([0, 1, 2], [3, 4, 5], [6, 7, 8]):
        slots = torch.tensor([rows]), weights, torch.zeros(1, 3, dtype=torch.int32)
        expected = fleet.program.train(fleet.state.inputs, work.data.train.tensors, *slots)
        losses = torch.zeros(1, 1, dtype=torch.float64)
        never = np.zeros((1, 1), dtype=bool)
        run = runner(fleet.compiled, fleet, fleet.active, [1], never, never, losses, -1)
        run(0, np.array([[rows]]), weights.numpy()[None], np.zeros((1, 1, 3), dtype=np.int32))
        for got, wanted in zip(fleet.state.grad_views, expected, strict=False):
            torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "width"), [("mlp", 7), ("mlp, several micro-batches", 2), ("batchnorm", 7), ("cnn", 7)]
)
def test_neighbours_change_no_bit(name: str, width: int) -> None:
    check_neighbours(name, width)


def test_the_width_changes_no_bit() -> None:
    """Lanes train one after the other: no kernel knows how many there are."""
    case = CASES["mlp"]
    work = work_of(class_data(50, case.features, dtype=torch.float32))
    specs = specs_of([{"act": "gelu", "p": 0.2, "opt": "adamw", "lr": 0.003, "batch": 32}] * 9)
    wide, narrow = (train_fused(case.define, s, work, 2, width=len(s)) for s in (specs, specs[:1]))
    for name, tensor in wide[0].states[-1].items():
        assert torch.equal(tensor, narrow[0].states[-1][name]), name


# --- when a signature is compiled ------------------------------------------------------------------------------------


def pool_of(define: Callable[[Any], Recipe], specs: list[TrialSpec], work: Work) -> Pool:
    """A pool in which the trials train, on native kernels from the start."""
    out = Pool(work, lambda spec: rebuild(define, spec, work), measure=False, native=True)
    out.may_upgrade, out._kernels = False, KERNELS[-1]
    out.admit([candidate(define, spec, work) for spec in specs])
    return out


def candidate(define: Callable[[Any], Recipe], spec: TrialSpec, work: Work) -> Candidate:
    signature, recipe = sign(define, spec, work), rebuild(define, spec, work)
    lane = lane_trial(spec, recipe, work.data.train.tensors[-1])
    return Candidate(spec, recipe, lane, signature.key, signature.quantum, signature.exact)


def epochs_until_compiled(p: Pool) -> int:
    """How many epochs a pool trains before its only fleet is compiled; 0 if it never is."""
    for epoch in range(1, 200):
        p.run_epoch()
        (group,) = p._groups.values()
        if group.compilation is not None:
            group.compilation.wait()
        if any(e.kind == "tier" and e.data["tier"] == "compiled" for e in p.drain_events()):
            return epoch
        if not group.compiles:
            return 0
    raise AssertionError("neither compiled nor refused")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_COMPILE_AFTER_S", 0.0)


def mlp_pool(**params: Any) -> Pool:
    kind = KINDS["mlp dropout"]
    define, work = definition(kind, torch.float64), work_of(kind.data(torch.float64))
    return pool_of(define, specs_of([{"p": 0.2, "opt": "adam", **params}]), work)


def test_a_signature_is_compiled_once_it_has_trained_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_COMPILE_AFTER_S", 0.02)
    p = mlp_pool()
    assert epochs_until_compiled(p) > 1
    (fleet,) = p._open()
    assert fleet.tier == "compiled" and p._fleet(next(iter(p._groups.values())), 2).tier == "compiled"


@pytest.mark.usefixtures("eager")
def test_a_new_lane_with_groups_of_parameters_is_no_obstacle() -> None:
    """Its schedule has not been asked yet when the library is compared with what its lanes give."""

    def define(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 3)).double()
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.01}]
        return Recipe(model, optim.SGD(groups, lr=0.1), nn.CrossEntropyLoss(), 32)

    first, second = specs_of([{"i": 0}, {"i": 1}])
    work = work_of(class_data(64, (6,), 3))
    p = pool_of(define, [first], work)
    for _ in range(2):
        p.run_epoch()
    (group,) = p._groups.values()
    assert group.compilation is not None and group.compilation.wait() is not None
    p.admit([candidate(define, second, work)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p.run_epoch()
    assert group.compiled


@pytest.mark.usefixtures("eager")
def test_what_has_no_compiled_form_trains_on() -> None:
    def define(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 3))
        return Recipe(model, optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss(), 16)

    work = work_of(class_data(50, (1, 3, 3, 3), 3, dtype=torch.float32))
    p = pool_of(define, specs_of([{}]), work)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert epochs_until_compiled(p) == 0
    assert p.run_epoch()[0].finite and next(p._open()).tier == "native"
    with pytest.raises(Unsupported, match="a convolution over 3 dimensions"):
        Compilation(next(p._open()).program, work.data, 16, Variant(None, 2))


@pytest.mark.parametrize(("compiled_s", "tier"), [(0.001, "compiled"), (1.0, "solo")])
def test_plain_steps_are_held_against_a_compiled_tick(
    monkeypatch: pytest.MonkeyPatch, compiled_s: float, tier: str
) -> None:
    """Where the fleet as it is would lose: 0.5 s a tick of its own, 0.01 s a plain step."""
    for name, seconds in [("time_tick", 0.5), ("time_solo", 0.01), ("time_compiled", compiled_s)]:
        whole = getattr(pool, name)

        def timed(*args: Any, whole: Callable[..., float] = whole, seconds: float = seconds) -> float:
            whole(*args)
            return seconds

        monkeypatch.setattr(pool, name, timed)
    monkeypatch.setattr(pool, "_COMPILE_WAIT_S", 200.0)
    kind = KINDS["cnn batchnorm"]
    define, work = definition(kind, torch.float64), work_of(kind.data(torch.float64))
    p = Pool(work, lambda spec: rebuild(define, spec, work), measure=True, native=True)
    p.may_upgrade, p._kernels = False, KERNELS[-1]
    p.admit([candidate(define, spec, work) for spec in specs_of([{"opt": "adam"}, {"opt": "sgd"}])])
    p.run_epoch()
    if tier == "solo":
        assert p.n_fleets == 0 and len(p._solos) == 2
        (why,) = [e.data["reason"] for e in p.drain_events() if e.kind == "signature solo"]
        assert why == "faster one by one on this device (10.0 ms a step, against 250.0 ms in 2 lanes)"
    else:
        (fleet,) = p._open()
        assert fleet.tier == tier
        (opened,) = [e for e in p.drain_events() if e.kind == "fleet"]
        assert opened.data["tick_s"] == compiled_s


@pytest.mark.usefixtures("eager")
def test_a_library_that_is_slower_is_not_used_until_it_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, False, False]
    monkeypatch.setattr(pool, "pays", lambda compilation, fleet: answers.pop())
    monkeypatch.setattr(pool, "_AGAIN", 1.01)
    p = mlp_pool()
    tiers = []
    for _ in range(4000):
        assert p.run_epoch()[0].finite
        tiers.append((len(answers), next(p._open()).tier))
        if not answers:
            break
        time.sleep(0.002)
    assert not answers and tiers[-1] == (0, "compiled")
    assert all(tier == "native" for left, tier in tiers if left)


def test_a_signature_that_will_train_for_long_is_compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_COMPILE_AFTER_S", 1e6)
    kind = KINDS["mlp dropout"]
    define, work = definition(kind, torch.float64), work_of(kind.data(torch.float64))
    for lane_epochs, compiled in [(1.0, False), (1e9, True)]:
        p = Pool(work, lambda spec: rebuild(define, spec, work), measure=True, native=True, lane_epochs=lane_epochs)
        p.may_upgrade, p._kernels = False, KERNELS[-1]
        p.admit([candidate(define, spec, work) for spec in specs_of([{"opt": "adam"}] * 8)])
        p.run_epoch()
        (group,) = p._groups.values()
        assert (group.compilation is not None) == compiled


@pytest.mark.usefixtures("eager")
def test_a_library_that_does_not_agree_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_pointwise.EXPRESSIONS, torch.ops.aten.mul.Tensor, "({0} * {1} * T(1.001))")
    p = mlp_pool()
    with pytest.warns(RuntimeWarning, match="does not give what its lanes give"):
        assert epochs_until_compiled(p) == 0
    assert next(p._open()).tier == "native"


@pytest.mark.usefixtures("eager")
def test_a_compiler_that_fails_is_named_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Lowering.run

    def broken(self: Lowering) -> Any:
        lowered = whole(self)
        lowered.tick.append("this is no C++;")
        return lowered

    monkeypatch.setattr(Lowering, "run", broken)
    p = mlp_pool()
    with pytest.warns(RuntimeWarning, match="a signature is not compiled, training is slower: .*error"):
        p.run_epoch()
        (group,) = p._groups.values()
        while group.compilation is None or group.compilation._build._process is not None:
            p.run_epoch()
            if group.compilation is not None:
                group.compilation.wait()
    assert p.run_epoch()[0].finite and next(p._open()).tier == "native"


def test_lanes_that_clip_take_the_path_of_the_plain_loop() -> None:
    work = work_of(class_data(50, (10,)))
    params = [{"opt": "momentum", "batch": 40, **how} for how in SHAPES] + [{"opt": "adamw", "batch": 16, "l1": 0.02}]
    specs = specs_of(params)
    fleet = open_fleet(clipped, specs[0], 1, work)
    assert nothing_lacks(fleet, clipped, specs, work)
    trails = train_fused(clipped, specs, work, 3)
    for spec in specs:
        assert_same_trail(trails[spec.number], train_solo(clipped, spec, work, 3), 1e-9)


def test_lanes_that_need_more_run_as_they_did() -> None:
    """Updates without a native form: the fleet's own ticks train such lanes, with the same result."""
    kind = KINDS["mlp dropout"]
    define, work = definition(kind, torch.float64), work_of(kind.data(torch.float64))
    specs = specs_of([{"opt": "adam", "p": 0.2}, {"opt": next(o for o in OPTIMIZERS if o not in NATIVE), "p": 0.2}])
    trails = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(trails[spec.number], train_solo(define, spec, work, 2), 1e-9)


def test_a_check_leaves_the_lanes_as_they_were() -> None:
    kind = KINDS["mlp batchnorm"]
    define, work = definition(kind, torch.float64), work_of(kind.data(torch.float64))
    spec = specs_of([{"opt": "adam", "batch": 16}])[0]
    fleet = open_fleet(define, spec, 2, work)
    fleet.admit(ready(define, spec, work))
    fleet.arrange()
    before = fleet.state.take(0)
    assert fleet.compiled is not None and agrees(fleet.compiled, fleet)
    after = fleet.state.take(0)
    assert torch.equal(before.flat, after.flat)
    assert all(torch.equal(t, after.extra[name]) for name, t in before.extra.items())
