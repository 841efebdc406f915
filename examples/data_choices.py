"""Handwritten digits as sequences of eight rows: how much noise, which columns and how many rows a model learns from.

Run it with ``shoal tune examples/data_choices.py``. Of its choices about data only ``n_rows`` splits a fleet, since it is a shape;
``shoal explain examples/data_choices.py`` says so.
"""

from __future__ import annotations

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn, optim

import shoal
from shoal.transforms import Noise, On

options = {"metric": "accuracy", "n_trials": 60, "max_epochs": 15}


class Rows(nn.Module):
    """A GRU over the first rows of an image, which sees some columns only: (q, 8, 8) -> (q, 10)."""

    def __init__(self, width: int, n_rows: int, columns: Tensor) -> None:
        super().__init__()
        self.n_rows, self.columns = n_rows, columns
        self.read, self.head = nn.GRU(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        _, state = self.read(image[:, : self.n_rows] * self.columns)
        return self.head(state[-1])  # type: ignore[no-any-return]


def define(trial: optuna.Trial) -> shoal.Recipe:
    """The choices about data first, then the model and how it is trained."""
    noise = trial.suggest_float("noise", 0.0, 0.5)
    edge = trial.suggest_int("edge", 0, 2)  # columns left out on either side
    n_rows = trial.suggest_categorical("n_rows", [6, 8])
    balance = trial.suggest_float("balance", 0.0, 1.0)  # 1: all classes equally often
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)

    columns = torch.tensor([float(edge <= i < 8 - edge) for i in range(8)])

    def weights(batch: dict[str, Tensor]) -> Tensor:
        counts = batch["label"].bincount(minlength=10).double()
        return counts[batch["label"]] ** -balance

    model, on_images = Rows(24, n_rows, columns), On("image", Noise(noise))
    optimizer = optim.Adam(model.parameters(), lr=lr)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, transform=on_images, sample_weights=weights)


def data() -> tuple[dict[str, Tensor], ...]:
    """Train, valid and test, as dicts of images (n, 8, 8) in [0, 1] and labels (n,)."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16.0, dtype=torch.float32).view(-1, 8, 8), torch.tensor(labels)
    train, rest = train_test_split(range(len(y)), test_size=0.3, random_state=0, stratify=labels)
    valid, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=labels[rest])
    return tuple({"image": x[part], "label": y[part]} for part in (train, valid, test))
