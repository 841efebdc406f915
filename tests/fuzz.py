"""Damaged and hostile files of every kind that Shoal reads: each must be read, or refused with one of Shoal's own errors.

Run it alone for as long as you like: ``python tests/fuzz.py --seconds 600``, or ``make fuzz``; ``--kind`` for one kind,
``--seed`` for another beginning. A finding is printed with its seed, and the file is left behind. `tests/test_safe_files.py`
runs every kind for a short while.

A mutant is a good file after one to four changes: cut off, bits flipped, a stretch overwritten with zeros, ones, noise or
another stretch, bytes put in or taken out, a 2, 4 or 8 byte integer made extreme, a number in a text made huge, two good
files spliced. SQLite files are also changed cell by cell, since a changed byte seldom gets past SQLite itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.errors import ShoalError

Draw = random.Random
MEMORY_BYTES = 600 * 2**20  # that reading a file of some kilobytes may add
SLOW_S = 20.0


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        suffix: Of its files.
        make: Writes a good file to a path; called with 0, 1, ... for different ones.
        read: Reads one as Shoal's users do.
        change: Its own way to change a file, beside those for bytes.
    """

    suffix: str
    make: Callable[[Path, int], None]
    read: Callable[[Path], object]
    change: Callable[[Draw, Path], None] | None = None


def mutated(draw: Draw, data: bytes, other: bytes) -> bytes:
    """A good file after one to four changes."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not out:
            break
        at = draw.randrange(len(out))
        length = min(len(out) - at, draw.choice((1, 2, 8, 64, 512)))
        match draw.randrange(9):
            case 0:
                del out[at:]
            case 1:
                out[at] ^= 1 << draw.randrange(8)
            case 2:
                fill = draw.choice((b"\0", b"\xff"))
                out[at : at + length] = fill * length
            case 3:
                out[at : at + length] = draw.randbytes(length)
            case 4:
                start = draw.randrange(len(out))
                out[at : at + length] = out[start : start + length]
            case 5:
                out[at:at] = draw.randbytes(length)
            case 6:
                del out[at : at + length]
            case 7:
                size = draw.choice((2, 4, 8))
                value = draw.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1))
                out[at : at + size] = value.to_bytes(size, draw.choice(("little", "big")))
            case _:
                numbers = list(re.finditer(rb"\d+", bytes(out[: 1 << 16])))
                if numbers:
                    found = draw.choice(numbers)
                    text = draw.choice((b"0", b"-1", b"99999999999999999999", b"1e308", b"null", b"[[]]", b'"x"', b"2"))
                    out[found.start() : found.end()] = text
    if draw.random() < 0.05:
        cut = draw.randrange(len(other) + 1)
        out[cut:] = other[cut:]
    return bytes(out)


def changed_cells(draw: Draw, path: Path) -> None:
    """Put something else into a cell of an SQLite file, or into its JSON, or into its schema."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=DELETE")
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables = [name for name in tables if name.startswith("shoal_") or draw.random() < 0.2]
    for _ in range(draw.choice((1, 1, 3))):
        table = draw.choice(tables)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        column = draw.choice(columns)
        found = connection.execute(f"SELECT {column} FROM {table} ORDER BY random() LIMIT 1").fetchone()
        if found is None:
            continue
        value: Any = draw.choice(
            (None, -1, 2**63 - 1, 1e308, "", "x", b"\xff\0", "nan", "[" * 5000, '{"$float": "x"}', "{}", "[]")
        )
        if isinstance(found[0], str) and draw.random() < 0.7:
            value = mutated(draw, found[0].encode(), b"{}").decode("utf-8", "replace")
        with contextlib.suppress(sqlite3.Error):  # a rule of the table forbids it
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {column} IS ?", (value, found[0]))
    connection.close()


# -- the kinds ---------------------------------------------------------------------------------------------------------


def make_study(path: Path, variant: int) -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

    from shoal.records import EpochRow, Event, TrialResult, TrialSpec, TrialState
    from shoal.storage import StudyStore

    space = {
        "lr": distribution_to_json(FloatDistribution(1e-5, 1e-1, log=True)),
        "act": distribution_to_json(CategoricalDistribution(["relu", "tanh"])),
    }
    n = 24 + variant
    with StudyStore.open(str(path), name="shoal", direction="maximize") as store:
        params = [{"lr": 10 ** -(1 + i / 8), "act": ("relu", "tanh")[i % 2]} for i in range(n)]
        store.asked([TrialSpec(i, i, p, space) for i, p in enumerate(params)])
        for i in range(n):
            store.recorded([EpochRow(i, e, 0.5, i + e / 10, {"loss": 0.1 * i, "accuracy": e}, e) for e in (1, 2)])
        states = [TrialState.FINISHED, TrialState.STOPPED, TrialState.FINISHED]
        store.ended([TrialResult(i, states[i % 3], i + 0.2, 2, "" if i % 3 else "rung", 3.0) for i in range(n - 1)])
        lanes: dict[str, Any] = {"width": 8, "tick_s": 0.1, "solo_step_s": 0.2, "tick_lanes": 8, "tier": "traced"}
        store.happened([Event(0, "fleet", fleet=0, data=lanes, time_s=0.1)])
        store.happened([Event(i, "admitted", i, 0, i % 8, {}, 0.1 * i) for i in range(n)])
        store.happened([Event(i + 1, "left", i, 0, i % 8, {}, 0.1 * i) for i in range(n)])
        best: dict[str, Any] = {"n": 50, "scores": {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}}}
        classes = {
            "matrix": [[5, 1], [2, 7]],
            "hits": [5, 7],
            "predicted": [7, 8],
            "support": [6, 9],
            "names": ["a", "b"],
        }
        winner: dict[str, Any] = {"trial": 21, "split": "test", "test": best, "valid": best, "classes": classes}
        store.set_meta(
            {
                "metric": "accuracy",
                "space": dict(space),
                "test": {"accuracy": 0.9},
                "weights": {"21": "x.weights/trial_000021.safetensors"},
                "winner": winner,
                "options": {"n_trials": n, "seed": 0, "max_epochs": 2},
                "elapsed_s": 12.5,
            }
        )
    sqlite3.connect(path).execute("PRAGMA journal_mode=DELETE").connection.close()


def read_study(path: Path) -> object:
    from shoal.cli import _best_facts, _best_text
    from shoal.importances import importances
    from shoal.report import render_report
    from shoal.storage import load_study

    record = load_study(str(path))
    facts = _best_facts(record)
    return render_report(record, importances(record)), facts and _best_text(facts)


def own_study(path: Path) -> object:
    from shoal.storage import StudyStore

    with StudyStore.open(str(path), name="shoal", direction="maximize") as store:
        return store.load()


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def make_weights(path: Path, variant: int) -> None:
    from shoal.weights import WeightStore, weights_file

    torch.manual_seed(variant)
    folder = path.parent / f"made{variant}"
    WeightStore(folder, 1.0).offer(3, 0.5, _net().state_dict)
    weights_file(folder, 3).rename(path)


def read_weights(path: Path) -> object:
    from shoal.weights import WeightStore

    WeightStore(path.parent, 1.0, {3: (0.5, str(path))}).load_into(_net(), 3)
    return None


def make_table_model(path: Path, variant: int) -> None:
    import pandas

    from shoal import tune_table

    draw = Draw(variant)
    colours = [draw.choice(("red", "green", "blue")) for _ in range(60)]
    columns = {
        "a": [draw.random() for _ in range(60)],
        "colour": colours,
        "day": ["2026-01-0" + str(1 + i % 9) for i in range(60)],
    }
    frame = pandas.DataFrame({**columns, "y": ["yes" if c == "red" else "no" for c in colours]})
    storage = path.with_suffix(".db")
    keywords: dict[str, Any] = {
        "n_trials": 1,
        "max_epochs": 1,
        "baselines": False,
        "progress": False,
        "reproducible": True,
    }
    found = tune_table(frame, target="y", storage=storage, **keywords)
    assert found.model_file is not None
    found.model_file.rename(path)
    storage.unlink()


def read_table_model(path: Path) -> object:
    import pandas

    from shoal.tabular import load_table_model

    rows = pandas.DataFrame({"a": [0.5, None], "colour": ["red", "grey"], "day": ["2026-01-01", "?"]})
    return load_table_model(path).predict(rows)


def make_folder_model(path: Path, variant: int) -> None:
    from shoal import tune_folder

    texts = path.parent / f"texts{variant}"
    for label, word in (("spam", "buy now"), ("ham", "see you")):
        (texts / label).mkdir(parents=True, exist_ok=True)
        for i in range(15):
            (texts / label / f"{i}.txt").write_text(f"{word} {i % 5} {'please ' * (i % 3)}", encoding="utf-8")
    storage = path.with_suffix(".db")
    keywords: dict[str, Any] = {
        "n_trials": 1,
        "max_epochs": 1,
        "baselines": False,
        "progress": False,
        "reproducible": True,
    }
    found = tune_folder(texts, storage=storage, **keywords)
    assert found.model_file is not None
    found.model_file.rename(path)
    storage.unlink()


def read_folder_model(path: Path) -> object:
    from shoal.folders._model import load_folder_model

    text = path.with_suffix(".txt")
    text.write_text("buy this now", encoding="utf-8")
    return load_folder_model(path).predict(text)


class _Branches(nn.Module):
    """Looks at values to decide, so it has no lane form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.detach().abs().sum()) >= 0.0 else -x


def _two_in_lanes_and_one_alone(trial: Any) -> Any:
    import shoal

    alone = trial.suggest_categorical("alone", [False, True])
    model = nn.Sequential(_Branches() if alone else nn.Identity(), nn.Linear(4, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1.0))
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule=schedule)


def _empty_pool() -> tuple[Any, Any, Any]:
    from shoal.data import Datasets, Split
    from shoal.lanes.fleet import Work
    from shoal.lanes.pool import Pool
    from shoal.records import TrialSpec
    from shoal.replay import replay
    from shoal.session import candidate
    from shoal.signature import Signer

    x = torch.linspace(-1, 1, 160).reshape(40, 4)
    split = Split((x, torch.arange(40) % 3), ())
    work = Work(Datasets(split, split, None, ""), (), torch.device("cpu"))
    specs = {n: TrialSpec(n, n, {"alone": n == 2, "lr": 0.01 * (n + 1)}, {}) for n in range(3)}

    def rebuild(spec: TrialSpec) -> Any:
        return replay(_two_in_lanes_and_one_alone, spec, split.n, split.form)

    def admission(spec: TrialSpec) -> Any:
        return candidate(spec, rebuild(spec), Signer(split.tensors), split.tensors[-1])

    return Pool(work, rebuild, measure=False), specs, admission


def make_snapshot(path: Path, variant: int) -> None:
    from shoal import sealed_file
    from shoal.lanes.snapshot import freeze

    pool, specs, admission = _empty_pool()
    pool.admit([admission(spec) for spec in specs.values()])
    for _ in range(1 + variant):
        for m in pool.run_epoch():
            pool.epoch_done(m.trial, m.valid_loss, m.valid_loss)
    pool.pause(1)
    sealed_file.write(path, *freeze(pool))


def read_snapshot(path: Path) -> object:
    """As if whoever changed the file had also changed the checksum that the study knows it by."""
    from shoal.lanes.snapshot import thaw
    from shoal.sealed_file import reading

    pool, specs, admission = _empty_pool()
    with reading(path) as file:
        thaw(pool, file, specs, admission)
    return pool.n_running


def make_interrupted(path: Path, variant: int) -> None:
    """A study that was killed some rounds after a snapshot, which lies beside it."""
    import shoal
    from shoal.errors import StudyError
    from shoal.snapshots import Snapshots

    rounds = 0

    def killed(_: Any) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 4 + variant:
            raise StudyError("killed")

    due, Snapshots.due = Snapshots.due, lambda self: rounds == 2 + variant  # type: ignore[method-assign]
    try:
        with contextlib.suppress(StudyError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one trains alone
            shoal.tune(_two_in_lanes_and_one_alone, storage=path, progress=killed, **_INTERRUPTED)
    finally:
        Snapshots.due = due  # type: ignore[method-assign]
    sqlite3.connect(path).execute("PRAGMA journal_mode=DELETE").connection.close()


_X = torch.linspace(-1, 1, 160).reshape(40, 4)
_INTERRUPTED: dict[str, Any] = {
    "train": (_X, torch.arange(40) % 3),
    "n_trials": 5,
    "max_epochs": 9,
    "sampler": "random",
    "scheduler": {"name": "asha", "eta": 2},
    "reproducible": True,
}


def read_interrupted(path: Path) -> object:
    """Go on from it, with the snapshot's files as they were."""
    import shoal

    if path.name.startswith("good"):
        return None  # it would end, and remove its snapshots
    folder = path.with_suffix(".snapshots")
    folder.mkdir()
    for file in path.parent.glob("good*.snapshots/*"):
        shutil.copy(file, folder)
    size = {
        key: _INTERRUPTED[key] for key in ("n_trials", "max_epochs")
    }  # of a study that asks for more, so much is trained
    return shoal.resume(path, _two_in_lanes_and_one_alone, train=_INTERRUPTED["train"], progress=False, **size)


def changed_facts(draw: Draw, path: Path) -> None:
    """Put something else into a fact that a study is resumed by."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=DELETE")
    key = draw.choice(("snapshots", "snapshots", "snapshots", "options", "elapsed_s", "space", "folds"))
    for (text,) in connection.execute("SELECT json FROM shoal_meta WHERE key = ?", (key,)).fetchall():
        facts = _changed_part(draw, json.loads(text))
        connection.execute("UPDATE shoal_meta SET json = ? WHERE key = ?", (json.dumps(facts), key))
    connection.close()


def _changed_part(draw: Draw, value: Any) -> Any:
    """JSON data with another value somewhere inside."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _changed_part(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], *draw.choice(([], [_changed_part(draw, value[at])])), *value[at + 1 :]]
    return draw.choice(
        (None, -1, 0, 3, 2**31, 2**70, 0.5, "", "x", "../x", {}, [], [0, 1], {"0": 1}, {"$float": "inf"}, True)
    )


def make_study_file(path: Path, variant: int) -> None:
    rows = "\n".join(f"{i / 7},{i % 2}" for i in range(40))
    (path.parent / "data.csv").write_text(f"x,y\n{rows}\n", encoding="utf-8")
    path.write_text(
        f'[data]\nfile = "data.csv"\ntarget = "y"\n\n[model]\ndepth = {1 + variant}\nnorm = "none"\n\n[space]\n'
        'width = [8, 16]\nlr = {low = 1e-3, high = 1e-1, log = true}\n\n[sampler]\nname = "tpe"\nn_startup_trials = 3\n'
    )


def read_study_file(path: Path) -> object:
    from shoal.study_file import read_study_file as read

    return read(path)


def make_csv(path: Path, variant: int) -> None:
    rows = [f'{i},{i / 7},"say ""{i}""",2026-01-{1 + i % 28:02d}' for i in range(40 + variant)]
    path.write_text("n,x,text,day\n" + "\n".join(rows) + "\n", encoding="utf-8")


def make_parquet(path: Path, variant: int) -> None:
    import pandas

    n = 40 + variant
    pandas.DataFrame({"n": range(n), "x": [i / 7 for i in range(n)], "t": [str(i) for i in range(n)]}).to_parquet(path)


def read_table(path: Path) -> object:
    from shoal.tabular import read_table

    return read_table(path).n


def make_image(path: Path, variant: int) -> None:
    from PIL import Image

    draw = Draw(variant)
    Image.frombytes("RGB", (24, 16), draw.randbytes(24 * 16 * 3)).save(path)


def read_image(path: Path) -> object:
    from shoal.folders._images import Images

    return Images(8, 8, 3, 0.5, 0.25).apply([path])


KINDS: dict[str, Kind] = {
    "study": Kind(".db", make_study, read_study, changed_cells),
    "own study": Kind(".db", make_study, own_study, changed_cells),
    "weights": Kind(".safetensors", make_weights, read_weights),
    "table model": Kind(".model.safetensors", make_table_model, read_table_model),
    "folder model": Kind(".model.safetensors", make_folder_model, read_folder_model),
    "snapshot": Kind(".safetensors", make_snapshot, read_snapshot),
    "interrupted study": Kind(".db", make_interrupted, read_interrupted, changed_facts),
    "study.toml": Kind(".toml", make_study_file, read_study_file),
    "csv": Kind(".csv", make_csv, read_table),
    "csv.gz": Kind(".csv.gz", lambda path, v: _zipped(path, v), read_table),
    "parquet": Kind(".parquet", make_parquet, read_table),
    "png": Kind(".png", make_image, read_image),
    "jpeg": Kind(".jpg", make_image, read_image),
}


def _zipped(path: Path, variant: int) -> None:
    import gzip

    plain = path.with_suffix(".plain")
    make_csv(plain, variant)
    path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))


# -- the loop ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A file that was neither read nor refused in Shoal's own words."""

    kind: str
    seed: int
    path: Path
    error: BaseException

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}: {type(self.error).__name__}: {str(self.error)[:300]} ({self.path})"


def goods(kind: Kind, folder: Path) -> list[bytes]:
    """Two good files, read once each."""
    found = []
    for variant in range(2):
        path = folder / f"good{variant}{kind.suffix}"
        kind.make(path, variant)
        kind.read(path)
        found.append(path.read_bytes())
    return found


def one(name: str, seed: int, good: list[bytes], folder: Path) -> Finding | bool:
    """Read one mutant; a finding, or whether it was refused."""
    kind, draw = KINDS[name], Draw(seed)
    path = folder / f"mutant{kind.suffix}"
    for left in folder.glob("mutant*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
    path.write_bytes(good[seed % 2])
    if kind.change is not None and draw.random() < 0.6:
        kind.change(draw, path)
    else:
        path.write_bytes(mutated(draw, good[seed % 2], good[1 - seed % 2]))
    data = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    refused = False
    error: BaseException | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
    except ShoalError as said:
        refused = True
        if not str(said).strip():
            error = AssertionError("an error without a word")
    except BaseException as found:
        if isinstance(found, KeyboardInterrupt):
            raise
        error = found
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if error is None and grown > MEMORY_BYTES:
        error = MemoryError(f"{grown / 2**20:.0f} MiB for a file of {len(data)} bytes")
    if error is None and time.monotonic() - started > SLOW_S:
        error = TimeoutError(f"{time.monotonic() - started:.0f} s for a file of {len(data)} bytes")
    if error is None:
        return refused
    kept = folder / f"finding-{seed}{kind.suffix}"
    kept.write_bytes(data)
    return Finding(name, seed, kept, error)


def fuzz(name: str, folder: Path, *, seconds: float, seed: int = 0, at_least: int = 0) -> Iterator[Finding | bool]:
    """What came of mutant after mutant, for so long."""
    folder.mkdir(parents=True, exist_ok=True)
    good = goods(KINDS[name], folder)
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until or count < at_least:
        yield one(name, seed + count, good, folder)
        count += 1


def main() -> int:
    """Run every kind, or one, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each kind")
    parser.add_argument("--kind", choices=sorted(KINDS), default=None)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoal-fuzz-"))
    n_findings = 0
    for name in [arguments.kind] if arguments.kind else KINDS:
        n = n_refused = n_found = 0
        seen: set[str] = set()
        for came in fuzz(name, folder / name.replace(" ", "-"), seconds=arguments.seconds, seed=arguments.seed):
            n += 1
            if isinstance(came, Finding):
                n_found += 1
                if (what := f"{type(came.error).__name__} {str(came.error)[:40]}") not in seen:
                    seen.add(what)
                    print(came, flush=True)
            else:
                n_refused += came
        print(f"{name}: {n} files, {n_refused} refused, {n_found} findings", flush=True)
        n_findings += n_found
    return 1 if n_findings else 0


if __name__ == "__main__":
    sys.exit(main())
