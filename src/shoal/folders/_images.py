"""Images as tensors of one size: (n, channels, height, width), scaled as the training images are."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from shoal.errors import DataError, UsageError
from shoal.folders._files import read_bytes
from shoal.records import Json
from shoal.tabular._json import Fields

MAX_SIDE: Final = 32  # pixels: what a CPU trains many small networks on
_GREY: Final = ("1", "L", "LA", "I", "I;16", "F")


@dataclass(frozen=True, slots=True)
class Images:
    """What was learnt from the training images: size, number of channels (1 for grey ones), mean and scale."""

    height: int
    width: int
    channels: int
    mean: float
    std: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image as a tensor: (channels, height, width)."""
        return self.channels, self.height, self.width

    def apply(self, files: Sequence[Path]) -> tuple[Tensor, list[int]]:
        """Images as (n, channels, height, width), and the places of those that cannot be read, which are all zero."""
        out, bad = torch.zeros(len(files), *self.shape), []
        for i, file in enumerate(files):
            image = _open(file)
            if image is None:
                bad.append(i)
                continue
            pixels = _pixels(image, self.channels, (self.width, self.height))
            out[i] = (torch.from_numpy(pixels) - self.mean) / self.std
        return out, bad

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        size: dict[str, Json] = {"height": self.height, "width": self.width, "channels": self.channels}
        return {**size, "mean": self.mean, "std": self.std}


def images_from_json(value: object) -> Images:
    """From plain data.

    Raises:
        StorageError: If the data are not those of images.
    """
    fields = Fields(value, "the images")
    height, width = fields.whole("height", 1, 4096), fields.whole("width", 1, 4096)
    std = max(fields.take("std", float), 1e-6)
    return Images(height, width, fields.whole("channels", 1, 3), fields.take("mean", float), std)


def learn_images(files: Sequence[Path]) -> Images:
    """Learn from training images: the median size, its longer side at most 32 pixels; grey if all of them are.

    Raises:
        DataError: If none can be read.
    """
    images = [image for image in map(_open, files) if image is not None]
    if not images:
        raise DataError(f"none of {len(files)} images can be read, such as {str(files[0])!r}.")
    width, height = (float(np.median([image.size[axis] for image in images])) for axis in (0, 1))
    shrink = min(1.0, MAX_SIDE / max(width, height))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    channels = 1 if all(image.mode in _GREY for image in images) else 3
    pixels = np.stack([_pixels(image, channels, size) for image in images[:2000]])
    return Images(size[1], size[0], channels, float(pixels.mean()), float(pixels.std()) or 1.0)


def _open(file: Path) -> Any:
    """A Pillow image, decoded; None if it cannot be."""
    pillow, raw = _need_pillow(), read_bytes(file)
    if raw is None:
        return None
    try:
        with warnings.catch_warnings():
            # Too many pixels is a warning first; what it warns of is refused here.
            warnings.simplefilter("error")
            image = pillow.open(io.BytesIO(raw))
            image.load()
            return image
    except Exception:  # Pillow's decoders raise whatever their format's faults lead to
        return None


def _pixels(image: Any, channels: int, size: tuple[int, int]) -> Any:
    """As float32 (channels, height, width), 0 to 1."""
    if image.mode in ("I", "I;16", "F"):  # 16 bits and more: Pillow's own conversion would cut these off at 255
        values = np.asarray(image, dtype=np.float32)
        top = float(values.max()) if values.size else 0.0
        image = _need_pillow().fromarray((values / max(top, 1.0) * 255).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB").resize(size)
    values = np.asarray(image, dtype=np.float32) / 255.0
    return values[None] if channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _need_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("reading images needs Pillow: run `pip install 'shoal[tabular]'`.") from error
    return Image
