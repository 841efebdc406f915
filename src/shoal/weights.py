"""The weights of the best trials, as safetensors beside the study file (or in memory when there is none)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from shoal.errors import StorageError

KEPT = 5


def weights_file(folder: Path, trial: int) -> Path:
    """Where the weights of a trial lie."""
    return folder / f"trial_{trial:06d}.safetensors"


class WeightStore:
    """Keeps the state dicts of the best few trials.

    Args:
        folder: Where files go; None keeps them in memory.
        sign: 1 when lower values are better, -1 when higher ones are.
        known: Trial number -> (value, file) of what an earlier session left.
    """

    def __init__(self, folder: Path | None, sign: float, known: Mapping[int, tuple[float, str]] | None = None) -> None:
        self.folder, self._sign = folder, sign
        self._rank: dict[int, float] = {n: sign * v for n, (v, _) in (known or {}).items()}
        self.files: dict[int, str] = {n: file for n, (_, file) in (known or {}).items()}
        self._memory: dict[int, dict[str, Tensor]] = {}

    def __contains__(self, trial: int) -> bool:
        return trial in self._rank

    def offer(self, trial: int, value: float, state: Callable[[], dict[str, Tensor]]) -> None:
        """Keep a trial's weights if it is among the best few; ``state`` is only called when it is."""
        self._rank.pop(trial, None)
        ranked = sorted((r, n) for n, r in self._rank.items())
        mine = (self._sign * value, trial)
        if len(ranked) >= KEPT and mine > ranked[KEPT - 1]:
            return
        self._rank[trial] = mine[0]
        if self.folder is None:
            self._memory[trial] = state()
        else:
            self.files[trial] = str(self._write(trial, state()))
        for _, loser in sorted((r, n) for n, r in self._rank.items())[KEPT:]:
            del self._rank[loser]
            self._memory.pop(loser, None)
            if loser in self.files:
                with contextlib.suppress(OSError):
                    os.remove(self.files.pop(loser))

    def _write(self, trial: int, state: dict[str, Tensor]) -> Path:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        assert self.folder is not None
        path = weights_file(self.folder, trial)
        part = path.with_suffix(".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: t.contiguous() for name, t in state.items()}, part, metadata={"trial": str(trial)})
            os.replace(part, path)  # whole or not at all
        except (OSError, SafetensorError) as error:  # the latter is what a full disk gives
            raise StorageError(f"cannot write the weights of trial {trial} to {path}: {error}") from error
        return path

    def load(self, trial: int) -> dict[str, Tensor]:
        """The state dict of a kept trial.

        Raises:
            StorageError: If it was not kept, or its file is gone or damaged.
        """
        if trial in self._memory:
            return self._memory[trial]
        if trial not in self.files:
            raise StorageError(f"no weights are kept for trial {trial}; kept: {sorted(self._rank) or 'none'}.")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.files[trial])
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"the weights of trial {trial} cannot be read from {self.files[trial]}: {error}"
            ) from error
