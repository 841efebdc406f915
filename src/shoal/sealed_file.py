"""Tensors and plain facts in one safetensors file that is whole, synced and known by its checksum, or not there.

A file is written under another name, synced, renamed, and the folder synced: after a power cut it is either what was sealed or
absent. Whoever keeps the seal can tell later that nothing in the file has changed. Nothing is pickled, and nothing read is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from shoal.errors import StorageError
from shoal.records import Json

_FACTS = "shoal"  # the key of the facts in a file's metadata


@dataclass(frozen=True, slots=True)
class Seal:
    """By what a file is known: its name inside its folder, its size, and the SHA-256 of its bytes."""

    name: str
    n_bytes: int
    sha256: str

    def as_json(self) -> dict[str, Json]:
        """As it is stored."""
        return {"name": self.name, "bytes": self.n_bytes, "sha256": self.sha256}

    @classmethod
    def of(cls, value: object) -> Seal:
        """The seal that ``as_json`` gave.

        Raises:
            StorageError: It is none, or names a file outside its folder.
        """
        if isinstance(value, dict) and set(value) == {"name", "bytes", "sha256"}:
            name, n_bytes, digest = value["name"], value["bytes"], value["sha256"]
            plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")
            if plain and type(n_bytes) is int and isinstance(digest, str):
                return cls(name, n_bytes, digest)
        raise StorageError(f"{str(value)[:100]!r} does not describe a file of a snapshot: the study file is damaged.")


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Json]) -> Seal:
    """Write a file, all of it or nothing; it has reached the disk when this returns.

    Args:
        path: Where it goes; the folder is made if need be.
        tensors: By name, no two sharing memory.
        facts: JSON data; floats may be NaN or infinite.

    Raises:
        StorageError: It could not be written; then nothing is left of it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent.parent)
        save_file({n: t.contiguous() for n, t in tensors.items()}, part, metadata={_FACTS: json.dumps(facts)})
        with part.open("rb+") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            n_bytes = stream.tell()
            os.fsync(stream.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:  # the latter is what a full disk gives
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error}") from error
    return Seal(path.name, n_bytes, digest)


def sync_folder(folder: Path) -> None:
    """Make what was created and renamed in a folder outlast a power cut; some systems cannot open folders, and need not."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check(folder: Path, seal: Seal) -> None:
    """See that a file is what was sealed.

    Raises:
        StorageError: It is gone, or its size or its bytes are others.
    """
    path = folder / seal.name
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != seal.n_bytes:
                raise StorageError(f"{path} has {size} bytes, not the {seal.n_bytes} that were written.")
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error
    if found != seal.sha256:
        raise StorageError(f"{path} is damaged: its checksum is not the one that was noted when it was written.")


@final
class SealedFile:
    """A file open for reading.

    Args:
        path: The file.
        stream: What safetensors has opened.
    """

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream = path, stream
        self._names: frozenset[str] = frozenset(stream.keys())
        try:
            facts = json.loads((stream.metadata() or {})[_FACTS])
        except (KeyError, ValueError, RecursionError) as error:
            raise StorageError(f"{path} holds no facts of Shoal's: it is something else, or damaged.") from error
        if not isinstance(facts, dict):
            raise StorageError(f"the facts in {path} are no mapping: it is damaged.")
        self.facts: dict[str, Any] = facts

    def names(self, prefix: str) -> list[str]:
        """The tensors whose names begin so, without the beginning."""
        return sorted(name.removeprefix(prefix) for name in self._names if name.startswith(prefix))

    def take(self, name: str, like: Tensor | None = None) -> Tensor:
        """A tensor, on the CPU.

        Args:
            name: Its name.
            like: If given, what its shape and type must be; they are compared before memory is taken.

        Raises:
            StorageError: There is none of the name, or it is not like that.
        """
        if name not in self._names:
            raise StorageError(
                f"{self._path} holds no tensor {name!r}; it has been written by other code, or for another model."
            )
        if like is not None:
            piece = self._stream.get_slice(name)
            found = (tuple(piece.get_shape()), piece.get_dtype())
            if found != (tuple(like.shape), _NAMES.get(like.dtype)):
                raise StorageError(
                    f"{name!r} in {self._path} has shape {found[0]} and type {found[1]}, but now it needs "
                    f"{tuple(like.shape)} and {_NAMES.get(like.dtype)}: define() makes another model than when it was written."
                )
        return cast(Tensor, self._stream.get_tensor(name)).clone()


# What safetensors calls torch's types.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[SealedFile]:
    """Open a file for reading.

    Raises:
        StorageError: It cannot be read, or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            yield SealedFile(path, stream)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
