"""Builders against classes written by hand, initialisations against torch's and their definitions, names and summaries."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import shoal
from shoal.errors import UsageError
from shoal.nn import _names


class Deep(nn.Module):
    """A residual network with dropout and norms, as one would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Linear(5, 8), nn.LayerNorm(8)
        self.b, self.norm_b = nn.Linear(8, 8), nn.LayerNorm(8)
        self.c, self.norm_c = nn.Linear(8, 6), nn.LayerNorm(6)
        self.skip = nn.Linear(8, 6, bias=False)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm_a(self.a(x)))
        x = x + F.gelu(self.norm_b(self.b(x)))
        x = self.skip(x) + F.gelu(self.norm_c(self.c(x)))
        return self.out(x)  # type: ignore[no-any-return]


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.direct = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(x))) + self.direct(x)  # type: ignore[no-any-return]


class Table(nn.Module):
    """An embedding per column in a table of its own, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(4, 2), nn.Embedding(3, 2)])
        self.a, self.out = nn.Linear(5 + 4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        vectors = [e(c[:, i]) for i, e in enumerate(self.embeddings)]
        return self.out(torch.relu(self.a(torch.cat([x, *vectors], 1))))  # type: ignore[no-any-return]


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, 4), nn.GroupNorm(8, 8)])
        self.out = nn.Linear(8 * 2 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.norms[0](self.a(x))), 2)
        x = F.max_pool2d(torch.tanh(self.norms[1](self.b(x))), 2)
        return self.out(x.flatten(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(11, 4), nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (last, _) = self.lstm(self.embed(tokens))  # (layers * directions, batch, 6)
        return self.out(torch.cat([last[-2], last[-1]], 1))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.positions = nn.Linear(4, 8), nn.Parameter(torch.zeros(7, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.front(x) + self.positions).mean(1))  # type: ignore[no-any-return]


def rows() -> tuple[Tensor, ...]:
    return (torch.randn(9, 5),)


BUILT: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "deep": (
        lambda: shoal.nn.mlp(5, 3, width=[8, 8, 6], activation="gelu", norm="layer", residual=True, dropout=0.3),
        Deep,
        rows,
    ),
    "deep and wide": (lambda: shoal.nn.mlp(5, 3, width=8, depth=1, wide=True), Wide, rows),
    "cnn": (
        lambda: shoal.nn.cnn((1, 8, 12), 3, channels=4, norm="group", activation="tanh", dropout=0.2),
        Convolutions,
        lambda: (torch.randn(9, 1, 8, 12),),
    ),
    "rnn": (
        lambda: shoal.nn.rnn(11, 3, kind="lstm", width=6, depth=2, bidirectional=True, tokens=True, embedding=4),
        Recurrent,
        lambda: (torch.randint(11, (9, 5)),),
    ),
    "transformer": (
        lambda: shoal.nn.transformer(4, 3, length=7, width=8, heads=2),
        Encoder,
        lambda: (torch.randn(9, 7, 4),),
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_built_model_is_the_class_written_by_hand(name: str) -> None:
    build, by_hand, inputs = BUILT[name]
    torch.manual_seed(0)
    ours, theirs, x = build().eval(), by_hand().eval(), inputs()
    # Names differ; shapes do not, and where two tensors have one shape, order decides.
    mine, yours = list(ours.state_dict().values()), list(theirs.state_dict().values())
    assert sorted(t.shape for t in mine) == sorted(t.shape for t in yours)
    left = list(yours)
    with torch.no_grad():
        for tensor in mine:
            place = next(i for i, other in enumerate(left) if other.shape == tensor.shape)
            left.pop(place).copy_(tensor)
    assert torch.allclose(ours(*x), theirs(*x), atol=1e-5)


def test_embeddings_of_all_columns_are_one_table() -> None:
    torch.manual_seed(0)
    ours, theirs = shoal.nn.mlp(5, 3, width=8, depth=1, categories=[4, 3], embedding=2), Table()
    table = ours.get_parameter("embedding.weight")
    assert (table[0] == 0).all() and (table[4] == 0).all() and (table != 0).any(1).sum() == 5
    theirs.load_state_dict(
        {
            "embeddings.0.weight": table[:4],
            "embeddings.1.weight": table[4:],
            "a.weight": ours.get_parameter("body.0.weight"),
            "a.bias": ours.get_parameter("body.0.bias"),
            "out.weight": ours.get_parameter("body.2.weight"),
            "out.bias": ours.get_parameter("body.2.bias"),
        }
    )
    x, c = torch.randn(20, 5), torch.stack([torch.randint(4, (20,)), torch.randint(3, (20,))], 1)
    assert torch.equal(ours(x, c), theirs(x, c))
    assert shoal.nn.mlp(0, 3, categories=[4, 3])(c).shape == (20, 3)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("both", [False, True])
def test_pooling_of_recurrent_outputs(kind: Any, pool: Any, both: bool) -> None:
    model = shoal.nn.rnn(3, 2, kind=kind, width=4, bidirectional=both, pool=pool)
    x = torch.randn(6, 5, 3)
    layer = model.get_submodule("0.layer")
    out, state = layer(x)
    last = state[0] if kind == "lstm" else state
    want = {"last": torch.cat(list(last), 1), "mean": out.mean(1), "max": out.amax(1)}[pool]
    assert torch.allclose(model[0](x), want, atol=1e-6)


@pytest.mark.parametrize(("shape", "conv"), [((2, 16), nn.Conv1d), ((2, 16, 8), nn.Conv2d), ((2, 8, 8, 8), nn.Conv3d)])
@pytest.mark.parametrize("norm", [None, "batch", "layer", "group", "instance"])
@pytest.mark.parametrize("head", ["flatten", "average"])
def test_convolutions_in_one_two_and_three_dimensions(
    shape: tuple[int, ...], conv: type[nn.Module], norm: str | None, head: Any
) -> None:
    model = shoal.nn.cnn(shape, 3, channels=4, norm=norm, residual=True, head=head)
    assert sum(isinstance(m, conv) for m in model.modules()) == 4  # with one shortcut for each of two blocks
    assert model(torch.randn(5, *shape)).shape == (5, 3)


def test_depth_zero_is_a_linear_model() -> None:
    for model in (shoal.nn.mlp(4, 2, depth=0), shoal.nn.mlp(4, 2, width=[])):
        assert [type(m) for m in model.children()] == [nn.Linear]


def test_layers_of_a_transformer_start_with_weights_of_their_own() -> None:
    model = shoal.nn.transformer(4, 2, length=3, width=8, heads=2)
    assert not torch.equal(model.get_parameter("2.linear1.weight"), model.get_parameter("3.linear1.weight"))


# -- initialisations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("xavier_uniform", lambda w: nn.init.xavier_uniform_(w, 5 / 3)),
        ("glorot_normal", lambda w: nn.init.xavier_normal_(w, 5 / 3)),
        ("he_normal", lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
        ("kaiming_uniform", lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu")),
        ("lecun_normal", lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")),
        ("lecun_uniform", lambda w: nn.init.kaiming_uniform_(w, nonlinearity="linear")),
        ("orthogonal", lambda w: nn.init.orthogonal_(w, 5 / 3)),
        ("trunc_normal", lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04)),
    ],
)
@pytest.mark.parametrize("layer", [nn.Linear(20, 30), nn.Conv2d(3, 8, 3)])
def test_initial_weights_are_those_of_torch(name: str, fill: Callable[[Tensor], Tensor], layer: Any) -> None:
    torch.manual_seed(3)
    shoal.nn.initialise(layer, name, activation="tanh")
    torch.manual_seed(3)
    assert torch.equal(layer.weight, fill(torch.empty_like(layer.weight)))
    assert (layer.bias == 0).all()


def test_recurrent_and_attention_weights_are_drawn_gate_by_gate() -> None:
    lstm, attention = nn.LSTM(6, 6), nn.MultiheadAttention(6, 2)
    layers: list[tuple[nn.Module, str, int]] = [(lstm, "weight_hh_l0", 4), (attention, "in_proj_weight", 3)]
    for layer, stacked, gates in layers:
        shoal.nn.initialise(layer, "orthogonal", activation="linear")
        for gate in layer.get_parameter(stacked).chunk(gates):
            assert torch.allclose(gate @ gate.T, torch.eye(6), atol=1e-5)
    assert (lstm.get_parameter("bias_ih_l0") == 0).all() and (attention.in_proj_bias == 0).all()
    apart = nn.MultiheadAttention(6, 2, kdim=3, vdim=3)
    shoal.nn.initialise(apart, "orthogonal", activation="linear")
    assert torch.allclose(apart.k_proj_weight.T @ apart.k_proj_weight, torch.eye(3), atol=1e-5)


def test_default_leaves_weights_alone() -> None:
    model = shoal.nn.mlp(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shoal.nn.initialise(model, "default")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (shoal.nn.mlp(10, 3, width=32, depth=6, activation="tanh", dropout=0.5), (256, 10)),
        (shoal.nn.mlp(10, 3, width=32, depth=3, residual=True, wide=True), (256, 10)),
        (shoal.nn.cnn((2, 8, 8), 3, channels=8, norm="batch"), (128, 2, 8, 8)),
    ],
)
def test_lsuv_gives_every_layer_unit_variance(model: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(shape)
    model.train()
    shoal.nn.initialise(model, "lsuv", data=x)
    assert model.training and all(module.training for module in model.modules())
    variances = []
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: variances.append(float(output.var())))
    with torch.no_grad():
        model.eval()(x)
    assert len(variances) == len(layers) and all(abs(v - 1) < 0.06 for v in variances)


def test_lsuv_survives_a_layer_whose_output_is_constant() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    shoal.nn.initialise(model, "lsuv", data=torch.zeros(8, 4))
    assert all(torch.isfinite(p).all() for p in model.parameters())


# -- names ------------------------------------------------------------------------------------------------------------


def test_every_name_makes_what_it_says() -> None:
    model = nn.Linear(2, 2)
    for name, (cls, preset) in shoal.nn.OPTIMIZERS.items():
        made = shoal.nn.optimizer(model, name, lr=0.01)
        assert type(made) is cls and made.param_groups[0]["lr"] == 0.01
        assert {key: made.param_groups[0][key] for key in preset} == preset
    for name in shoal.nn.ACTIVATIONS:
        assert shoal.nn.activation(name)(torch.zeros(2)).shape == (2,)
    for name, kind in shoal.nn.LOSSES.items():
        assert type(shoal.nn.loss(name)) is kind
    groups = [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias]}]
    assert [g["lr"] for g in shoal.nn.optimizer(groups, "sgd", lr=0.1).param_groups] == [0.5, 0.1]
    assert isinstance(shoal.nn.optimizer(model), optim.AdamW)


def test_activations_can_differ_between_lanes() -> None:
    from shoal.lanes.activations import kind_of

    assert all(kind_of(shoal.nn.activation(name)) is not None for name in shoal.nn.ACTIVATIONS)


def build(name: str, *args: Any, **keywords: Any) -> Callable[[], object]:
    return lambda: getattr(shoal.nn, name)(*args, **keywords)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (build("mlp", 4, 2, activation="rellu"), "unknown activation 'rellu'. Did you mean 'relu'?"),
        (build("mlp", 4, 2, norm="layr"), "unknown norm 'layr'. Did you mean 'layer'?"),
        (
            build("mlp", 4, 2, init="xavier_unifrom"),
            "unknown initialisation 'xavier_unifrom'. Did you mean 'xavier_uniform'?",
        ),
        (
            build("mlp", 4, 2, init="lsuv"),
            "initialise(..., 'lsuv') measures each layer's output: pass some tens of samples",
        ),
        (build("mlp", 0, 2), "mlp(n_in=...) must be a whole number, 0 only if there are categories; got 0."),
        (build("mlp", 4, 2, width=[8, 0]), "mlp(width[1]=...) must be a whole number of at least 1; got 0."),
        (build("mlp", 4, 2, depth=-1), "mlp(depth=...) must be a whole number, 0 or more; got -1."),
        (
            build("mlp", 4, 2, dropout=1.0),
            "mlp(dropout=...) must be None or a rate of at least 0 and below 1; got 1.0.",
        ),
        (build("mlp", 4, 2, categories=[3, 0]), "mlp(categories[1]=...) must be a whole number of at least 1; got 0."),
        (build("cnn", (8,), 2), "cnn(in_shape=...) must be (channels, length), (channels, height, width) or "),
        (build("cnn", (1, 8, 8), 2, kernel=4), "cnn(kernel=...) must be odd, so that padding keeps the size; got 4."),
        (build("cnn", (1, 8, 8), 2, depth=5), "pooling by 2 after each block leaves nothing of (1, 8, 8)"),
        (build("cnn", (1, 8, 8), 2, channels=[]), "cnn(channels=[]) has no block"),
        (build("cnn", (1, 8, 8), 2, head="mean"), "unknown head 'mean'. Known: average, flatten."),
        (build("rnn", 4, 2, kind="gro"), "unknown kind 'gro'. Did you mean 'gru'?"),
        (build("rnn", 4, 2, pool="lasst"), "unknown pool 'lasst'. Did you mean 'last'?"),
        (build("transformer", 4, 2, length=3, width=9), "must be a multiple of heads; got width=9 and heads=4."),
        (build("transformer", 4, 2, length=3, activation="tanh"), "unknown activation 'tanh' of a transformer."),
        (build("optimizer", nn.Linear(2, 2), "adm"), "unknown optimizer 'adm'. Did you mean 'adam'?"),
        (
            build("optimizer", nn.Linear(2, 2), "adam", momentun=0.9),
            "optimizer 'adam' (torch.optim.adam.Adam) has no keyword 'momentun'.",
        ),
        (build("optimizer", nn.Linear(2, 2), lr=-1.0), "optimizer 'adamw': Invalid learning rate: -1.0."),
        (build("loss", "cross_entopy"), "unknown loss 'cross_entopy'. Did you mean 'cross_entropy'?"),
        (
            build("activation", "relu", slope=1),
            "activation 'relu' (torch.nn.modules.activation.ReLU) has no keyword 'slope'.",
        ),
        (build("activation", "tanh", slope=1), "has no keyword 'slope'. It takes none."),
        (build("activation", 3), "unknown activation 3."),
        (
            build("summary", nn.Linear(3, 2), torch.zeros(1, 4)),
            "Linear cannot be run on inputs of these shapes: (1, 4).",
        ),
        (build("Range", 2, 1), "a range must go up; got 2 to 1."),
        (build("Range", 0, 1, log=True), "a range on a logarithmic scale must start above 0; got 0 to 1."),
        (build("Range", 1, 4, log=True, step=1), "a range is either on a logarithmic scale or has a step, not both."),
    ],
)
def test_wrong_arguments_are_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        call()


# -- spaces -----------------------------------------------------------------------------------------------------------


class Asked:
    """A trial that notes what it is asked, and answers with the last choice or the upper bound."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        self.asked[name] = choices
        return choices[-1]

    def suggest_float(self, name: str, low: float, high: float, **how: Any) -> float:
        self.asked[name] = (low, high, how["log"])
        return high

    suggest_int = suggest_float


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("mlp", lambda **k: shoal.nn.mlp(4, 3, **k)),
        ("cnn", lambda **k: shoal.nn.cnn((1, 8, 8), 3, **k)),
        ("rnn", lambda **k: shoal.nn.rnn(4, 3, **k)),
        ("transformer", lambda **k: shoal.nn.transformer(4, 3, length=5, **k)),
    ],
)
def test_default_spaces_make_recipes_and_are_the_documented_ones(name: str, build: Callable[..., nn.Module]) -> None:
    suggest, trial = getattr(shoal.nn, f"{name}_space"), Asked()
    pick = suggest(trial)
    model = build(**pick.model)
    recipe = shoal.Recipe(model, shoal.nn.optimizer(model, **pick.optimizer), nn.CrossEntropyLoss(), pick.batch_size)
    assert recipe.batch_size == 64 and pick.optimizer["name"] == "momentum"
    # A part can be anything the builder takes, and one that is fixed is not asked for.
    fixed = dict.fromkeys(trial.asked, None) | {
        **pick.model,
        "lr": 0.1,
        "weight_decay": 0.0,
        "batch_size": 8,
        "optimizer": "sgd",
    }
    quiet = Asked()
    assert suggest(quiet, **fixed).batch_size == 8 and quiet.asked == {}


def test_parts_of_a_space_can_be_replaced() -> None:
    trial = Asked()
    pick = shoal.nn.mlp_space(
        trial, width=[[8, 4], [16]], lr=(0.01, 0.1), dropout=None, depth=shoal.nn.Range(1, 3), residual=[False, True]
    )
    assert trial.asked["width"] == ["[8, 4]", "[16]"] and pick.model["width"] == [16]
    assert trial.asked["lr"] == (0.01, 0.1, True) and trial.asked["depth"] == (1, 3, False)
    assert pick.model["residual"] is True and pick.model["dropout"] is None and "dropout" not in trial.asked


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"widht": 3}, "mlp_space has no part 'widht'. Did you mean 'width'?"),
        ({"n_in": 3}, "mlp_space has no part 'n_in'."),
        ({"lr": (0.1, 0.2, 0.3)}, "lr as a pair gives the bounds of its range, (low, high); got (0.1, 0.2, 0.3)."),
        ({"width": []}, "width=[] leaves nothing to choose from."),
    ],
)
def test_wrong_parts_of_a_space_are_explained(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        shoal.nn.mlp_space(Asked(), **knobs)


BUILDERS: dict[str, tuple[Callable[..., nn.Module], Callable[[Any], Any], list[tuple[int, ...]]]] = {
    "mlp": (
        lambda **k: shoal.nn.mlp(3, 2, categories=[4, 5], embedding=2, **k),
        lambda trial: shoal.nn.mlp_space(trial, width=16, depth=2, norm="layer", residual=True),
        [(3,), (2,)],
    ),
    "cnn": (
        lambda **k: shoal.nn.cnn((1, 8, 8), 2, **k),
        lambda trial: shoal.nn.cnn_space(trial, channels=4),
        [(1, 8, 8)],
    ),
    "rnn": (
        lambda **k: shoal.nn.rnn(3, 2, **k),
        lambda trial: shoal.nn.rnn_space(trial, kind="lstm", width=8, bidirectional=True),
        [(5, 3)],
    ),
    "transformer": (
        lambda **k: shoal.nn.transformer(3, 2, length=5, **k),
        lambda trial: shoal.nn.transformer_space(trial, width=8, depth=1),
        [(5, 3)],
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_trials_of_one_shape_train_together(name: str) -> None:
    builder, suggest, shapes = BUILDERS[name]

    def define(trial: Any) -> shoal.Recipe:
        pick = suggest(trial)
        model = builder(**pick.model)
        return shoal.Recipe(model, shoal.nn.optimizer(model, **pick.optimizer), nn.CrossEntropyLoss(), pick.batch_size)

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(200, *shape, generator=generator) for shape in shapes]
    inputs[1:] = [torch.randint(4, (200, 2), generator=generator) for _ in inputs[1:]]
    found = shoal.explain(define, train=(*inputs, (inputs[0].flatten(1)[:, 0] > 0).long()), n_trials=4)
    fused = [group for group in found.groups if not group.reason]
    assert sum(len(group.trials) for group in fused) == 4 and len(fused) <= 2  # one per quantum


# -- summary ----------------------------------------------------------------------------------------------------------


def test_summary_lists_layers_shapes_and_parameters() -> None:
    model = shoal.nn.mlp(3, 2, width=8, depth=1, categories=[4, 5], embedding=2, dropout=0.5)
    model.get_parameter("body.0.bias").requires_grad_(False)
    found = shoal.nn.summary(model, torch.zeros(6, 3), torch.zeros(6, 2, dtype=torch.int64))
    assert found.n_parameters == sum(p.numel() for p in model.parameters()) == 9 * 2 + 7 * 8 + 8 + 8 * 2 + 2
    assert [(x.name, x.kind, x.shape) for x in found.layers] == [
        ("embedding", "Embedding", (6, 2, 2)),
        ("body.0", "Linear", (6, 8)),
        ("body.1", "ReLU", (6, 8)),
        ("body.2", "Dropout", (6, 8)),
        ("body.3", "Linear", (6, 2)),
    ]
    assert str(found).endswith("Rows: 100 parameters, 8 of them fixed")
    assert model.training and not model._forward_hooks and not model.get_submodule("body.0")._forward_hooks


def test_summary_sees_inside_attention_and_recurrence() -> None:
    encoder = shoal.nn.summary(shoal.nn.transformer(4, 3, length=5, width=8, heads=2), torch.zeros(2, 5, 4))
    assert {"linear1", "linear2", "norm1"} <= {x.name.split(".")[-1] for x in encoder.layers}
    assert torch.backends.mha.get_fastpath_enabled()
    lstm = shoal.nn.summary(shoal.nn.rnn(4, 3, kind="lstm", width=6), torch.zeros(2, 5, 4))
    assert [x.shape for x in lstm.layers] == [(2, 5, 6), (2, 3)]


def test_names_do_not_lose_a_class() -> None:
    assert {cls.__name__ for cls, _ in _names.OPTIMIZERS.values()} == {
        name
        for name in dir(optim)
        if name[0].isupper() and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon", "Adafactor")
    }
