"""Cuts the power, and fills the disk, at random moments of a study; resumes it; compares what it ends with to what it should.

A library that is preloaded (``disk.cpp``, built here) notes every write, sync, rename and removal of a whole study and passes no
sync on. From that log the disk after a power cut is put together for any moment. What was synced is there; each write since may be
there, in part, or not; of the renames, creations and removals since, the first few are there. The file must then hold every row
whose transaction had returned, and the study that is resumed on it must end as the one that was not cut, bit for bit.

The same library makes a disk full after so many bytes. The session must then end with an error that says so, and once there is room
the study must be resumed as if nothing had happened.

    python benchmarks/disk_faults.py [--cuts 60] [--resumed 20] [--full 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import bisect
import ctypes
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import shoal
import torture
from shoal import snapshots
from shoal.errors import StorageError
from shoal.lanes.native._build import compiler
from shoal.storage import _rows
from torture import Place, define, differences

_SECTOR = 512
_HEAD = struct.Struct("<cIIqq")
_FULL = 3  # exit code of a session that said what it should


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that a process did to a file: see ``disk.cpp``."""

    kind: str
    path: str
    other: str
    offset: int
    data: bytes


def records_of(log: Path) -> Iterator[Record]:
    """What a log holds, in order."""
    raw, at = log.read_bytes(), 0
    while at < len(raw):
        kind, a, b, offset, size = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        path, other = raw[at : at + a].decode(), raw[at + a : at + a + b].decode()
        at += a + b
        yield Record(kind.decode(), path, other, offset, raw[at : at + size])
        at += size


@dataclass(eq=False)
class File:
    """What of a file is on the disk for certain, and what was done to it since."""

    data: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, bytes), or (size, None)

    def sync(self) -> None:
        """All of it has reached the disk."""
        for change in self.waiting:
            _apply(self.data, *change)
        self.waiting.clear()

    def after(self, draw: random.Random, kept: float) -> bytes:
        """What is there after a power cut, if a write reaches the disk with this probability."""
        data = bytearray(self.data)
        for offset, what in self.waiting:
            if draw.random() >= kept:
                continue
            if what is not None and len(what) > _SECTOR and draw.random() < 0.3:
                start, stop = sorted(draw.randrange(0, len(what) + 1, _SECTOR) for _ in range(2))
                offset, what = offset + start, what[start:stop]
            _apply(data, offset, what)
        return bytes(data)


def _apply(data: bytearray, offset: int, what: bytes | None) -> None:
    size = offset if what is None else offset + len(what)
    if len(data) < size:
        data.extend(bytes(size - len(data)))
    if what is None:
        del data[offset:]
    else:
        data[offset:size] = what


class Disk:
    """A folder as its disk has it: names that are there for certain, and what was done to them since.

    Args:
        root: The folder, which is there and empty.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.acknowledged: list[list[Any]] = []
        self._names: dict[str, File | None] = {root: None}  # None is a folder
        self._waiting: list[tuple[str, str, File | None]] = []  # (kind, path, what it names)
        self._live: dict[str, File | None] = {root: None}
        self._inodes: dict[int, str] = {}

    def take(self, r: Record) -> None:
        """One record more."""
        if r.kind == "c":
            self._inodes[r.offset] = r.path
        elif r.kind in "sr" and r.path not in self._live and r.offset in self._inodes:
            self._rename(self._inodes[r.offset], r.path)  # unseen
        found = self._live.get(r.path)
        match r.kind:
            case "w" if Path(r.path).name == "acknowledged":
                self.acknowledged += [json.loads(line) for line in r.data.decode().splitlines()]
            case "w" | "t" if found is not None:
                found.waiting.append((r.offset, r.data if r.kind == "w" else None))
            case "c" | "m":
                self._live[r.path] = File() if r.kind == "c" else None
                self._waiting.append(("name", r.path, self._live[r.path]))
            case "r":
                self._rename(r.path, r.other)
                self._inodes[r.offset] = r.other
            case "u":
                self._live.pop(r.path, None)
                self._waiting.append(("forget", r.path, None))
            case "s" if found is not None:
                found.sync()
            case "s":
                mine = [w for w in self._waiting if str(Path(w[1]).parent) == r.path]
                _apply_names(self._names, mine)
                self._waiting = [w for w in self._waiting if w not in mine]

    def _rename(self, path: str, to: str) -> None:
        moved = self._live[to] = self._live.pop(path)
        self._waiting += [("name", to, moved), ("forget", path, None)]

    def after_a_cut(self, draw: random.Random, to: Path) -> None:
        """Write what is there after a power cut into another folder."""
        kept, names = draw.choice((0.0, 0.5, 0.9)), dict(self._names)
        _apply_names(names, self._waiting[: draw.choice((0, draw.randint(0, len(self._waiting))))])
        for path, file in sorted(names.items()):
            parents = list(Path(path).relative_to(self.root).parents)
            if any(str(Path(self.root) / p) not in names for p in parents) or Path(path).name == "acknowledged":
                continue
            target = to / Path(path).relative_to(self.root)
            if file is None:
                target.mkdir(exist_ok=True)
            else:
                target.write_bytes(file.after(draw, kept))


def _apply_names(names: dict[str, File | None], changes: Sequence[tuple[str, str, File | None]]) -> None:
    for kind, path, file in changes:
        if kind == "name":
            names[path] = file
        else:
            names.pop(path, None)


def session(place: Place, options: dict[str, Any], *, log: Path | None = None, n_bytes: int = -1) -> int:
    """Start a session in a process of its own, on a disk that is watched or takes so many bytes; its id."""
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.chdir(place.folder)
            torch.set_num_threads(1)
            snapshots.MIN_INTERVAL_S = 0.02
            if log is not None:
                _acknowledge(place.folder)
            ctypes.CDLL(None).disk_watch(str(place.folder).encode(), str(log or "").encode(), ctypes.c_int64(n_bytes))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", message=".*before the interruption.*")
                shoal.tune(
                    define,
                    train=(torture.X, torture.Y),
                    storage=place.storage,
                    study_name=place.name,
                    progress=False,
                    **options,
                )
            code = 0
        except StorageError as error:
            full = "Free some space" in str(error) or "No space left" in str(error)
            code = _FULL if full else 1
            if not full:
                traceback.print_exc()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def _acknowledge(folder: Path) -> None:
    """Write down what was acknowledged, in the order of everything else."""
    commit = _rows.RowWriter.commit
    handle = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(self: _rows.RowWriter, batch: Sequence[_rows.Operation]) -> None:
        commit(self, batch)
        rows = [[r[0], r[1], r[3]] for kind, each in batch if kind == "recorded" for r in each]
        os.write(handle, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    _rows.RowWriter.commit = noted  # type: ignore[method-assign]


@dataclass
class Tally:
    """What was done, and what it cost."""

    cuts: int = 0
    resumed: int = 0
    full: int = 0
    lost: int = 0
    differing: list[str] = field(default_factory=list)


def cut_power(folder: Path, straight: Place, options: dict[str, Any], n: int, resumed: int, seed: int) -> Tally:
    """Run a study on a watched disk, and look at what is there after a power cut at ``n`` moments."""
    draw, tally = random.Random(seed), Tally()
    work = folder / "work"
    work.mkdir()
    place = Place(str(work / "study.db"), straight.name, work)
    torture.finish(session(place, options, log=folder / "log"))
    records = list(records_of(folder / "log"))
    disk = Disk(str(work))
    moments = sorted(draw.randrange(len(records)) for _ in range(n))
    chosen = set(draw.sample(range(n), min(n, resumed)))
    for i, r in enumerate(records):
        for k in range(bisect.bisect_left(moments, i), bisect.bisect_right(moments, i)):
            image = folder / f"cut{k}"
            image.mkdir()
            disk.after_a_cut(draw, image)
            there = Place(str(image / "study.db"), straight.name, image)
            tally.cuts += 1
            _see(there, disk.acknowledged, tally)
            if k in chosen:
                tally.resumed += 1
                torture.finish(session(there, options))
                _compare(f"power cut at {i} of {len(records)}", there, straight, tally)
            shutil.rmtree(image)
        disk.take(r)
    return tally


def _see(place: Place, acknowledged: Sequence[list[Any]], tally: Tally) -> None:
    """Whether all that was acknowledged is there."""
    record = place.load()
    trials = () if record is None else record.trials
    there = {(row.trial, row.epoch): row.value for t in trials for row in t.rows}
    tally.lost += sum(repr(there.get((trial, epoch))) != repr(value) for trial, epoch, value in acknowledged)


def fill_disk(folder: Path, straight: Place, options: dict[str, Any], n: int, n_bytes: int, seed: int) -> Tally:
    """Run a study on disks that get full at ``n`` moments, then with room."""
    draw, tally = random.Random(seed), Tally()
    while tally.full < n:
        work = folder / f"full{tally.full}"
        work.mkdir()
        place = Place(str(work / "study.db"), straight.name, work)
        pid = session(place, options, n_bytes=int(n_bytes * draw.random() ** 2))
        code = torture.wait(pid, 300)
        if code not in (0, _FULL):
            tally.differing.append(f"full disk {tally.full}: exit code {code}")
        tally.full += 1
        if code:
            torture.finish(session(place, options))
        _compare(f"full disk {tally.full}", place, straight, tally)
        shutil.rmtree(work)
    return tally


def _compare(what: str, place: Place, straight: Place, tally: Tally) -> None:
    record, expected = place.load(), straight.load()
    assert record is not None and expected is not None
    weights = (place.beside(".weights"), straight.beside(".weights"))
    tally.differing += [f"{what}: {d}" for d in differences(record, expected, weights)]


def main() -> int:
    """Run it; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=60)
    parser.add_argument("--resumed", type=int, default=20)
    parser.add_argument("--full", type=int, default=20)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        if "SHOAL_DISK" not in os.environ:
            return _preloaded(folder / "disk.so")
        options = {**torture.options_of(0, given.trials), "max_epochs": 5}
        whole = folder / "straight"
        whole.mkdir()
        straight = Place(str(whole / "study.db"), "study", whole)
        torture.finish(session(straight, options))
        n_bytes = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
        cut = cut_power(folder, straight, options, given.cuts, given.resumed, given.seed)
        print(
            f"power cuts: {cut.cuts}, {cut.resumed} of them resumed: {cut.lost} acknowledged epochs lost, "
            f"{len(cut.differing)} differences",
            flush=True,
        )
        full = fill_disk(folder, straight, options, given.full, 2 * n_bytes, given.seed)
        print(f"full disks: {full.full}: {len(full.differing)} differences")
        for line in [*cut.differing, *full.differing][:5]:
            print(f"    {line[:2000]}")
        return 1 if cut.lost or cut.differing or full.differing else 0


def _preloaded(library: Path) -> int:
    """Run this program with the library in front of the system's own."""
    cxx = compiler()
    if cxx is None or sys.platform != "linux":
        print("needs Linux and a C++ compiler", file=sys.stderr)
        return 2
    source = Path(__file__).with_name("disk.cpp")
    subprocess.run([cxx, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-lpthread"], check=True)
    env = {**os.environ, "LD_PRELOAD": str(library), "SHOAL_DISK": "1"}
    return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
