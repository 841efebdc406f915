"""Networks on tables, pairs and sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import CLASSES, Entry, classes_of, floats, numbers_of, vectors, whole


class FTTransformer(nn.Module):
    """Every feature becomes a token."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, width)), nn.Parameter(torch.zeros(6, width))
        self.tables = nn.ModuleList([nn.Embedding(k, width) for k in (4, 5)])
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(
            width, 2, 8, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, CLASSES))

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        parts = [self.cls.expand(len(numeric), -1, -1), numeric[:, :, None] * self.weight + self.bias]
        parts += [table(categories[:, i])[:, None] for i, table in enumerate(self.tables)]
        return self.head(self.encoder(torch.cat(parts, 1))[:, 0])  # type: ignore[no-any-return]


class WideAndDeep(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(k, 3) for k in (4, 5)])
        self.wide = nn.Embedding(20, 1)
        self.deep = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        a, b = categories.unbind(1)
        crossed = self.wide(a * 5 + b)
        embedded = [table(c) for table, c in zip(self.tables, (a, b), strict=True)]
        return crossed + self.deep(torch.cat([numeric, *embedded], 1))  # type: ignore[no-any-return]


class CrossNetwork(nn.Module):
    """Deep and cross network: x0 times a linear map of x, added to x."""

    def __init__(self, features: int, depth: int) -> None:
        super().__init__()
        self.cross = nn.ModuleList([nn.Linear(features, features) for _ in range(depth)])
        self.deep = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.BatchNorm1d(8))
        self.head = nn.Linear(features + 8, CLASSES)

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.head(torch.cat([x, self.deep(x0)], 1))  # type: ignore[no-any-return]


class MixtureOfExperts(nn.Module):
    def __init__(self, experts: int, temperature: float) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)) for _ in range(experts)]
        )
        self.gate, self.temperature = nn.Linear(6, experts), temperature

    def forward(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.gate(x) / self.temperature, dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (weights.unsqueeze(-1) * outputs).sum(1)


class TopKExperts(nn.Module):
    """Only the best two of four experts count; all are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.gate = nn.ModuleList([nn.Linear(6, CLASSES) for _ in range(4)]), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        top, index = self.gate(x).topk(2, dim=-1)
        weights = torch.zeros(x.shape[0], 4, device=x.device).scatter(1, index, top.softmax(-1))
        return torch.einsum("bec,be->bc", torch.stack([e(x) for e in self.experts], 1), weights)


class ResidualMLP(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(2)]
        )
        self.scale, self.head = scale, nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.scale * block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Highway(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList([nn.Linear(6, 6) for _ in range(depth)])
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(depth)])
        self.head = nn.Linear(6, CLASSES)
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for gate, layer in zip(self.gates, self.layers, strict=True):
            g = torch.sigmoid(gate(x))
            x = g * F.relu(layer(x)) + (1 - g) * x
        return self.head(x)  # type: ignore[no-any-return]


class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))
        self.rho = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).sum(dim=1))  # type: ignore[no-any-return]


class Recommender(nn.Module):
    """Matrix factorisation with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(7, 4), nn.Embedding(9, 4)
        self.user_bias, self.item_bias = nn.Embedding(7, 1), nn.Embedding(9, 1)
        self.mean = nn.Parameter(torch.zeros(1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        dot = (self.user(user) * self.item(item)).sum(1, keepdim=True)
        return dot + self.user_bias(user) + self.item_bias(item) + self.mean  # type: ignore[no-any-return]


class FactorizationMachine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.v = nn.Linear(6, 1), nn.Parameter(torch.randn(6, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        pairs = 0.5 * ((x @ self.v) ** 2 - (x**2) @ (self.v**2)).sum(1, keepdim=True)
        return self.linear(x) + pairs  # type: ignore[no-any-return]


class GraphConvolution(nn.Module):
    """Two rounds of messages over a dense adjacency matrix per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        a = torch.sigmoid(edges)
        a = a / a.sum(-1, keepdim=True)
        h = F.relu(torch.bmm(a, self.first(nodes)))
        return self.head(torch.bmm(a, self.second(h)).mean(1))  # type: ignore[no-any-return]


class SELUNet(nn.Sequential):
    """Self-normalising: SELU and alpha dropout."""

    def __init__(self, p: float) -> None:
        super().__init__(nn.Linear(6, 8), nn.SELU(), nn.AlphaDropout(p), nn.Linear(8, CLASSES))


def weight_normed_old(trial: Any) -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.utils.weight_norm(nn.Linear(8, CLASSES)))


def weight_normed(trial: Any) -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(6, 8)), nn.Tanh(), norm(nn.Linear(8, CLASSES)))


def spectrally_normed_old(trial: Any) -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 8)), nn.LeakyReLU(0.1), nn.Linear(8, CLASSES))


def spectrally_normed(trial: Any) -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(6, 8)), nn.LeakyReLU(0.1), norm(nn.Linear(8, CLASSES)))


def orthogonal(trial: Any) -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, CLASSES))


def _mixed() -> tuple[Tensor, ...]:
    return floats(6), torch.stack([whole(4), whole(5, seed=2)], 1)


def _mixed_classes() -> tuple[Tensor, ...]:
    return (*_mixed(), whole(CLASSES, seed=9))


def _clicks() -> tuple[Tensor, ...]:
    return (*_mixed(), (floats(1, seed=9) > 0).to(torch.get_default_dtype()))


TABULAR: tuple[Entry, ...] = (
    Entry("FT-Transformer", lambda t: FTTransformer(), _mixed_classes),
    Entry("wide and deep", lambda t: WideAndDeep(t.suggest_float("dropout", 0.0, 0.5)), _clicks, nn.BCEWithLogitsLoss),
    Entry("deep and cross network", lambda t: CrossNetwork(6, 2), vectors()),
    Entry(
        "mixture of experts, dense", lambda t: MixtureOfExperts(3, t.suggest_float("temperature", 0.5, 2)), vectors()
    ),
    Entry("mixture of experts, top two", lambda t: TopKExperts(), vectors()),
    Entry("residual MLP with a scale", lambda t: ResidualMLP(t.suggest_float("scale", 0.1, 1)), vectors()),
    Entry("highway network", lambda t: Highway(2), vectors()),
    Entry("deep sets", lambda t: DeepSets(), classes_of(lambda: floats(4, 3))),
    Entry(
        "matrix factorisation",
        lambda t: Recommender(),
        numbers_of(lambda: whole(7), lambda: whole(9, seed=2)),
        nn.MSELoss,
    ),
    Entry("factorisation machine", lambda t: FactorizationMachine(), numbers_of(lambda: floats(6)), nn.MSELoss),
    Entry(
        "graph convolution",
        lambda t: GraphConvolution(),
        classes_of(lambda: floats(4, 3), lambda: floats(4, 4, seed=3)),
    ),
    Entry("self-normalising network", lambda t: SELUNet(t.suggest_float("p", 0.05, 0.3)), vectors()),
    Entry("weight norm, old style", weight_normed_old, vectors()),
    Entry("weight norm, parametrization", weight_normed, vectors()),
    Entry("spectral norm, old style", spectrally_normed_old, vectors()),
    Entry("spectral norm, parametrization", spectrally_normed, vectors()),
    Entry("orthogonal parametrization", orthogonal, vectors()),
)
