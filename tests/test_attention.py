"""Attention and transformers fuse, with dropout inside of them, and do as solo."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from lanes_helpers import assert_same_trail, class_data, open_fleet, ready, sign, specs_of, train_fused, train_solo
from lanes_helpers import work_of as work_on
from shoal.errors import FuseError
from shoal.lanes.rng import KeyedRandom, sample_keys
from shoal.lanes.step import _trace
from shoal.recipe import Recipe
from shoal.records import TrialSpec

STEPS, WIDTH = 5, 8


def causal() -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(STEPS, dtype=torch.float64)


class Model(nn.Module):
    """Self-attention of a kind over (B, T, E), then a mean over time and a head."""

    def __init__(self, how: str, p: float) -> None:
        super().__init__()
        self.how, self.p = how, 0.3  # a number in a forward pass is no lane's own
        layer: dict[str, Any] = {"dim_feedforward": 12, "dropout": p, "batch_first": True}
        match how:
            case "attention" | "attention with weights":
                self.inner: Any = nn.MultiheadAttention(WIDTH, 2, dropout=p, batch_first=True)
            case "encoder, padded":
                self.inner = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, **layer), 2)
            case "encoder, causal buffer":
                own = nn.TransformerEncoderLayer(WIDTH, 2, norm_first=True, activation="gelu", **layer)
                self.inner = nn.TransformerEncoder(own, 1, enable_nested_tensor=False)
                self.register_buffer("causal", causal(), persistent=False)
            case "decoder":
                self.inner = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 2, **layer), 1)
            case _:
                self.inner = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "attention":
                y = self.inner(x, x, x, need_weights=False)[0]
            case "attention with weights":
                y, weights = self.inner(x, x, x)
                y = y + weights.mean((1, 2))[:, None, None]
            case "encoder, padded":
                y = self.inner(x, src_key_padding_mask=x[..., 0] > 1.5)
            case "encoder, causal buffer":
                y = self.inner(x, mask=self.causal)
            case "decoder":
                y = self.inner(x, x.flip(1), tgt_mask=causal())
            case _:
                q, k, v = (t.view(len(x), STEPS, 2, 4).transpose(1, 2) for t in self.inner(x).chunk(3, -1))
                p = self.p if self.training else 0.0
                y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(y.mean(1))  # type: ignore[no-any-return]


HOW = (
    "attention",
    "attention with weights",
    "encoder, padded",
    "encoder, causal buffer",
    "decoder",
    "functional",
)


@pytest.mark.parametrize("how", HOW)
def test_lanes_do_as_solo(how: str) -> None:
    def define(trial: Any) -> Recipe:
        got = trial.params
        model = Model(how, got["p"]).double()
        return Recipe(model, optim.Adam(model.parameters(), lr=got["lr"]), nn.CrossEntropyLoss(), got["batch"])

    work = work_on(class_data(40, (STEPS, WIDTH), valid=9), "accuracy")
    specs = specs_of([{"lr": 0.01, "p": 0.2, "batch": 20}, {"lr": 0.02, "p": 0.4, "batch": 40}])
    assert len({sign(define, s, work).key for s in specs}) == 1  # neither rates nor batch sizes split
    lanes, solo = train_fused(define, specs, work, 1), {s.number: train_solo(define, s, work, 1) for s in specs}
    for trail in (*lanes.values(), *solo.values()):
        for state in trail.states:
            state.pop("causal", None)  # minus infinity less itself is no number
    for number in lanes:
        assert_same_trail(lanes[number], solo[number], 1e-9)


def test_neighbours_change_no_bit() -> None:
    def define(trial: Any) -> Recipe:
        model = nn.Sequential(nn.TransformerEncoderLayer(9, 3, 7, dropout=trial.params["p"], batch_first=True), Mean())
        return Recipe(model, optim.Adam(model.parameters(), lr=trial.params["lr"]), nn.CrossEntropyLoss(), 10)

    work = work_on(class_data(23, (7, 9), classes=9, dtype=torch.float32, valid=9))
    own = TrialSpec(1, 77, {"lr": 0.01, "p": 0.1}, {})
    fleet = open_fleet(define, own, 5, work)
    seen: list[dict[str, Tensor]] = []
    for place, lr in ((0, 0.02), (2, 0.01), (4, 1e30)):
        fleet.lanes = [None] * 5
        others = [TrialSpec(10 + i, 100 + i, {"lr": lr, "p": 0.3}, {}) for i in range(4)]
        for spec in [*others[:place], own, *others[place:]]:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        fleet.run_epoch()
        seen.append(fleet.state.state_dict(fleet.lane_of(1)))
    for key, tensor in seen[0].items():
        assert all(torch.equal(tensor, state[key]) for state in seen[1:]), key


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def keys(n: int) -> Tensor:
    return torch.from_numpy(sample_keys(3, 0, n))


MASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.ones(STEPS, STEPS, dtype=torch.bool).tril(1)},
    "added": {"attn_mask": torch.linspace(-1, 1, STEPS * STEPS, dtype=torch.float64).view(STEPS, STEPS)},
    "scaled": {"scale": 0.7},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("name", MASKS)
def test_attention_step_by_step_is_torchs_where_nothing_is_dropped(name: str) -> None:
    q, k, v = torch.randn(3, 4, 6, STEPS, 8, dtype=torch.float64).unbind(0)
    if name == "grouped":
        k, v = k[:, :2], v[:, :2]
    with KeyedRandom(keys(4)):
        got = F.scaled_dot_product_attention(q, k, v, dropout_p=1e-30, **MASKS[name])
    assert torch.allclose(got, F.scaled_dot_product_attention(q, k, v, **MASKS[name]), rtol=0, atol=1e-12)


def test_dropped_weights_average_to_those_that_are_not() -> None:
    q, k, v = torch.randn(3, 1, 2, STEPS, 8).expand(3, 4000, 2, STEPS, 8).unbind(0)
    with KeyedRandom(keys(4000)) as mode:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3)
    assert not mode.whole
    expected = F.scaled_dot_product_attention(q[:1], k[:1], v[:1])[0]
    error = (out.mean(0) - expected).abs() / (out.std(0) / math.sqrt(4000))
    assert error.max() < 5 and out.std(0).min() > 1e-3


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_draws_by_sample(batch_first: bool, need_weights: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=batch_first)
    x = torch.randn(12, STEPS, 8)

    def run(x: Tensor, key: Tensor) -> Tensor:
        x = x if batch_first else x.transpose(0, 1)
        with KeyedRandom(key) as mode:
            out = layer(x, x, x, need_weights=need_weights)[0]
        assert not mode.whole and mode.rows == 1
        return out if batch_first else out.transpose(0, 1)  # type: ignore[no-any-return]

    whole, sizes = run(x, keys(12)), [5, 7]
    parts = torch.cat([run(a, b) for a, b in zip(torch.split(x, sizes), torch.split(keys(12), sizes), strict=True)])
    assert torch.allclose(whole, parts, atol=1e-6)
    assert (whole - run_plain(layer, x, batch_first)).abs().max() > 1e-2


def run_plain(layer: nn.Module, x: Tensor, batch_first: bool) -> Tensor:
    x = x if batch_first else x.transpose(0, 1)
    out: Tensor = layer.eval()(x, x, x)[0]
    return out if batch_first else out.transpose(0, 1)


def test_evaluation_of_an_encoder_is_torchs() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), 2).eval()
    x = torch.randn(4, STEPS, 8)
    with torch.no_grad(), KeyedRandom(keys(4)):
        got = model(x)
    assert torch.allclose(got, model(x), atol=1e-5)


def test_an_attention_kernel_that_may_draw_is_refused_only_if_it_does() -> None:
    def attend(p: float) -> None:
        q = torch.randn(2, 2, STEPS, 8)
        _trace(lambda q: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q, p)[0], [q])

    attend(0.0)
    with pytest.raises(FuseError, match=r"draws random numbers through |cannot be traced over lanes .*dropout"):
        attend(0.5)
