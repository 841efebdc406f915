"""Kinds of networks: microseconds per trial-step of a search with Shoal's own choices, beside plain loops.

Every network is trained in batches of 32 by Adam, by two one-thread processes of a plain loop (steady_state.py) and by one study of
``--trials`` trials. Shoal times the fleet, the compiled fleet and the plain step itself and takes what is fastest; "at least 0.95
times the best loop" is the bar. With ``--compile``, torch.compile has a go at each plain loop's model as well.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass

import optuna
import torch
from torch import Tensor, nn

import shoal
from cores import cores_at_work
from steady_state import BATCH, Plain, plain_us, shoal_us

N_TRAIN, N_VALID, CLASSES, WORDS = 1024, 64, 10, 50


class Residual(nn.Module):
    """Two convolutions and a way round them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](self.first(x)).relu()
        out: Tensor = (x + self.norms[1](self.second(h))).relu()
        return out


class Recurrent(nn.Module):
    """Words, a recurrent layer, and a class from its last output."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(WORDS, 16), nn.Linear(32, CLASSES)
        self.cells = kind(16, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.cells(self.table(x))[0][:, -1])
        return out


class Transformer(nn.Module):
    """Words, two encoder layers, and a class from their mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.table, self.out = nn.Embedding(WORDS, 32), nn.Linear(32, CLASSES)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layers(self.table(x)).mean(1))
        return out


def mlp(h: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, CLASSES))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)),
    )


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)),
    )


def strided_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 49, CLASSES)),
    )


def resnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), Residual(16), nn.MaxPool2d(2), Residual(16)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)),
    )


@dataclass(frozen=True, slots=True)
class Network:
    """What makes a model, and the shape of a sample; integers below ``WORDS`` where it has one axis and ``words``."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: bool = False

    def data(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Samples (n, *shape) and classes (n,)."""
        generator = torch.Generator().manual_seed(seed)
        size = (n, *self.shape)
        x = torch.randint(WORDS, size, generator=generator) if self.words else torch.randn(size, generator=generator)
        return x, torch.randint(CLASSES, (n,), generator=generator)

    def define(self, trial: optuna.Trial) -> shoal.Recipe:
        """A search over the learning rate alone."""
        model = self.make()
        optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True))
        return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=BATCH)


NETWORKS = {
    "MLP 64-64-64-10": Network(functools.partial(mlp, 64), (64,)),
    "MLP 64-512-512-10": Network(functools.partial(mlp, 512), (64,)),
    "CNN, 8 x 8": Network(small_cnn, (1, 8, 8)),
    "CNN with BatchNorm, 28 x 28": Network(strided_cnn, (1, 28, 28)),
    "LeNet, 28 x 28": Network(lenet, (1, 28, 28)),
    "residual network, 3 x 16 x 16": Network(resnet, (3, 16, 16)),
    "LSTM, 20 words": Network(functools.partial(Recurrent, nn.LSTM), (20,), words=True),
    "GRU, 20 words": Network(functools.partial(Recurrent, nn.GRU), (20,), words=True),
    "transformer, 20 words": Network(Transformer, (20,), words=True),
}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--trials", type=int, default=16, help="trials of each study")
    parser.add_argument("--seconds", type=float, nargs=2, default=[6, 12], help="for about how long the two runs train")
    parser.add_argument("--plain-seconds", type=float, default=4, help="for about how long the plain loops train")
    parser.add_argument("--compile", action="store_true", help="also hold plain loops under torch.compile against it")
    args = parser.parse_args()
    few, many = args.seconds
    print(f"2 busy processes do {cores_at_work(2):.1f} times the work of one\n", flush=True)
    heads = ["us per trial-step", "plain loop", *(["torch.compile"] if args.compile else []), "Shoal", "times as fast"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for name in args.only:
        network = NETWORKS[name]
        data = functools.partial(network.data, N_TRAIN, 1)
        guess_us = plain_us(Plain(network.make, data), 2, 100)
        n_steps = max(100, int(args.plain_seconds * 1e6 / guess_us / 2))
        loops = [plain_us(Plain(network.make, data, adam), 2, n_steps) for adam in ("fused", "foreach")]
        best = [min(loops)]
        if args.compile:
            best.append(plain_us(Plain(network.make, data, compiled=True), 2, n_steps))
        ours = shoal_us(network.define, args.trials, (few, many), (data(), network.data(N_VALID, 2)))
        cells = [name, *(f"{us:.0f}" for us in (*best, ours)), f"{min(best) / ours:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
