"""Kills studies at random moments, resumes them, and compares what they end with to what they should: ``make torture``.

Every session of a study is a forked process. It is killed with SIGKILL after a random part of the time that a whole study
takes, so that kills fall into tracing, training, commits, snapshots and restoring alike; or, where a study has workers, one
of those is. In the end each study is compared, bit for bit, with one that was not interrupted: every parameter, row, result,
event and weight. A study that chooses by measured time is compared with a second one that repeats its choices from its
journal.

    python benchmarks/torture.py [--studies 20] [--kills 5] [--trials 40] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
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
from shoal.records import StudyRecord, TrialState
from shoal.storage import load_study

G = torch.Generator().manual_seed(0)
X = torch.randn(512, 8, generator=G)
Y = X[:, :4].argmax(dim=1)


class Branches(nn.Module):
    """Looks at values to decide, so it has no lane form."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().abs().sum()) >= 0.0 else -x


def define(trial: Any) -> shoal.Recipe:
    """Two signatures and some solo trials; several families, schedules per step and per epoch, dropout, batch norm."""
    width = trial.suggest_categorical("width", [8, 12])
    layers: list[nn.Module] = [nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 4)]
    if trial.suggest_categorical("kind", ["lane"] * 7 + ["solo"]) == "solo":
        layers.insert(0, Branches())
    model = nn.Sequential(*layers)
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    kind = trial.suggest_categorical("optimizer", ["sgd", "adam", "nadam"])
    schedule: Any
    if kind == "sgd":
        optimizer: optim.Optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        total = 12 * shoal.steps_per_epoch(trial, 32)
        schedule = optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, schedule=schedule, schedule_every="step")
    optimizer = (optim.Adam if kind == "adam" else optim.NAdam)(model.parameters(), lr=lr)
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
        "max_epochs": 9,
        "reproducible": index % 2 == 0,
        "metric": "loss",
    }


@dataclass
class Tally:
    """What was done to studies, and what they lost."""

    kills: int = 0
    worker_kills: int = 0
    lost: int = 0
    differing: list[str] = field(default_factory=list)


def session(path: Path, options: dict[str, Any]) -> int:
    """Start a session in a process of its own; its id."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.setsid()
            torch.set_num_threads(2 if not options["reproducible"] else 1)
            snapshots.MIN_INTERVAL_S = 0.02
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", message=".*before the interruption.*")
                shoal.tune(define, train=(X, Y), storage=path, progress=False, **options)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def wait(pid: int, limit_s: float) -> int | None:
    """The exit code of a session, or None if it takes longer."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    return None


def finish(pid: int) -> None:
    code = wait(pid, 600)
    if code != 0:
        raise SystemExit(f"a session ended with exit code {code}")


def workers_of(pid: int) -> list[int]:
    """Its child processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def ended(path: Path) -> dict[int, Any]:
    """Trials of which the file says how they ended."""
    try:
        record = load_study(str(path))
    except StorageError:  # killed before there was a file
        return {}
    return {t.spec.number: plain(t) for t in record.trials if t.state is not TrialState.RUNNING}


def plain(t: Any) -> str:
    """A trial without its times; as text, so that NaN is NaN."""
    return repr(replace(t, time_s=0.0, rows=tuple(replace(r, time_s=0.0) for r in t.rows)))


def differences(a: StudyRecord, b: StudyRecord, weights: tuple[Path, Path] | None) -> Iterator[str]:
    """What is not the same in two studies."""
    if len(a.trials) != len(b.trials):
        yield f"{len(a.trials)} trials, not {len(b.trials)}"
    for ours, theirs in zip(a.trials, b.trials, strict=False):
        if plain(ours) != plain(theirs):
            yield f"trial {ours.spec.number}: {plain(ours)[:300]} / {plain(theirs)[:300]}"

    def journal(record: StudyRecord) -> list[Any]:
        return [(e.tick, e.kind, e.trial, e.fleet, e.lane, dict(e.data)) for e in record.events]

    mine, other = journal(a), journal(b)
    if mine != other:
        at = next((i for i, (x, y) in enumerate(zip(mine, other, strict=False)) if x != y), min(len(mine), len(other)))
        around = slice(max(0, at - 5), at + 5)
        yield f"journals, from event {at} of {len(mine)} and {len(other)}: {mine[around]} / {other[around]}"
    if weights is not None:
        names = [sorted(p.name for p in folder.iterdir()) for folder in weights]
        if names[0] != names[1]:
            yield f"weights kept: {names}"
        elif any((weights[0] / n).read_bytes() != (weights[1] / n).read_bytes() for n in names[0]):
            yield "weights"


def from_the_start(path: Path, copy: Path) -> None:
    """A copy of a study that will run all its rounds again, as its journal says."""
    shutil.copy(path, copy)
    shutil.copytree(path.with_suffix(".weights"), copy.with_suffix(".weights"))
    zero = json.dumps([snapshots.Snapshot(0, 0.0, 0, 0).as_json()])
    connection = sqlite3.connect(copy)
    connection.execute("UPDATE shoal_meta SET json = ? WHERE key = 'snapshots'", (zero,))
    connection.commit()
    connection.close()


def torture(folder: Path, index: int, n_trials: int, kills: int, draw: random.Random, tally: Tally) -> None:
    """One study: killed so many times, resumed, and compared."""
    options = options_of(index, n_trials)
    straight, path = folder / f"straight_{index}.db", folder / f"killed_{index}.db"
    started = time.monotonic()
    finish(session(straight, options))
    whole_s = time.monotonic() - started
    seen: dict[int, Any] = {}
    done = 0
    while done < kills:
        pid = session(path, options)
        if wait(pid, draw.uniform(0.02, whole_s * 0.7)) is not None:
            if path.exists():  # it came to its end: begin again, with what is left to do
                compare(folder, straight, path, options, seen, tally)
                for suffix in (".db", ".weights", ".snapshots"):
                    target = path.with_suffix(suffix)
                    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
                seen = {}
            continue
        workers = workers_of(pid)
        if workers and draw.random() < 0.3:
            os.kill(draw.choice(workers), signal.SIGKILL)
            tally.worker_kills += 1
            finish(pid)
            done += 1
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        tally.kills += 1
        done += 1
        now = ended(path)
        tally.lost += sum(number not in now for number in seen)
        tally.differing += [f"study {index}, trial {n} changed" for n in seen if n in now and now[n] != seen[n]]
        seen = now
    finish(session(path, options))
    compare(folder, straight, path, options, seen, tally)


def compare(
    folder: Path, straight: Path, path: Path, options: dict[str, Any], seen: dict[int, Any], tally: Tally
) -> None:
    """Compare a study that has come to its end."""
    record = load_study(str(path))
    final = {t.spec.number: plain(t) for t in record.trials if t.state is not TrialState.RUNNING}
    tally.lost += sum(number not in final for number in seen)
    tally.differing += [f"{path.stem}, trial {n} was another" for n in seen if n in final and final[n] != seen[n]]
    if options["reproducible"]:
        other, kept = straight, (path.with_suffix(".weights"), straight.with_suffix(".weights"))
    else:
        other, kept = folder / f"again_{path.stem}.db", None
        from_the_start(path, other)
        finish(session(other, options))
    tally.differing += [f"{path.stem}: {d}" for d in differences(record, load_study(str(other)), kept)]
    if other is not straight:
        other.unlink()
        shutil.rmtree(other.with_suffix(".weights"))


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> Tally:
    """Run it; see the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw, tally = random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        torch.set_num_threads(1)
        shoal.tune(define, train=(X, Y), n_trials=3, max_epochs=1, progress=False, reproducible=True)  # imports
        for index in range(options.studies):
            started = time.monotonic()
            torture(folder, index, options.trials, options.kills, draw, tally)
            say(
                f"study {index}: {tally.kills} kills and {tally.worker_kills} of workers so far, {tally.lost} finished trials "
                f"lost, {len(tally.differing)} differences ({time.monotonic() - started:.0f} s)"
            )
            for line in tally.differing[:5]:
                say(f"    {line}")
            if tally.differing or tally.lost:
                break
    return tally


if __name__ == "__main__":
    found = main()
    sys.exit(1 if found.lost or found.differing else 0)
