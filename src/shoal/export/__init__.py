"""A winner that can be taken away: a folder that needs no Shoal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from shoal.data import Datasets, Split
from shoal.errors import StorageError, StudyError, UsageError, did_you_mean
from shoal.export._formats import inputs_of, save_onnx, save_program, save_weights
from shoal.export._parts import plain_parts
from shoal.export._script import Facts, metric_code, script
from shoal.export._source import STAND_INS, own_code
from shoal.extend import LearningRate, trajectories_of
from shoal.lanes.criteria import scale_of
from shoal.lanes.lane import evaluation_chunk, learning_rate
from shoal.lanes.sampling import Sampling
from shoal.lanes.solo import measure
from shoal.metrics import resolve
from shoal.preparing import Preparation
from shoal.recipe import Recipe
from shoal.records import StudyRecord, TrialRecord
from shoal.winner import metrics_of

FORMATS: Final = ("script", "weights", "pt2", "onnx")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where to.
        trial: The winner's number.
        files: The files, relative to the folder.
        differences: "pt2" and "onnx" -> the largest difference of their outputs from the model's, as a share of the largest.
        again: What the script measured when it was run for a check; None without one.
    """

    folder: Path
    trial: int
    files: tuple[str, ...]
    differences: Mapping[str, float]
    again: float | None


def export(
    record: StudyRecord,
    best: TrialRecord,
    define: Any,
    recipe: Recipe,
    fresh: Recipe,
    data: Datasets,
    folder: str | Path,
    *,
    preparation: Preparation | None = None,
    formats: Sequence[str] = ("script", "weights"),
    check: bool = False,
) -> Exported:
    """Write a trial so that it can be trained and used without Shoal.

    Args:
        record: The study.
        best: The trial.
        define: Of the study; its code goes into the folder.
        recipe: The trial's, with trained weights, in evaluation mode, on the CPU.
        fresh: The same as ``define`` made it.
        data: The splits that the trial's model was trained and measured on; with folds, ``valid`` is ``train`` itself.
        preparation: What ``prepare=`` learnt from ``data.train``.
        folder: Where to; it is made if it is missing, and files of the same names are replaced.
        formats: Any of "script", "weights", "pt2" and "onnx".
        check: Whether to run the script, which trains the trial again, and see that it measures the same.

    Raises:
        UsageError: A format is unknown, ``define`` is not in a file, or a package is missing.
        StudyError: The model cannot be exported, or gives something else afterwards.
        StorageError: The folder cannot be written.
    """
    wanted = [formats] if isinstance(formats, str) else list(formats)
    for name in wanted:
        if name not in FORMATS:
            raise UsageError(f"export has no format {name!r}.{did_you_mean(str(name), FORMATS)}")
    if not wanted:
        raise UsageError(f"export needs at least one format; there are {', '.join(FORMATS)}.")
    if check and "script" not in wanted:
        raise UsageError("check=True runs the exported script; add 'script' to the formats.")
    if any(row.copied is not None for row in best.rows) and "script" in wanted:
        raise UsageError(
            "no script is written of a winner whose hyperparameters were changed while it trained; export the others: "
            "formats=['weights', 'pt2', 'onnx']. shoal.schedulers.PopulationBasedTrainingReplay trains with its schedule again."
        )
    if "script" in wanted:
        _check_extensions(fresh, folded=data.valid is data.train)
    judged = _judged(record, best, recipe, data)
    folder = Path(folder)
    written: list[str] = []
    differences: dict[str, float] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if "script" in wanted:
            written += _write_script(folder, record, best, define, fresh, recipe, data, judged)
        if "weights" in wanted:
            save_weights(folder / "winner.safetensors", recipe.model, _facts(record, best, data.valid), preparation)
            written.append("winner.safetensors")
            if preparation is not None and "plain/prepared_state.py" not in written:
                written += _write(folder, plain_parts(["prepared_state"]))
        for name, save, file in (("pt2", save_program, "winner.pt2"), ("onnx", save_onnx, "winner.onnx")):
            if name in wanted:
                few, more = (inputs_of(recipe, _rows(data.valid, n)) for n in (2, 5))
                differences[name] = save(folder / file, recipe.model, few, more)
                written.append(file)
    except OSError as error:
        raise StorageError(f"the winner cannot be written to {str(folder)!r}: {error.strerror or error}.") from error
    again = _run(folder, judged.found) if check else None
    return Exported(folder, best.spec.number, tuple(written), differences, again)


def _metric(record: StudyRecord) -> str:
    """The study's metric, or the loss where that is a function that no script can name."""
    options = record.meta.get("options")
    own = isinstance(options, dict) and options.get("metric") is None
    return "loss" if own else str(record.meta.get("metric") or "loss")


@dataclass(frozen=True, slots=True)
class _Judged:
    """By which split a script is compared with the search, and what the search's model has on it."""

    split: str
    found: float


def _judged(record: StudyRecord, best: TrialRecord, trained: Recipe, data: Datasets) -> _Judged:
    """A single run has its trial's value. With folds or seeds none has, and the winner's model is measured instead.

    Of a study with folds no row was left to validate it on, so it is compared on the test split, or else on what it was trained on.
    """
    name = _metric(record)
    row = next(r for r in best.rows if r.epoch == best.epoch)
    folded = data.valid is data.train
    if not row.lanes and not folded:
        return _Judged("valid", float(row.metrics["loss"]) if name == "loss" else float(row.value))
    where = "valid" if not folded else "test" if data.test is not None else "train"
    split = {"valid": data.valid, "test": data.test, "train": data.train}[where]
    assert split is not None
    tensors = tuple(t.cpu() for t in split.tensors)
    loss, outputs = measure(trained, tensors, best.spec.seed)
    metric = None if name == "loss" else resolve(name, targets=split.target, direction=record.direction)
    if metric is None:
        return _Judged(where, loss)
    return _Judged(where, metrics_of(outputs, tensors[-1], (metric,), scale_of(trained))[name])


def _check_extensions(recipe: Recipe, *, folded: bool) -> None:
    """See that what moved while the trial trained can be repeated from a table.

    Raises:
        UsageError: If it cannot.
    """
    moved = [type(e).__name__ for e in recipe.extensions if e.on and not isinstance(e, LearningRate)]
    if moved:
        raise UsageError(
            f"no script is written of a recipe with extensions ({', '.join(moved)}), which a table cannot repeat; export the "
            "others: formats=['weights', 'pt2', 'onnx']."
        )
    if folded and learning_rate(recipe) is not None:
        raise UsageError(
            "no script is written of a winner whose learning rate is learnt and which was judged by folds: each fold has learnt "
            "its own, and there is no table for all rows together. Export the others: formats=['weights', 'pt2', 'onnx']."
        )


def _facts(record: StudyRecord, best: TrialRecord, like: Split) -> dict[str, object]:
    return {
        "trial": best.spec.number,
        "params": dict(best.trained.params),
        "seed": best.spec.seed,
        "epochs": best.epoch,
        "metric": record.meta.get("metric"),
        "value": best.value,
        "test": record.meta.get("test"),
        "data": [{"shape": list(t.shape[1:]), "dtype": str(t.dtype)} for t in like.tensors],
        "torch": torch.__version__,
    }


def _rows(split: Split, n: int) -> tuple[torch.Tensor, ...]:
    """The first samples of a split, over and over where it has fewer."""
    return tuple(t[torch.arange(n) % len(t)].cpu() for t in split.tensors)


def _write_script(
    folder: Path,
    record: StudyRecord,
    best: TrialRecord,
    define: Any,
    fresh: Recipe,
    trained: Recipe,
    data: Datasets,
    judged: _Judged,
) -> list[str]:
    code, metric, folded = own_code(define), _metric(record), data.valid is data.train
    splits = {"train": data.train} | ({} if folded else {"valid": data.valid})
    splits |= {} if data.test is None else {"test": data.test}
    few = _rows(data.valid, 4)
    _, outputs = measure(trained, few, best.spec.seed)
    expression, measures = metric_code(
        metric, outputs, data.valid.tensors[-1], probabilities=scale_of(trained) == "probabilities"
    )
    facts = Facts(
        version=_version(),
        metric=metric,
        found=judged.found,
        judged=judged.split,
        metric_code=expression,
        n_train=data.train.n,
        chunk=evaluation_chunk(data.valid.tensors),
        device=_device(record),
        splits=tuple(splits),
    )
    files = {
        "train.py": script(best, fresh, code, facts),
        **code.files,
        **plain_parts(["keyed", *sorted(code.parts - STAND_INS), *(["metrics"] if measures else [])]),
    }
    _write(folder, files)
    arrays: dict[str, Any] = {"n_tensors": np.array(len(data.train.tensors))}
    if fresh.sample_weights is not None:
        arrays["bounds"] = Sampling.of(fresh, data.train).bounds
    if learning_rate(fresh) is not None:
        arrays["rates"] = _rates(best, len(fresh.optimizer.param_groups))
    for name, split in splits.items():
        for i, tensor in enumerate(split.tensors):
            if tensor.dtype is torch.bfloat16:
                raise UsageError(
                    "an exported script reads its data by NumPy, which has no bfloat16; convert them to float32."
                )
            arrays[f"{name}_{i}"] = tensor.cpu().numpy()
    np.savez(folder / "data.npz", **arrays)
    return [*files, "data.npz"]


def _write(folder: Path, files: Mapping[str, str]) -> list[str]:
    for place, text in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def _rates(best: TrialRecord, groups: int) -> Any:
    """The learning rate of each group at each update up to the epoch that the trial is judged by, (groups, updates)."""
    found = trajectories_of(row for row in best.rows if row.epoch <= best.epoch)
    return np.array([found["lr" if groups == 1 else f"lr/{k}"].values for k in range(groups)])


def _version() -> str:
    import shoal

    return shoal.__version__


def _device(record: StudyRecord) -> str:
    """The kind of device that the study ran on, as its hardware says last."""
    return str(record.meta.get("hardware") or "cpu").rsplit(", ", 1)[-1].split(":")[0]


def _run(folder: Path, found: float) -> float:
    """Run the script in an interpreter of its own; what it measures.

    Raises:
        StudyError: If it fails, or measures something else.
    """
    # Isolated: neither this folder nor PYTHONPATH, so that it cannot lean on what only this process has.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-I", "train.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    came = re.search(r"^(?:validation|test|training rows): \S+ (\S+); the search", done.stdout, re.MULTILINE)
    if done.returncode or came is None:
        raise StudyError(f"the exported script failed:\n{done.stderr.strip()[-2000:]}")
    again = float(came[1])
    # A lane's float32 sums are in another order than a loop's; what that amounts to after many epochs depends on the model.
    if abs(again - found) > 0.05 * max(abs(found), 1e-3):
        raise StudyError(
            f"the exported script measured {again:.6g}, and the search {found:.6g}. Please report this with the recipe; "
            "winner.safetensors has the weights that the search kept."
        )
    return again
