"""A folder whose own folders are classes: which files belong to which, and whether they are images or texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from shoal.errors import DataError, UsageError

Kind = Literal["images", "texts"]
IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
TEXTS: Final = (".txt", ".text", ".md")
_MAX_BYTES: Final = 50 * 2**20  # of one file


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """Files in a fixed order, and the class of each: ``labels`` (n,) counts ``classes``."""

    root: Path
    kind: Kind
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    notes: tuple[str, ...]


def read_folder(path: str | Path) -> Folder:
    """List a folder of class-named folders; a class's own folders are looked through as well.

    Raises:
        UsageError: If it is no folder.
        DataError: If it has fewer than two classes, fewer than 20 files, or both images and texts.
    """
    root = _folder(path)
    found = {
        folder.name: sorted(file for file in folder.rglob("*") if file.is_file() and not _hidden(file, root))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    kind, n_other = kind_of([file for files in found.values() for file in files], root)
    wanted = {name: [file for file in files if _is(file, kind)] for name, files in found.items()}
    notes = [f"class {name!r} is left out: its folder has no {kind}" for name, files in wanted.items() if not files]
    wanted = {name: files for name, files in wanted.items() if files}
    if n_other:
        notes.append(f"{n_other} files are left out: they are no {kind}")
    if len(wanted) < 2:
        raise DataError(
            f"{str(root)!r} must have a folder for each class, at least two; folders with {kind}: "
            f"{', '.join(wanted) or 'none'}."
        )
    files = tuple(file for group in wanted.values() for file in group)
    if len(files) < 20:
        raise DataError(f"{str(root)!r} has {len(files)} {kind}; at least 20 are needed.")
    labels = np.repeat(np.arange(len(wanted)), [len(group) for group in wanted.values()]).astype(np.int64)
    return Folder(root, kind, files, tuple(wanted), labels, tuple(notes))


def new_files(path: str | Path, kind: Kind) -> list[Path]:
    """All images, or all texts, of a folder in order of their names, or the one file.

    Raises:
        UsageError: If there is nothing of this name.
        DataError: If it has none of this kind.
    """
    root = Path(path)
    files = [root] if root.is_file() else [f for f in _folder(path).rglob("*") if f.is_file() and not _hidden(f, root)]
    wanted = sorted(file for file in files if _is(file, kind))
    if not wanted:
        raise DataError(f"{str(root)!r} has no {kind} (known endings: {', '.join(_endings(kind))}).")
    return wanted


def kind_of(files: list[Path], root: Path) -> tuple[Kind, int]:
    """Whether most files are images or texts, and how many are something else.

    Raises:
        DataError: If none is either, or more than a tenth is the other.
    """
    n_images, n_texts = sum(_is(file, "images") for file in files), sum(_is(file, "texts") for file in files)
    if not n_images and not n_texts:
        raise DataError(
            f"{str(root)!r} has no folders with images ({', '.join(IMAGES)}) or texts ({', '.join(TEXTS)}) in them."
        )
    if min(n_images, n_texts) > 0.1 * (n_images + n_texts):
        raise DataError(f"{str(root)!r} has {n_images} images and {n_texts} texts; keep one kind.")
    kind: Kind = "images" if n_images >= n_texts else "texts"
    return kind, len(files) - max(n_images, n_texts)


def read_bytes(file: Path) -> bytes | None:
    """A file's content; None if it cannot be read or is beyond 50 MiB."""
    try:
        return file.read_bytes() if file.stat().st_size <= _MAX_BYTES else None
    except OSError:
        return None


def _folder(path: str | Path) -> Path:
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"there is no folder {str(root)!r}.")
    return root


def _endings(kind: Kind) -> tuple[str, ...]:
    return IMAGES if kind == "images" else TEXTS


def _is(file: Path, kind: Kind) -> bool:
    return file.suffix.lower() in _endings(kind)


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)
