"""Texts as vectors: how often each of the known words is in it, rare words counting more (TF-IDF).

Glossary: ``n`` texts; ``V`` words of the vocabulary. A text is a row (V,) of length 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from shoal.errors import DataError
from shoal.folders._files import read_bytes
from shoal.records import Json
from shoal.tabular._json import Fields

MAX_WORDS: Final = 2000
_WORD: Final = re.compile(r"(?u)\b\w\w+\b")


@dataclass(frozen=True, slots=True)
class Texts:
    """What was learnt from the training texts: the words, and the weight of each (its inverse document frequency)."""

    words: tuple[str, ...]
    weights: tuple[float, ...]

    def apply(self, files: Sequence[Path]) -> tuple[Tensor, list[int]]:
        """Texts as (n, V), and the places of those that cannot be read, which are all zero."""
        place = {word: i for i, word in enumerate(self.words)}
        out, bad = np.zeros((len(files), len(self.words))), []
        for i, file in enumerate(files):
            text = _text(file)
            if text is None:
                bad.append(i)
                continue
            for word, count in Counter(_split(text)).items():
                if word in place:
                    out[i, place[word]] = count
        out *= np.asarray(self.weights)
        length = np.linalg.norm(out, axis=1, keepdims=True)
        return torch.from_numpy((out / np.where(length > 0, length, 1.0)).astype(np.float32)), bad

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"words": list(self.words), "weights": list(self.weights)}


def texts_from_json(value: object) -> Texts:
    """From plain data.

    Raises:
        StorageError: If the data are not those of texts.
    """
    fields = Fields(value, "the texts")
    return Texts(fields.many("words", str, MAX_WORDS), fields.many("weights", float, MAX_WORDS))


def learn_texts(files: Sequence[Path]) -> Texts:
    """Learn from training texts: the 2,000 words that occur most often, and ln((1 + n) / (1 + texts with it)) + 1 for each.

    Raises:
        DataError: If no text can be read, or none has a word.
    """
    total: Counter[str] = Counter()
    having: Counter[str] = Counter()
    n = 0
    for text in map(_text, files):
        if text is not None:
            counts = Counter(_split(text))
            n += 1
            total.update(counts)
            having.update(counts.keys())
    if not total:
        raise DataError(f"none of {len(files)} texts has a word in it, such as {str(files[0])!r}.")
    frequent = sorted(total, key=lambda word: (-total[word], word))[:MAX_WORDS]
    words = tuple(sorted(frequent))
    return Texts(words, tuple(float(np.log((1 + n) / (1 + having[word])) + 1.0) for word in words))


def _split(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _text(file: Path) -> str | None:
    """A file as text; None if it cannot be read or holds zero bytes, as no text does."""
    raw = read_bytes(file)
    if raw is None:
        return None
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    return None if "\0" in text else text
