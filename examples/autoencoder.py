"""An autoencoder for handwritten digits: data without labels, and a loss that is a function of model and batch.

Run it with ``shoal tune examples/autoencoder.py``.
"""

from __future__ import annotations

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn, optim

import shoal

options = {"metric": "loss", "direction": "minimize", "n_trials": 60, "max_epochs": 20}


def reconstruction(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean squared difference of the images and what the model makes of them: a scalar."""
    (images,) = batch
    return nn.functional.mse_loss(model(images), images)


def define(trial: optuna.Trial) -> shoal.Recipe:
    """64 pixels through a narrow waist and back."""
    width = trial.suggest_categorical("width", [32, 64])
    waist = trial.suggest_categorical("waist", [4, 8])
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-8, 1e-3, log=True)

    model = nn.Sequential(
        nn.Linear(64, width),
        nn.GELU(),
        nn.Linear(width, waist),
        nn.Linear(waist, width),
        nn.GELU(),
        nn.Linear(width, 64),
    )
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    return shoal.Recipe(model=model, optimizer=optimizer, loss=reconstruction, batch_size=32)


def data() -> tuple[tuple[Tensor], ...]:
    """Train, valid and test: images only."""
    images, _ = load_digits(return_X_y=True)
    x = torch.tensor(images / 16.0, dtype=torch.float32)
    train, rest = train_test_split(range(len(x)), test_size=0.3, random_state=0)
    valid, test = train_test_split(rest, test_size=0.5, random_state=0)
    return (x[train],), (x[valid],), (x[test],)
