"""One entry per kind of layer: the layer in the smallest network that people would put it in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import CLASSES, Batch, Entry, classes_of, floats, images, series, tokens, vectors, whole


def _mlp(*between: Callable[[], nn.Module], width: int = 6) -> Callable[[Any], nn.Module]:
    """Linear, the layers in question, Linear."""
    return lambda trial: nn.Sequential(nn.Linear(6, width), *(make() for make in between), nn.Linear(width, CLASSES))


def _image(*layers: Callable[[], nn.Module], out: int) -> Callable[[Any], nn.Module]:
    """Layers on an image of one channel, 8 by 8, then a linear classifier."""
    return lambda trial: nn.Sequential(*(make() for make in layers), nn.Flatten(), nn.Linear(out, CLASSES))


def _signal(*layers: Callable[[], nn.Module], out: int) -> Callable[[Any], nn.Module]:
    """Layers on a signal of two channels and eight steps, then a linear classifier."""
    return lambda trial: nn.Sequential(*(make() for make in layers), nn.Flatten(), nn.Linear(out, CLASSES))


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(6, 4, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.relu(self.pair(a, b)))  # type: ignore[no-any-return]


class _Embedded(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(4, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.table(ids)
        return self.head(found.mean(1) if found.dim() == 3 else found)  # type: ignore[no-any-return]


class _Recurrent(nn.Module):
    def __init__(self, cell: nn.Module, size: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.cell(x.transpose(1, 2))
        return self.head(out[:, -1])  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)
        self.table, self.head = nn.Embedding(11, 4), nn.Linear(4, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        out, _ = self.attention(x, x, x, need_weights=False)
        return self.head(out.mean(1))  # type: ignore[no-any-return]


class _Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)
        self.likeness, self.distance = nn.CosineSimilarity(dim=-1), nn.PairwiseDistance()
        self.head = nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        return self.head(torch.stack([self.likeness(a, b), self.distance(a, b)], -1))  # type: ignore[no-any-return]


class _Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2, return_indices=True)
        self.unpool, self.head = nn.MaxUnpool2d(2), nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        small, where = self.pool(self.conv(x))
        return self.head(self.unpool(small, where).flatten(1))  # type: ignore[no-any-return]


class _Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix, self.down = nn.PixelShuffle(2), nn.ChannelShuffle(2), nn.PixelUnshuffle(2)
        self.first, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.up(self.mix(self.first(x)))).flatten(1))  # type: ignore[no-any-return]


class _Cells(nn.Module):
    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = cell(2, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 4)
        memory = state
        for t in range(x.shape[2]):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(x[:, :, t], (state, memory))
            else:
                state = self.cell(x[:, :, t], state)
        return self.head(state)  # type: ignore[no-any-return]


class _Collected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(6)) for _ in range(2)])
        self.named = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(6))})
        self.heads = nn.ModuleDict({"a": nn.Linear(6, CLASSES), "b": nn.Linear(6, CLASSES)})

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = torch.tanh(x * scale + self.named["shift"])
        out: Tensor = self.heads["a"](x) + self.heads["b"](x)
        return out


def _volumes() -> Batch:
    return floats(1, 4, 4, 4), whole(CLASSES, seed=9)


def _pair() -> Batch:
    return floats(6), floats(4, seed=3), whole(CLASSES, seed=9)


def _conv(channels: int = 4) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(1, channels, 3, padding=1)


def _bag(mode: str) -> Callable[[Any], nn.Module]:
    return lambda trial: _Embedded(nn.EmbeddingBag(11, 4, mode=mode))


_ACTIVATIONS: tuple[tuple[str, Callable[[], nn.Module]], ...] = (
    ("ReLU in place", lambda: nn.ReLU(inplace=True)),
    ("PReLU", lambda: nn.PReLU()),
    ("PReLU per channel", lambda: nn.PReLU(6)),
    ("LeakyReLU", lambda: nn.LeakyReLU(0.2)),
    ("ELU", lambda: nn.ELU(0.7)),
    ("GELU", lambda: nn.GELU()),
    ("Hardshrink", lambda: nn.Hardshrink(0.3)),
    ("Softshrink", lambda: nn.Softshrink(0.3)),
    ("Threshold", lambda: nn.Threshold(0.1, 0.2)),
    ("RReLU", lambda: nn.RReLU()),
    ("Softmax", lambda: nn.Softmax(dim=1)),
    ("LogSoftmax", lambda: nn.LogSoftmax(dim=-1)),
    ("Softmin", lambda: nn.Softmin(dim=-1)),
    ("Dropout", lambda: nn.Dropout(0.3)),
    ("AlphaDropout", lambda: nn.AlphaDropout(0.3)),
    ("FeatureAlphaDropout", lambda: nn.FeatureAlphaDropout(0.3)),
    ("LayerNorm", lambda: nn.LayerNorm(6)),
    ("RMSNorm", lambda: nn.RMSNorm(6)),
    ("BatchNorm1d", lambda: nn.BatchNorm1d(6)),
    ("BatchNorm1d, cumulative", lambda: nn.BatchNorm1d(6, momentum=None)),
    ("BatchNorm1d without statistics", lambda: nn.BatchNorm1d(6, track_running_stats=False)),
    ("GroupNorm on vectors", lambda: nn.GroupNorm(2, 6)),
)


def _glu(trial: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, CLASSES))


LAYERS: tuple[Entry, ...] = (
    Entry("Linear", _mlp(nn.ReLU), vectors()),
    Entry("Linear without bias", lambda t: nn.Linear(6, CLASSES, bias=False), vectors()),
    *(Entry(name, _mlp(make), vectors()) for name, make in _ACTIVATIONS),
    Entry("GLU", _glu, vectors()),
    Entry("Bilinear", lambda t: _Bilinear(), _pair),
    Entry("CosineSimilarity and PairwiseDistance", lambda t: _Cosine(), vectors()),
    Entry("Embedding", lambda t: _Embedded(nn.Embedding(11, 4)), tokens()),
    Entry("Embedding with padding", lambda t: _Embedded(nn.Embedding(11, 4, padding_idx=0)), tokens()),
    Entry(
        "Embedding with max_norm",
        lambda t: _Embedded(nn.Embedding(11, 4, max_norm=1.0)),
        tokens(),
        solo="writes to the parameter 'table.weight'",
    ),
    Entry("EmbeddingBag, mean", _bag("mean"), tokens()),
    Entry("EmbeddingBag, sum", _bag("sum"), tokens()),
    Entry("EmbeddingBag, max", _bag("max"), tokens()),
    Entry("Conv1d", _signal(lambda: nn.Conv1d(2, 3, 3), nn.ReLU, out=18), series()),
    Entry("Conv1d, dilated and causal", _signal(lambda: nn.Conv1d(2, 3, 3, dilation=2, padding=4), out=36), series()),
    Entry("Conv2d", _image(lambda: nn.Conv2d(1, 3, 3), nn.ReLU, out=108), images()),
    Entry(
        "Conv2d, strided, padded, reflecting",
        _image(lambda: nn.Conv2d(1, 3, 3, stride=2, padding=1, padding_mode="reflect"), out=48),
        images(),
    ),
    Entry("Conv2d, groups", _image(_conv(), lambda: nn.Conv2d(4, 4, 3, groups=2), out=144), images()),
    Entry("Conv3d", lambda t: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(54, CLASSES)), _volumes),
    Entry("ConvTranspose1d", _signal(lambda: nn.ConvTranspose1d(2, 3, 3), out=30), series()),
    Entry("ConvTranspose2d", _image(lambda: nn.ConvTranspose2d(1, 2, 2, stride=2), out=512), images()),
    Entry(
        "ConvTranspose3d",
        lambda t: nn.Sequential(nn.ConvTranspose3d(1, 2, 2), nn.Flatten(), nn.Linear(250, CLASSES)),
        _volumes,
    ),
    Entry("MaxPool2d", _image(_conv(), lambda: nn.MaxPool2d(2), out=64), images()),
    Entry("AvgPool2d", _image(_conv(), lambda: nn.AvgPool2d(2), out=64), images()),
    Entry("LPPool2d", _image(_conv(), lambda: nn.LPPool2d(2, 2), out=64), images()),
    Entry(
        "FractionalMaxPool2d",
        _image(_conv(), lambda: nn.FractionalMaxPool2d(2, output_size=4), out=64),
        images(),
        solo="draws random numbers in a way that has no keyed form",
    ),
    Entry("AdaptiveAvgPool2d", _image(_conv(), lambda: nn.AdaptiveAvgPool2d(2), out=16), images()),
    Entry("AdaptiveMaxPool2d", _image(_conv(), lambda: nn.AdaptiveMaxPool2d(2), out=16), images()),
    Entry("AdaptiveAvgPool2d, uneven", _image(_conv(), lambda: nn.AdaptiveAvgPool2d(3), out=36), images()),
    Entry("MaxPool1d", _signal(lambda: nn.Conv1d(2, 3, 3, padding=1), lambda: nn.MaxPool1d(2), out=12), series()),
    Entry("AvgPool1d", _signal(lambda: nn.Conv1d(2, 3, 3, padding=1), lambda: nn.AvgPool1d(2), out=12), series()),
    Entry("MaxUnpool2d", lambda t: _Unpooled(), images()),
    Entry("BatchNorm2d", _image(_conv(), lambda: nn.BatchNorm2d(4), nn.ReLU, out=256), images()),
    Entry(
        "BatchNorm3d",
        lambda t: nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Flatten(), nn.Linear(54, CLASSES)),
        _volumes,
    ),
    Entry("GroupNorm", _image(_conv(), lambda: nn.GroupNorm(2, 4), out=256), images()),
    Entry("InstanceNorm2d", _image(_conv(), lambda: nn.InstanceNorm2d(4), out=256), images()),
    Entry(
        "InstanceNorm2d, affine, with statistics",
        _image(_conv(), lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), out=256),
        images(),
    ),
    Entry("LocalResponseNorm", _image(_conv(), lambda: nn.LocalResponseNorm(2), out=256), images()),
    Entry("Dropout2d", _image(_conv(), lambda: nn.Dropout2d(0.4), out=256), images()),
    Entry("Upsample, nearest", _image(_conv(1), lambda: nn.Upsample(scale_factor=2), out=256), images()),
    Entry(
        "Upsample, bilinear",
        _image(_conv(1), lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), out=256),
        images(),
    ),
    Entry("PixelShuffle, ChannelShuffle, PixelUnshuffle", lambda t: _Shuffled(), images()),
    Entry(
        "Unfold and Fold",
        _image(lambda: nn.Unfold(2, stride=2), lambda: nn.Linear(16, 16), lambda: nn.Fold((8, 8), 2, stride=2), out=64),
        images(),
    ),
    Entry(
        "ZeroPad2d, ReflectionPad2d, ReplicationPad2d",
        _image(
            lambda: nn.ZeroPad2d(1),
            lambda: nn.ReflectionPad2d(1),
            lambda: nn.ReplicationPad2d(1),
            lambda: nn.Conv2d(1, 2, 3),
            out=288,
        ),
        images(),
    ),
    Entry(
        "Flatten and Unflatten",
        lambda t: nn.Sequential(
            nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(6, CLASSES)
        ),
        vectors(),
    ),
    Entry("RNN", lambda t: _Recurrent(nn.RNN(2, 4, batch_first=True), 4), series()),
    Entry("LSTM", lambda t: _Recurrent(nn.LSTM(2, 4, batch_first=True), 4), series()),
    Entry(
        "GRU, two layers, both ways",
        lambda t: _Recurrent(nn.GRU(2, 4, num_layers=2, bidirectional=True, batch_first=True), 8),
        series(),
    ),
    Entry("RNNCell", lambda t: _Cells(nn.RNNCell), series(length=4)),
    Entry("LSTMCell", lambda t: _Cells(nn.LSTMCell), series(length=4)),
    Entry("GRUCell", lambda t: _Cells(nn.GRUCell), series(length=4)),
    Entry("MultiheadAttention", lambda t: _Attention(), tokens()),
    Entry("MultiheadAttention with dropout", lambda t: _Attention(0.2), tokens()),
    Entry(
        "TransformerEncoderLayer",
        lambda t: nn.Sequential(
            nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(16, CLASSES)
        ),
        classes_of(lambda: floats(8, 2)),
    ),
    Entry("ParameterList and ModuleDict", lambda t: _Collected(), vectors()),
)
