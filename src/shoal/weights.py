"""The weights of the best trials, as safetensors beside the study file (or in memory when there is none).

A file says which trial it is of, how that was judged, and the digest of its tensors: one that was changed, or that belongs to
another study, is told from the study's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal import sealed_file
from shoal.errors import StorageError
from shoal.pareto import Front, Point, spread
from shoal.recipe import Recipe
from shoal.records import TrialSpec

KEPT = 5
KEPT_OF_FRONT = 20  # of a Pareto front; of a larger one those that are spread widest over it


_FACTS = "shoal"  # the key of what a file says of itself


def weights_file(folder: Path, trial: int) -> Path:
    """Where the weights of a trial lie."""
    return folder / f"trial_{trial:06d}.safetensors"


class WeightStore:
    """Keeps the state dicts of the best few trials, or of the Pareto front.

    Args:
        folder: Where files go; None keeps them in memory.
        sign: 1 when lower values are better, -1 when higher ones are; of several objectives one each.
        known: Trial number -> (value, file) of what an earlier session left; several objectives have a tuple of values.
        seen: Trial number -> values of trials that are on the front and whose weights are gone.
    """

    def __init__(
        self,
        folder: Path | None,
        sign: float | Sequence[float],
        known: Mapping[int, tuple[float | Sequence[float], str]] | None = None,
        seen: Mapping[int, Sequence[float]] | None = None,
    ) -> None:
        self.folder, self._signs = folder, tuple(sign) if isinstance(sign, Sequence) else (sign,)
        self._rank: dict[int, Point] = {n: self._point(v) for n, (v, _) in (known or {}).items()}
        self.files: dict[int, str] = {n: file for n, (_, file) in (known or {}).items()}
        self._memory: dict[int, dict[str, Tensor]] = {}
        self._front = Front()
        if self._several:
            for number, point in {**self._rank, **{n: self._point(v) for n, v in (seen or {}).items()}}.items():
                self._front.add(number, point)
        self._unsynced: set[int] = set()

    def __contains__(self, trial: int) -> bool:
        return trial in self._rank

    @property
    def _several(self) -> bool:
        return len(self._signs) > 1

    def _point(self, value: float | Sequence[float]) -> Point:
        values = value if isinstance(value, Sequence) else (value,)
        return tuple(s * v for s, v in zip(self._signs, values, strict=True))

    @property
    def kept(self) -> list[int]:
        """The trials whose weights are kept, the best first; of several objectives by the first."""
        return sorted(self._rank, key=lambda number: (self._rank[number], number))

    def offer(self, trial: int, value: float | Sequence[float], state: Callable[[], dict[str, Tensor]]) -> None:
        """Keep a trial's weights if it is among the best few, or on the front; ``state`` is only called when it is."""
        self._rank.pop(trial, None)
        mine = self._point(value)
        if self._several:
            self._front.add(trial, mine)
        ranked = self._chosen({**self._rank, trial: mine})
        if trial not in ranked:
            return
        self._rank[trial] = mine
        if self.folder is None:
            self._memory[trial] = state()
        else:
            self.files[trial] = str(self._write(trial, state()))
            self._unsynced.add(trial)
        for loser in self._rank.keys() - ranked:
            del self._rank[loser]
            self._memory.pop(loser, None)
            if loser in self.files:
                with contextlib.suppress(OSError):
                    os.remove(self.files.pop(loser))

    def _chosen(self, points: Mapping[int, Point]) -> list[int]:
        """Which trials' weights are worth keeping."""
        if self._several:
            return spread({n: p for n, p in points.items() if n in self._front.points}, KEPT_OF_FRONT)
        return sorted(points, key=lambda number: (points[number], number))[:KEPT]

    def sweep(self) -> None:
        """Remove what a process that was killed had begun to write: files that nobody has given their names yet."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                for path in self.folder.iterdir():
                    if path.suffix == ".part" or path.name.startswith(".tmp"):
                        path.unlink()

    def sync(self) -> None:
        """Return when all that is kept has reached the disk, and outlasts a power cut.

        Raises:
            StorageError: If it cannot be written.
        """
        waiting = sorted(self._unsynced & set(self.files))
        self._unsynced.clear()
        if self.folder is None or not waiting:
            return
        try:
            for trial in waiting:
                with contextlib.suppress(FileNotFoundError), open(self.files[trial], "rb") as stream:
                    os.fsync(stream.fileno())
            for folder in (self.folder, self.folder.parent):
                sealed_file.sync_folder(folder)
        except OSError as error:
            raise StorageError(f"cannot write the weights of trials {waiting} to {self.folder}: {error}") from error

    def _write(self, trial: int, state: dict[str, Tensor]) -> Path:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        assert self.folder is not None
        path = weights_file(self.folder, trial)
        part = path.with_suffix(".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: t.contiguous() for name, t in state.items()}
            values = [s * v for s, v in zip(self._signs, self._rank[trial], strict=True)]
            facts = {"trial": trial, "values": [repr(float(v)) for v in values], "sha256": _digest(tensors)}
            # One entry: of several, safetensors writes now the one and now the other first.
            save_file(tensors, part, metadata={_FACTS: json.dumps(facts)})
            os.replace(part, path)  # whole or not at all
        except (OSError, SafetensorError) as error:  # the latter is what a full disk gives
            raise StorageError(f"cannot write the weights of trial {trial} to {path}: {error}") from error
        return path

    def load_into(self, model: nn.Module, trial: int) -> None:
        """Give a model the weights of a kept trial, each of which must be one of the model's, in shape and type.

        Raises:
            StorageError: If they were not kept, or their file is gone, damaged, or another model's.
        """
        state = self.load(trial, model)
        try:
            model.load_state_dict(state, strict=False)  # tied parameters are stored once
        except RuntimeError as error:
            raise StorageError(f"the weights of trial {trial} do not fit its model: {error}") from error

    def load(self, trial: int, model: nn.Module | None = None) -> dict[str, Tensor]:
        """The state dict of a kept trial.

        Args:
            trial: Its number.
            model: Compared with what the file holds before anything of it is read.

        Raises:
            StorageError: If it was not kept, or its file is gone, damaged, or another model's.
        """
        if trial in self._memory:
            return self._memory[trial]
        if trial not in self.files:
            raise StorageError(f"no weights are kept for trial {trial}; kept: {sorted(self._rank) or 'none'}.")
        from safetensors import SafetensorError, safe_open

        path = self.files[trial]
        try:
            with safe_open(path, framework="pt") as file:
                facts = self._check_own(trial, file.metadata() or {}, path)
                names = list(file.keys())
                if model is not None:
                    _check_fit({n: file.get_slice(n).get_shape() for n in names}, model, path)
                state = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError, UnicodeDecodeError) as error:
            raise StorageError(f"the weights of trial {trial} cannot be read from {path}: {error}") from error
        if "sha256" in facts and facts["sha256"] != _digest(state):
            raise StorageError(
                f"{path} is damaged: the weights of trial {trial} are not those that were written. Restore a copy."
            )
        return state

    def _check_own(self, trial: int, metadata: Mapping[str, str], path: str) -> dict[str, Any]:
        """What a file says of itself; that must be the trial as this study knows it."""
        try:  # files of earlier versions name the trial and nothing else
            facts = json.loads(metadata[_FACTS]) if _FACTS in metadata else {"trial": metadata.get("trial", "of none")}
            found, values = str(facts["trial"]), tuple(float(v) for v in facts.get("values", ()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StorageError(f"the weights of trial {trial} cannot be read from {path}: {error!r:.200}") from error
        if found != str(trial):
            raise StorageError(f"{path} holds the weights of trial {found:.20}, not of trial {trial}.")
        mine = tuple(s * v for s, v in zip(self._signs, self._rank[trial], strict=True))
        if values and values != mine:
            raise StorageError(
                f"{path} holds the weights of a trial {trial} that was judged {_listed(values)}, and this study's was judged "
                f"{_listed(mine)}: they are of another study. Put this study's own file there."
            )
        return dict(facts)


def _digest(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors: names, shapes, types and bytes."""
    found = hashlib.sha256()
    for name, t in sorted(state.items()):
        found.update(f"{name}\0{tuple(t.shape)}\0{t.dtype}\0".encode())
        found.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.6g}" for v in values)


def _check_fit(shapes: Mapping[str, Sequence[int]], model: nn.Module, path: str) -> None:
    """Every parameter of the model is there, nothing else is, and all shapes are the model's."""
    state = model.state_dict()
    missing = [name for name, _ in model.named_parameters() if name not in shapes]
    strange = [name for name in shapes if name not in state]
    if missing or strange:
        kind, name = ("lacks", missing[0]) if missing else ("has", strange[0])
        raise StorageError(f"{path} holds the weights of another model: it {kind} {name!r:.100}.")
    for name, shape in shapes.items():
        if tuple(shape) != tuple(state[name].shape):
            raise StorageError(
                f"{path} holds the weights of another model: its {name!r} is {tuple(shape)}, not {tuple(state[name].shape)}."
            )


def trained(spec: TrialSpec, rebuild: Callable[[TrialSpec], Recipe], weights: WeightStore) -> Recipe:
    """A finished trial's recipe with its trained weights, in evaluation mode, on the CPU."""
    recipe = rebuild(spec)
    weights.load_into(recipe.model, spec.number)
    recipe.model.eval()
    return recipe
