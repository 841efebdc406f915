"""CIFAR-10 and a small residual network, from the standard archive in a folder that you name.

Run it with ``shoal tune examples/cifar10_cnn.py``, after ``export CIFAR10=FOLDER``. The folder holds the binary version as it is
offered at https://www.cs.toronto.edu/~kriz/cifar.html: ``cifar-10-binary.tar.gz``, or what it unpacks to,
``cifar-10-batches-bin``. The Python version is not read: it is pickle, and loading a pickle runs whatever is in it.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import torch
from torch import Tensor, nn, optim

import shoal

options = {"metric": "accuracy", "n_trials": 20, "max_epochs": 10}

# A record is one byte of label and 32 x 32 bytes each of red, green and blue.
SIDE, RECORD_BYTES = 32, 1 + 3 * 32 * 32
FILE_BYTES = 10_000 * RECORD_BYTES
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"


class Residual(nn.Module):
    """Two convolutions beside a short cut, which a hyperparameter weighs."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.scale * self.body(x))


def define(trial: optuna.Trial) -> shoal.Recipe:
    """A stem that halves the image, two residual blocks with a halving between them, and a linear layer."""
    channels = trial.suggest_categorical("channels", [16, 32])
    scale = trial.suggest_float("scale", 0.1, 1.0)
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    lr = trial.suggest_float("lr", 1e-3, 3e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)

    model = nn.Sequential(
        nn.Conv2d(3, channels, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        Residual(channels, scale),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        Residual(2 * channels, scale),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8 * channels, 10),
    )
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(label_smoothing=0.1), batch_size=64, schedule=schedule)


def read(folder: Path) -> dict[str, bytes]:
    """The archive's six data files by name, out of the folder, its ``cifar-10-batches-bin`` or its ``cifar-10-binary.tar.gz``.

    Raises:
        FileNotFoundError: If they are not there; the message says what is and what to do.
    """
    wanted = (*TRAIN_FILES, TEST_FILE)
    for place in (folder, folder / "cifar-10-batches-bin"):
        if all((place / name).is_file() for name in wanted):
            return {name: (place / name).read_bytes() for name in wanted}
    packed = folder / "cifar-10-binary.tar.gz"
    if packed.is_file():
        with tarfile.open(packed) as archive:
            return dict(_members(archive, wanted))
    if (folder / "cifar-10-batches-py").is_dir() or (folder / "cifar-10-python.tar.gz").is_file():
        raise FileNotFoundError(
            f"{folder} holds the Python version of CIFAR-10, which is pickle and is not loaded, since a pickle may run any code. "
            "Put the binary version, cifar-10-binary.tar.gz, there instead."
        )
    raise FileNotFoundError(f"{folder} holds neither cifar-10-binary.tar.gz nor cifar-10-batches-bin with {TEST_FILE}.")


def _members(archive: tarfile.TarFile, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for name in wanted:
        try:
            file = archive.extractfile(f"cifar-10-batches-bin/{name}")
        except KeyError:
            file = None
        if file is None:
            raise FileNotFoundError(f"{archive.name!r} has no cifar-10-batches-bin/{name}; download it again.")
        yield name, file.read(FILE_BYTES + 1)  # the size that its entry claims is not allocated


def records(raw: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) in [-1, 1] and labels (n,) of one file.

    Raises:
        ValueError: If the file is not a whole number of records, or a label is no class.
    """
    if not raw or len(raw) % RECORD_BYTES:
        raise ValueError(
            f"{name} has {len(raw)} bytes, which is no multiple of {RECORD_BYTES}; download the archive again."
        )
    rows = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).reshape(-1, RECORD_BYTES).copy())
    labels = rows[:, 0].long()
    if int(labels.max()) > 9:
        raise ValueError(f"{name} has a label of {int(labels.max())}, and CIFAR-10 has classes 0 to 9.")
    return rows[:, 1:].reshape(-1, 3, SIDE, SIDE).float() / 127.5 - 1.0, labels


def data() -> tuple[tuple[Tensor, Tensor], ...]:
    """Train (45,000: all but the last tenth), valid (5,000) and test (10,000)."""
    folder = os.environ.get("CIFAR10")
    if not folder:
        raise FileNotFoundError("name the folder with the CIFAR-10 archive: export CIFAR10=FOLDER")
    files = read(Path(folder))
    parts = [records(files[name], name) for name in TRAIN_FILES]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    cut = len(x) - len(x) // 10
    return (x[:cut], y[:cut]), (x[cut:], y[cut:]), records(files[TEST_FILE], TEST_FILE)
