"""The price of generality: what lanes that differ cost over lanes that are alike.

All studies train the MLP 64-h-h-10 on the same samples. The uniform one has Adam, ReLU and batches of 32 in every lane; the others
mix, lane by lane, optimizers, activations, dropout rates, batch sizes, and all of them. A plain loop pays for dropout too: its own
row says how much of the price that is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from torch import nn

import shoal
from cores import cores_at_work
from steady_state import CLASSES, FEATURES, Define, shoal_us

OPTIMIZERS: tuple[Callable[[Any], torch.optim.Optimizer], ...] = (
    lambda params: torch.optim.Adam(params, lr=1e-3),
    lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    lambda params: torch.optim.RMSprop(params, lr=1e-3),
    lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-2),
)
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU)
RATES = (0.1, 0.2, 0.3, 0.5)
BATCHES = (32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Mix:
    """What differs between the lanes of a study; with one choice of each, nothing does."""

    name: str
    optimizers: Sequence[Callable[[Any], torch.optim.Optimizer]] = OPTIMIZERS[:1]
    activations: Sequence[type[nn.Module]] = ACTIVATIONS[:1]
    rates: Sequence[float] = (0.0,)
    batches: Sequence[int] = BATCHES[:1]

    def define(self, h: int) -> Define:
        """A search whose trials take turns in what they choose."""

        def define(trial: optuna.Trial) -> shoal.Recipe:
            k = trial.number
            act, p = self.activations[k % len(self.activations)], self.rates[k % len(self.rates)]
            drops = [nn.Dropout(p)] if p else []
            model = nn.Sequential(
                nn.Linear(FEATURES, h), act(), *drops, nn.Linear(h, h), act(), *drops, nn.Linear(h, CLASSES)
            )
            optimizer = self.optimizers[k % len(self.optimizers)](model.parameters())
            batch_size = self.batches[k % len(self.batches)]
            return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=batch_size)

        return define


MIXES = (
    Mix("uniform"),
    Mix("uniform, with dropout", rates=RATES[1:2]),
    Mix("optimizers", optimizers=OPTIMIZERS),
    Mix("activations", activations=ACTIVATIONS),
    Mix("dropout rates", rates=RATES),
    Mix("batch sizes", batches=BATCHES),
    Mix("all of them", OPTIMIZERS, ACTIVATIONS, RATES, BATCHES),
)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h", type=int, default=64, help="hidden size")
    parser.add_argument("--trials", type=int, default=32, help="trials of each study")
    parser.add_argument("--seconds", type=float, nargs=2, default=[4, 8], help="for about how long the two runs train")
    args = parser.parse_args()
    few, many = args.seconds
    print(
        f"2 busy processes do {cores_at_work(2):.1f} times the work of one; h={args.h}, {args.trials} trials\n",
        flush=True,
    )
    print("| lanes differ in | us per 32 samples of a lane | ratio |\n| --- | --- | --- |", flush=True)
    uniform = 0.0
    for mix in MIXES:
        us = shoal_us(mix.define(args.h), args.trials, (few, many))
        uniform = uniform or us
        print(f"| {mix.name} | {us:.1f} | {us / uniform:.2f} |", flush=True)


if __name__ == "__main__":
    main()
