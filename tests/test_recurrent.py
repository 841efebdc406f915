"""A recurrent layer over lanes is torch's own: outputs, gradients, trajectories, packed sequences, and no bit from neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.func import grad_and_value, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lanes_helpers import (
    assert_same_trail,
    class_data,
    datasets,
    labels,
    open_fleet,
    ready,
    sign,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from shoal.data import Datasets
from shoal.errors import FuseError
from shoal.lanes.cells import Weights
from shoal.lanes.recurrent import recurrent
from shoal.lanes.rng import KeyedRandom
from shoal.recipe import Recipe
from shoal.records import TrialSpec
from shoal.replay import Define

LAYERS: dict[str, Any] = {
    "lstm": lambda f, h, **kw: nn.LSTM(f, h, **kw),
    "lstm projected": lambda f, h, **kw: nn.LSTM(f, h, proj_size=3, **kw),
    "gru": lambda f, h, **kw: nn.GRU(f, h, **kw),
    "rnn": lambda f, h, **kw: nn.RNN(f, h, **kw),
    "rnn relu": lambda f, h, **kw: nn.RNN(f, h, nonlinearity="relu", **kw),
}
KINDS = {"lstm": "lstm", "lstm projected": "lstm", "gru": "gru", "rnn": "rnn_tanh", "rnn relu": "rnn_relu"}
ignore_projections = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1).to(dtype)


# --- the operator against torch's layers --------------------------------------------------------------------------


def run_over_lanes(modules: list[Any], x: Tensor, state: tuple[Tensor, ...], ways: tuple[Tensor, ...]) -> Any:
    """Gradients and outputs of whole modules, called over lanes as a traced step calls them."""
    names = [name for name, _ in modules[0].named_parameters()]
    stacked = {name: torch.stack([dict(m.named_parameters())[name].detach() for m in modules]) for name in names}

    def lane(parameters: dict[str, Tensor], x: Tensor, state: tuple[Tensor, ...], ways: tuple[Tensor, ...]) -> Any:
        with KeyedRandom(torch.arange(x.shape[1], dtype=torch.int32), lanes=True):
            hx = state if len(state) == 2 else state[0]
            y, last = torch.func.functional_call(modules[0], parameters, (x, hx))
        parts = (y, *(last if len(state) == 2 else (last,)))
        return sum((a * b).sum() for a, b in zip(parts, ways, strict=True)), parts

    return vmap(grad_and_value(lane, argnums=(0, 1, 2), has_aux=True))(stacked, x, state, ways)


@ignore_projections
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("layers", "both", "bias", "steps", "samples", "units"),
    [(1, False, True, 4, 3, 5), (1, True, False, 1, 8, 4), (2, True, True, 9, 5, 7), (1, False, True, 70, 8, 8)],
)
def test_outputs_and_gradients_are_torchs(
    name: str, layers: int, both: bool, bias: bool, steps: int, samples: int, units: int, width: int, dtype: torch.dtype
) -> None:
    if steps == 70 and width != 2:
        pytest.skip("one width is enough for what is long")
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": both, "bias": bias, "dtype": dtype}
    modules = [LAYERS[name](6, units, **options) for _ in range(width)]
    state_size = 3 if name == "lstm projected" else units
    depth = layers * (1 + both)
    x = uniform(width, steps, samples, 6, dtype=dtype)
    state = [uniform(width, depth, samples, state_size, seed=1, dtype=dtype)]
    ways = [uniform(width, steps, samples, state_size * (1 + both), seed=3, dtype=dtype), state[0].flip(-1)]
    if KINDS[name] == "lstm":
        state.append(uniform(width, depth, samples, units, seed=2, dtype=dtype))
        ways.append(state[1].flip(-1))
    got, (_, outputs) = run_over_lanes(modules, x, tuple(state), tuple(ways))
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    for i, module in enumerate(modules):
        own_x = x[i].clone().requires_grad_()
        own = [s[i].clone().requires_grad_() for s in state]
        y, last = module(own_x, tuple(own) if len(own) == 2 else own[0])
        parts = [y, *(last if len(own) == 2 else (last,))]
        torch.autograd.backward(parts, [w[i] for w in ways])
        for a, b in zip(outputs, parts, strict=True):
            assert torch.allclose(a[i], b, rtol=0, atol=limit)
        pairs = [(got[0][n][i], p.grad) for n, p in module.named_parameters()]
        pairs += [(got[1][i], own_x.grad), *((g[i], s.grad) for g, s in zip(got[2], own, strict=True))]
        for mine, theirs in pairs:
            assert theirs is not None
            assert (mine - theirs).abs().max() <= limit * max(1e-3, theirs.abs().max().item())


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_finite_differences(name: str, reverse: bool, masked: bool) -> None:
    module, kind = LAYERS[name](2, 3 if name != "lstm projected" else 4, dtype=torch.float64), KINDS[name]
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(uniform(*p.shape, seed=p.numel()) * 0.9)
    x, h0 = uniform(3, 2, 2).requires_grad_(), uniform(2, 3, seed=1).requires_grad_()
    c0 = uniform(2, module.hidden_size, seed=2).requires_grad_() if kind == "lstm" else None
    keep = torch.tensor([[1, 1], [1, 0], [1, 0]], dtype=torch.bool) if masked else None

    def run(x: Tensor, h0: Tensor, c0: Tensor | None, *given: Tensor) -> tuple[Tensor, ...]:
        w = Weights(given[0], given[1], given[2], given[3], given[4] if len(given) > 4 else None)
        y, h, c = recurrent(kind, x, h0, c0, w, keep, reverse=reverse)
        return (y, h, c) if kind == "lstm" else (y, h)

    assert torch.autograd.gradcheck(run, (x, h0, c0, *module.parameters()))  # type: ignore[arg-type]


def test_a_layer_is_one_node_each_way_however_many_steps() -> None:
    work = work_of(class_data(20, (40, 3)))

    def define(trial: Any) -> Recipe:
        model = Last("lstm", 3, 8)
        return Recipe(model.double(), optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 8)

    fleet = open_fleet(define, specs_of([{}])[0], 2, work)
    fleet.admit(ready(define, specs_of([{}])[0], work))
    fleet.arrange()
    fleet.run_epoch()
    nodes = fleet.program.graphs["train", 8].graph.nodes
    names = [getattr(n.target, "__name__", str(n.target)) for n in nodes]
    assert names.count("recurrent") == names.count("recurrent_backward") == 1 and len(names) < 120
    back = list(nodes)[names.index("recurrent_backward")]
    assert back.args[-1] is False  # nobody needs the gradient of the data


# --- lanes against solo -------------------------------------------------------------------------------------------


class Last(nn.Module):
    """Classifies a sequence (B, T, F) by its layer's last output."""

    def __init__(self, name: str, features: int, units: int, **options: Any) -> None:
        super().__init__()
        self.layer = LAYERS[name](features, units, **options)
        size = (3 if name == "lstm projected" else units) * (2 if self.layer.bidirectional else 1)
        self.head = nn.Linear(size, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer.batch_first:
            return self.head(self.layer(x)[0][:, -1])  # type: ignore[no-any-return]
        return self.head(self.layer(x.transpose(0, 1))[0][-1])  # type: ignore[no-any-return]


TABLE = [
    ("lstm", {"batch_first": True}, 2),
    ("lstm", {"num_layers": 2, "bidirectional": True, "dropout": 0.3}, 7),
    ("lstm projected", {"num_layers": 2, "batch_first": True, "dropout": 0.5}, 2),
    ("gru", {"num_layers": 3, "batch_first": True, "dropout": 0.2}, 2),
    ("gru", {"bidirectional": True, "bias": False}, 1),
    ("rnn", {"num_layers": 2, "dropout": 0.4, "bidirectional": True, "batch_first": True}, 2),
    ("rnn relu", {}, 7),
]


@ignore_projections
@pytest.mark.parametrize(("name", "options", "width"), TABLE, ids=[f"{n} {o} {w}" for n, o, w in TABLE])
def test_lanes_do_as_solo(name: str, options: dict[str, Any], width: int) -> None:
    def define(trial: Any) -> Recipe:
        got, own = trial.params, dict(options)
        if "dropout" in own:
            own["dropout"] = own["dropout"] * got["share"]
        model = Last(name, 5, 7, **own).double()
        return Recipe(model, optim.Adam(model.parameters(), lr=got["lr"]), nn.CrossEntropyLoss(), got["batch"])

    work = work_of(class_data(40, (6, 5), valid=9), "accuracy")
    specs = specs_of([{"lr": 0.01 * (i + 1), "share": 1 / (i + 1), "batch": (20, 40)[i % 2]} for i in range(3)])
    assert len({sign(define, s, work).key for s in specs}) == 1  # rates and batch sizes do not split
    lanes = train_fused(define, specs, work, 2, width=width)
    for spec in specs[:2]:
        assert_same_trail(lanes[spec.number], train_solo(define, spec, work, 2), 1e-9)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_in_a_loop_of_the_users_own_fuse_too(cell: Any) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = cell(5, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            state: Any = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.head(state[0] if cell is nn.LSTMCell else state)  # type: ignore[no-any-return]

    def define(trial: Any) -> Recipe:
        model = Loop().double()
        return Recipe(model, optim.SGD(model.parameters(), lr=trial.params["lr"]), nn.CrossEntropyLoss(), 16)

    work = work_of(class_data(32, (3, 5), valid=9))
    specs = specs_of([{"lr": 0.1}, {"lr": 0.3}])
    lanes = train_fused(define, specs, work, 1)
    assert_same_trail(lanes[1], train_solo(define, specs[1], work, 1), 1e-10)


def test_a_given_state_may_be_learned() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 4)
            self.start = nn.Parameter(torch.zeros(1, 1, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x, self.start.expand(1, len(x), 6).contiguous())[1][0])  # type: ignore[no-any-return]

    def define(trial: Any) -> Recipe:
        model = Learned().double()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.5), nn.CrossEntropyLoss(), 16)

    work = work_of(class_data(32, (3, 5), valid=9))
    lanes, solo = train_fused(define, specs_of([{}]), work, 2), train_solo(define, specs_of([{}])[0], work, 2)
    assert_same_trail(lanes[0], solo, 1e-10)
    assert solo.states[-1]["start"].abs().max() > 1e-3


def test_no_dropout_and_some_dropout_are_two_signatures() -> None:
    def define(trial: Any) -> Recipe:
        model = Last("gru", 3, 4, num_layers=2, dropout=trial.params["p"])
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 8)

    work = work_of(class_data(20, (4, 3), dtype=torch.float32))
    none, some, more = (sign(define, s, work).key for s in specs_of([{"p": 0.0}, {"p": 0.1}, {"p": 0.6}]))
    assert none != some == more


# --- packed sequences ---------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads words by number, 0 where a text is over, in one of the ways in which people use packed sequences."""

    def __init__(self, how: str, cls: Any, p: float) -> None:
        super().__init__()
        self.how = how
        self.words = nn.Embedding(11, 5)
        self.layer = cls(5, 6, num_layers=2, dropout=p, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x != 0).sum(1)
        if self.how == "sorted by hand":
            lengths, order = lengths.sort(descending=True)
            _, h = self.layer(pack_padded_sequence(self.words(x[order]), lengths, batch_first=True))
            return self.head(torch.cat([h[-2], h[-1]], 1)[order.argsort()])  # type: ignore[no-any-return]
        if self.training and "evaluation" in self.how:
            return self.head(self.layer(self.words(x))[0][:, -1])  # type: ignore[no-any-return]
        packed = pack_padded_sequence(self.words(x), lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, h = self.layer(packed)
        if self.how == "last state":
            h = h[0] if isinstance(h, tuple) else h
            return self.head(torch.cat([h[-2], h[-1]], 1))  # type: ignore[no-any-return]
        if self.how == "data":
            return self.head(y.data)[: len(x)]  # type: ignore[no-any-return]
        if self.how == "sizes":
            return self.head(y.data[: int(y.batch_sizes[1])])  # type: ignore[no-any-return]
        total = x.shape[1] + 2 if "total" in self.how else None
        out, n = pad_packed_sequence(y, batch_first=True, total_length=total, padding_value=-0.5)
        if "mean" in self.how:
            return self.head(out.mean(1))  # type: ignore[no-any-return]
        if self.how == "flat":
            return self.head(out.reshape(len(x), 5 * 12)[:, :12])  # type: ignore[no-any-return]
        return self.head(out[torch.arange(len(x)), n.to(x.device) - 1])  # type: ignore[no-any-return]


def reader(how: str, cls: Any) -> Define:
    def define(trial: Any) -> Recipe:
        got: Mapping[str, Any] = trial.params
        model = Reader(how, cls, got["p"]).double()
        return Recipe(model, optim.Adam(model.parameters(), lr=got["lr"]), nn.CrossEntropyLoss(), got["batch"])

    return define


def texts(n: int = 60, steps: int = 7) -> Datasets:
    """Word numbers (n, steps), the first of a length of its own."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(1, 11, (n, steps), generator=generator)
    x[torch.arange(steps) >= torch.randint(1, steps + 1, (n, 1), generator=generator)] = 0
    y = labels(n, 4)
    return datasets((x[:48], y[:48]), (x[48:], y[48:]))


@pytest.mark.parametrize(
    ("how", "cls"),
    [("last state", nn.LSTM), ("sorted by hand", nn.GRU), ("at the lengths", nn.RNN), ("total, mean", nn.LSTM)],
    ids=str,
)
def test_packed_sequences_fuse(how: str, cls: Any) -> None:
    define, work = reader(how, cls), work_of(texts(), "accuracy")
    specs = specs_of([{"lr": 0.01 * (i + 1), "p": 0.2 * (i + 1), "batch": (24, 48)[i % 2]} for i in range(2)])
    assert len({sign(define, s, work).key for s in specs}) == 1
    lanes = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(lanes[spec.number], train_solo(define, spec, work, 2), 1e-9)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("mean", "depends on how far sequences are padded; pass total_length="),
        ("mean in evaluation", "depends on how far sequences are padded; pass total_length="),
        ("flat", "needs sequences padded to the longest of a batch"),
        ("data", "calls linear on the inside of a packed sequence"),
        ("sizes", "asks how many sequences have a certain step"),
    ],
)
def test_what_depends_on_the_longest_sequence_of_a_batch_trains_solo(how: str, why: str) -> None:
    work = work_of(texts())
    if how == "flat":
        work.data.train.tensors[0][:8, 5:] = 0
        work.data.train.tensors[0][:8, :5] = 1
    with pytest.raises(FuseError, match=why):
        sign(reader(how, nn.GRU), specs_of([{"lr": 0.1, "p": 0.1, "batch": 8}])[0], work)


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (lambda packed: packed.data[0], "reads the inside of a packed sequence"),
        (lambda packed: packed.data.size(0), "asks how long a packed sequence is"),
        (lambda packed: torch.relu(packed.data), "calls relu on the inside of a packed sequence"),
    ],
)
def test_the_inside_of_a_packed_sequence_is_no_tensor_in_a_lane(use: Any, why: str) -> None:
    with KeyedRandom(torch.arange(2, dtype=torch.int32), lanes=True):
        packed = pack_padded_sequence(uniform(4, 2, 3), torch.tensor([4, 2]))
        with pytest.raises(FuseError, match=why):
            use(packed)


@pytest.mark.parametrize("length", [0, 5])
def test_a_length_that_torch_refuses_is_no_number_in_a_lane(length: int) -> None:
    layer = nn.GRU(3, 4, dtype=torch.float64)
    lengths = torch.tensor([4, length])
    with pytest.raises((RuntimeError, ValueError)):
        layer(pack_padded_sequence(uniform(4, 2, 3), lengths, enforce_sorted=False))
    with KeyedRandom(torch.arange(2, dtype=torch.int32), lanes=True):
        _, h = layer(pack_padded_sequence(uniform(4, 2, 3), lengths, enforce_sorted=False))
    assert h[0, 0].isfinite().all() and h[0, 1].isnan().all()


# --- neighbours ---------------------------------------------------------------------------------------------------

NEIGHBOURS: list[tuple[str, int, int, dict[str, Any], int]] = [
    ("lstm", 7, 10, {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "batch_first": True}, 3),
    ("gru", 9, 31, {"batch_first": True}, 5),
    ("rnn", 5, 1, {}, 1),
    ("lstm", 16, 32, {}, 8),
]


def check_neighbours(name: str, units: int, batch: int, options: dict[str, Any], features: int, width: int) -> None:
    """A trial's bits after an epoch are the same in three places, beside others that learn and others that diverge."""

    def define(trial: Any) -> Recipe:
        model = Last(name, features, units, **options)
        return Recipe(model, optim.Adam(model.parameters(), lr=trial.params["lr"]), nn.CrossEntropyLoss(), batch)

    work = work_of(class_data(33 if batch > 1 else 5, (6, features), dtype=torch.float32, valid=9))
    fleet = open_fleet(define, TrialSpec(0, 7, {"lr": 0.01}, {}), width, work)
    seen: list[dict[str, Tensor]] = []
    own = TrialSpec(1, 77, {"lr": 0.01}, {})
    for place, lr in ((0, 0.02), (width // 2, 0.01), (width - 1, 1e30)):
        fleet.lanes = [None] * width
        others = [TrialSpec(10 + i, 100 + i, {"lr": lr}, {}) for i in range(width - 1)]
        for spec in [*others[:place], own, *others[place:]]:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        fleet.run_epoch()
        seen.append(fleet.state.state_dict(fleet.lane_of(1)))
    for state in seen[1:]:
        for key, tensor in state.items():
            assert torch.equal(tensor, seen[0][key]), key
    assert all(bool(t.isfinite().all()) for t in seen[0].values())


@pytest.mark.parametrize("case", NEIGHBOURS, ids=str)
@pytest.mark.parametrize("width", [2, 7])
def test_neighbours_change_no_bit(case: tuple[str, int, int, dict[str, Any], int], width: int) -> None:
    check_neighbours(*case, width)
