"""Kills studies at random moments, resumes them, and compares what they end with to what they should: ``make torture``.

Every session of a study is a forked process. It is killed with SIGKILL after a random part of the time that a whole study
takes, so that kills fall into tracing, building, training, commits, snapshots and restoring alike; or, where a study has
workers, one of those is. In the end each study is compared, bit for bit, with one that was not interrupted: every parameter,
row, result, event and weight. A study that chooses by measured time is compared with a second one that repeats its choices
from its journal. Three of four do, in two processes, and go over to native kernels and compiled epochs when those are ready;
in every tenth study the compiler has yet to build them, in the others they are there.

    python benchmarks/torture.py [--studies 20] [--kills 5] [--trials 40] [--seed 0]
    python benchmarks/torture.py --postgres --studies 6 --kills 4   # on a server of its own, whose connections are cut as well
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

import shoal
from shoal import snapshots
from shoal.errors import StorageError
from shoal.lanes import native, pool
from shoal.lanes.compiled import Compilation
from shoal.records import StudyRecord, TrialRecord, TrialResult, TrialState
from shoal.storage import StudyStore, load_study

G = torch.Generator().manual_seed(0)
X = torch.randn(1024, 8, generator=G)
Y = X[:, :4].argmax(dim=1)
# A signature is compiled once it has trained for so long, and a snapshot is taken so often: both some times in each study.
COMPILE_AFTER_S, SNAPSHOT_EVERY_S = 0.01, 0.02
MAX_EPOCHS = 18


class Branches(nn.Module):
    """Looks at values to decide, so it has no lane form."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().abs().sum()) >= 0.0 else -x


def define(trial: Any) -> shoal.Recipe:
    """Lanes and some solo trials; several families of updates, schedules per step and per epoch, dropout."""
    layers: list[nn.Module] = [nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 4)]
    if trial.suggest_categorical("kind", ["lane"] * 15 + ["solo"]) == "solo":
        layers.insert(0, Branches())
    model = nn.Sequential(*layers)
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    kind = trial.suggest_categorical("optimizer", ["sgd", "adam", "rmsprop"])
    schedule: Any
    if kind == "sgd":
        optimizer: optim.Optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        total = MAX_EPOCHS * shoal.steps_per_epoch(trial, 32)
        schedule = optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, schedule=schedule, schedule_every="step")
    optimizer = (optim.Adam if kind == "adam" else optim.RMSprop)(model.parameters(), lr=lr)
    schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, schedule=schedule)


def options_of(index: int, n_trials: int) -> dict[str, Any]:
    """Options of a study; they differ from study to study."""
    scheduler = ("asha", "halving", "median", "none", "hyperband")[index % 5]
    sampler = ("tpe", "random")[index // 5 % 2]
    return {
        "scheduler": scheduler,
        "sampler": sampler,
        "value": ("last", "best")[index // 2 % 2],
        "seed": index,
        "n_trials": n_trials,
        "max_epochs": MAX_EPOCHS,
        "reproducible": index % 4 == 0,
        "metric": "loss",
    }


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study is stored, and where its files lie."""

    storage: str
    name: str
    folder: Path

    def beside(self, suffix: str) -> Path:
        """Its folder of weights or snapshots."""
        return next(iter(self.folder.glob(f"*.{self.name}{suffix}")), self.folder / f"none{suffix}")

    def load(self) -> StudyRecord | None:
        """What is stored of it; None before there is anything."""
        try:
            return load_study(self.storage, self.name)
        except StorageError:  # killed before that was there
            return None

    def clear(self) -> None:
        """Remove its files."""
        for suffix in (".weights", ".snapshots"):
            shutil.rmtree(self.beside(suffix), ignore_errors=True)


@dataclass
class Tally:
    """What was done to studies, and what they lost."""

    kills: int = 0
    worker_kills: int = 0
    cuts: int = 0
    compiled: int = 0  # studies that trained compiled epochs
    whole_s: float = 10.0  # that an uninterrupted session takes, as far as is known
    lost: int = 0
    differing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        cuts = f", {self.cuts} cut connections" if self.cuts else ""
        return (
            f"{self.kills} kills and {self.worker_kills} of workers{cuts} so far, {self.lost} finished trials lost, "
            f"{len(self.differing)} differences, {self.compiled} studies compiled"
        )


def session(place: Place, options: dict[str, Any]) -> int:
    """Start a session in a process of its own; its id."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.chdir(place.folder)
            torch.set_num_threads(2 if not options["reproducible"] else 1)
            snapshots.MIN_INTERVAL_S = SNAPSHOT_EVERY_S
            pool._COMPILE_AFTER_S = COMPILE_AFTER_S
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", message=".*before the interruption.*")
                shoal.tune(
                    define, train=(X, Y), storage=place.storage, study_name=place.name, progress=False, **options
                )
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def build(folder: Path) -> None:
    """Have all libraries built that studies will ask for."""
    if (pid := os.fork()) == 0:
        ready = Compilation.ready

        def built(self: Compilation, name: str = "epoch") -> Any:
            self._build.insist()
            return ready(self, name)

        Compilation.ready = built  # type: ignore[method-assign]
        native.prepare()
        native.insist()
        finish(session(Place(str(folder / "built.db"), "built", folder), options_of(3, 8)))
        os._exit(0)
    os.waitpid(pid, 0)


def wait(pid: int, limit_s: float) -> int | None:
    """The exit code of a session, or None if it takes longer."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    return None


def finish(pid: int) -> float:
    """Wait for a session to come to its end; seconds that it took from now."""
    started = time.monotonic()
    code = wait(pid, 600)
    if code != 0:
        raise SystemExit(f"a session ended with exit code {code}")
    return time.monotonic() - started


def workers_of(pid: int) -> list[int]:
    """Its child processes, compilers left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text(encoding="utf-8").partition("(")[2].rpartition(")")
            fields = rest.split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z" and "python" in name:
            found.append(int(stat.parent.name))
    return found


def cut(url: str) -> int:
    """End all connections to a database, as an administrator would; how many there were."""
    import psycopg

    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"
    with psycopg.connect(url, autocommit=True) as connection:
        return len(connection.execute(query, (connection.info.backend_pid,)).fetchall())


def ended(record: StudyRecord | None) -> dict[int, str]:
    """Trials of which a study says how they ended."""
    trials = () if record is None else record.trials
    return {t.spec.number: plain(t) for t in trials if t.state is not TrialState.RUNNING}


def plain(t: TrialRecord) -> str:
    """A trial without its times; as text, so that NaN is NaN."""
    return repr(replace(t, time_s=0.0, rows=tuple(replace(r, time_s=0.0) for r in t.rows)))


def differences(a: StudyRecord, b: StudyRecord, weights: tuple[Path, Path]) -> Iterator[str]:
    """What is not the same in two studies."""
    if len(a.trials) != len(b.trials):
        yield f"{len(a.trials)} trials, not {len(b.trials)}"
    for ours, theirs in zip(a.trials, b.trials, strict=False):
        if plain(ours) != plain(theirs):
            yield f"trial {ours.spec.number}: {plain(ours)[:600]} / {plain(theirs)[:600]}"

    def journal(record: StudyRecord) -> list[Any]:
        return [(e.tick, e.kind, e.trial, e.fleet, e.lane, dict(e.data)) for e in record.events]

    mine, other = journal(a), journal(b)
    if mine != other:
        at = next((i for i, (x, y) in enumerate(zip(mine, other, strict=False)) if x != y), min(len(mine), len(other)))
        around = slice(max(0, at - 5), at + 5)
        yield f"journals, from event {at} of {len(mine)} and {len(other)}: {mine[around]} / {other[around]}"
    names = [sorted(p.name for p in folder.iterdir()) for folder in weights]
    if names[0] != names[1]:
        yield f"weights kept: {names}"
    elif any((weights[0] / n).read_bytes() != (weights[1] / n).read_bytes() for n in names[0]):
        yield "weights"


def from_the_start(record: StudyRecord, copy: Place) -> None:
    """A copy of a study that will run all its rounds again, as its journal says."""
    with StudyStore.open(copy.storage, name=copy.name, direction=record.direction) as store:
        store.asked([t.spec for t in record.trials])
        store.recorded([row for t in record.trials for row in t.rows])
        store.ended([TrialResult(t.spec.number, t.state, t.value, t.epoch, t.reason, t.time_s) for t in record.trials])
        store.happened(record.events)
        store.set_meta({**record.meta, "snapshots": [snapshots.Snapshot(0, 0.0, 0, 0).as_json()]})


def torture(folder: Path, storage: str, index: int, n_trials: int, kills: int, draw: random.Random, t: Tally) -> None:
    """One study: killed so many times, resumed, and compared."""
    options = options_of(index, n_trials)
    known = os.environ["SHOAL_CACHE"]
    os.environ["SHOAL_CACHE"] = str(folder / f"cache{index}") if index % 10 == 1 else known
    straight = Place(str(folder / "straight.db"), f"straight{index}", folder)
    if options["reproducible"]:
        t.whole_s = finish(session(straight, options))
    seen: dict[int, str] = {}
    done = beginnings = 0
    place = Place(storage, f"killed{index}", folder)
    while done < kills:
        pid = session(place, options)
        code = wait(pid, draw.uniform(0.02, t.whole_s * 0.7))
        if code:
            raise SystemExit(f"a session ended with exit code {code}")
        if code == 0:
            compare(straight, place, options, seen, t)  # it came to its end: begin again, with what is left to do
            beginnings, seen = beginnings + 1, {}
            place = Place(storage, f"killed{index}again{beginnings}", folder)
            continue
        workers = workers_of(pid)
        done += 1
        if storage.startswith("postgresql") and draw.random() < 0.3:
            t.cuts += cut(storage)
            code = wait(pid, draw.uniform(0.02, 1.0))
            if code:
                raise SystemExit(f"a session ended with exit code {code} when its connections were cut")
            if code == 0:
                continue
        if workers and draw.random() < 0.2:
            os.kill(draw.choice(workers), signal.SIGKILL)
            t.worker_kills += 1
            finish(pid)
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        t.kills += 1
        now = ended(place.load())
        t.lost += sum(number not in now for number in seen)
        t.differing += [f"study {index}, trial {n} changed" for n in seen if n in now and now[n] != seen[n]]
        seen = now
    finish(session(place, options))
    compare(straight, place, options, seen, t)
    straight.clear()
    os.environ["SHOAL_CACHE"] = known


def compare(straight: Place, place: Place, options: dict[str, Any], seen: dict[int, str], tally: Tally) -> None:
    """Compare a study that has come to its end."""
    record = place.load()
    assert record is not None
    final = ended(record)
    tally.lost += sum(number not in final for number in seen)
    tally.differing += [f"{place.name}, trial {n} was another" for n in seen if n in final and final[n] != seen[n]]
    tally.compiled += any(e.kind == "tier" and e.fleet is not None for e in record.events)
    other = straight
    if not options["reproducible"]:
        other = Place(str(place.folder / "again.db"), f"{place.name}repeated", place.folder)
        from_the_start(record, other)
        tally.whole_s = finish(session(other, options))
    expected = other.load()
    assert expected is not None
    weights = (place.beside(".weights"), other.beside(".weights"))
    tally.differing += [f"{place.name}: {d}" for d in differences(record, expected, weights)]
    place.clear()
    if other is not straight:
        other.clear()


def server_url() -> str:
    """A database on a PostgreSQL server that lives as long as this process."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from postgres_server import server

    return server().url()


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> Tally:
    """Run it; see the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the number of the first study")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args(arguments)
    draw, tally = random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        os.environ.setdefault("SHOAL_CACHE", str(folder / "cache"))
        storage = server_url() if options.postgres else str(folder / "killed.db")
        torch.set_num_threads(1)
        shoal.tune(define, train=(X, Y), n_trials=3, max_epochs=1, progress=False, reproducible=True)  # imports
        build(folder)
        for index in range(options.first, options.first + options.studies):
            started = time.monotonic()
            torture(folder, storage, index, options.trials, options.kills, draw, tally)
            say(f"study {index}: {tally} ({time.monotonic() - started:.0f} s)")
            sys.stdout.flush()
            for line in tally.differing[:5]:
                say(f"    {line}")
            if tally.differing or tally.lost:
                break
    return tally


if __name__ == "__main__":
    found = main()
    sys.exit(1 if found.lost or found.differing else 0)
