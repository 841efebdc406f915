"""Several pools, one per core: fleets and solo trials of a study spread over forked processes.

Two single-threaded processes beat one with two threads as long as a kernel takes microseconds: threads spend that long meeting each
other. A worker is told (number, seed, params) and replays ``define`` itself, so no recipe and no code ever crosses a pipe; what
comes back is data. Forking needs no import and shares the data set; where it is not to be had, one pool in this process does all.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal import planner
from shoal.errors import StorageError, StudyError, blame
from shoal.lanes import native
from shoal.lanes.copying import Held, Portable, go_on, portable, take, tensors_of
from shoal.lanes.decisions import Decisions
from shoal.lanes.lane import Measured
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.snapshot import freeze, thaw
from shoal.records import Event, Json, TrialSpec, part_of
from shoal.sealed_file import Seal, reading, write

Admission = Callable[[TrialSpec], Candidate]


class Trainer(Protocol):
    """What the engine needs of whatever trains."""

    @property
    def n_running(self) -> int: ...
    @property
    def n_lanes(self) -> int: ...
    @property
    def n_fleets(self) -> int: ...
    def admit(self, candidates: Iterable[Candidate], promoted: Sequence[int] = ()) -> None: ...
    def pause(self, trial: int) -> None: ...
    def run_epoch(self) -> list[Measured]: ...
    def epoch_done(self, trial: int, loss: float, value: float) -> None: ...
    def remember(self, trial: int) -> None: ...
    def state_dict(self, trial: int, *, remembered: bool = False) -> dict[str, Tensor]: ...
    def remove(self, trial: int) -> None: ...
    def copy(self, moves: Sequence[tuple[TrialSpec, int]]) -> set[int]: ...
    def drain_events(self) -> list[Event]: ...
    def snapshot(self, folder: Path, stem: str) -> dict[str, Json]: ...
    def restore(self, folder: Path, facts: Mapping[str, Any], specs: Mapping[int, TrialSpec], rounds: int) -> None: ...


class WorkerDied(StudyError):
    """A worker process is gone; what it trained has to be trained again."""


class _Remote:
    """A pool in a worker process. Commands that need no answer are gathered and sent with the next one that does."""

    def __init__(self, connection: Connection, process: Any) -> None:
        self.connection, self.process = connection, process
        self._queue: list[tuple[str, tuple[Any, ...]]] = []
        self.n_lanes = self.n_fleets = 0

    def later(self, method: str, *args: Any) -> None:
        self._queue.append((method, args))

    def send(self, method: str, *args: Any, answer: bool = True) -> None:
        """Send all that has gathered, and this; with an answer, ``receive`` gives what this returned."""
        queue, self._queue = [*self._queue, (method, args)], []
        try:
            self.connection.send((answer, queue))
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Any:
        try:
            kind, value, self.n_lanes, self.n_fleets = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if kind == "error":
            raise value
        return value

    def _died(self) -> WorkerDied:
        self.process.join(1.0)
        return WorkerDied(
            f"a worker process died (exit code {self.process.exitcode}; -9 means killed, often for want of memory). Finished "
            "trials are safe; resume the study to go on."
        )


class PoolSet:
    """This process's own pool and those of its workers, as one.

    Args:
        local: The pool of this process.
        remotes: The others.
        admission: Replays and signs a trial.
        opening: What a pool's first fleet of a signature costs (`shoal.planner.opening`).
    """

    def __init__(self, local: Pool, remotes: Sequence[_Remote], admission: Admission, opening: float = 0.0) -> None:
        self._local, self._remotes, self._admission, self._opening = local, list(remotes), admission, opening
        self._where: dict[int, int] = {}  # running trial -> pool; 0 is the local one
        self._paused: dict[int, int] = {}  # paused trial -> the pool that keeps it
        self._signature: dict[int, tuple[str, float]] = {}
        self._warned: set[str] = set()
        self._events: list[Event] = []
        self._rounds = 0
        self._decisions = Decisions()

    @property
    def n_running(self) -> int:
        return len(self._where)

    @property
    def n_pools(self) -> int:
        """This process's own and those of its workers."""
        return 1 + len(self._remotes)

    @property
    def n_lanes(self) -> int:
        return self._local.n_lanes + sum(r.n_lanes for r in self._remotes)

    @property
    def n_fleets(self) -> int:
        return self._local.n_fleets + sum(r.n_fleets for r in self._remotes)

    def admit(self, candidates: Iterable[Candidate], promoted: Sequence[int] = ()) -> None:
        """Start trials, each in the pool where it delays the epoch least; promoted ones go on in the pool that keeps them.

        A worker makes its trials ready while the next candidates are still being made.
        """
        self._upgrade()
        back: list[list[int]] = [[] for _ in range(self.n_pools)]
        for trial in promoted:
            k = self._where[trial] = self._paused.pop(trial)
            back[k].append(trial)
        running: list[list[tuple[str, float]]] = [[] for _ in back]
        mine: list[Candidate] = []
        for trial, k in self._where.items():
            running[k].append(self._signature[trial])
        known = [{signature for signature, _ in those} for those in running]
        for trial, k in self._paused.items():
            known[k].add(self._signature[trial][0])
        for c in candidates:
            cost = sum(p.numel() for p in c.recipe.model.parameters()) * max(1, min(c.recipe.batch_size, 32))
            one = (c.signature if c.lane is not None else "", float(cost))
            compiled = self._local.tier != "traced"
            k = planner.lightest(running, one, compiled=compiled, known=known, opening=self._opening)
            running[k].append(one)
            self._where[c.spec.key], self._signature[c.spec.key] = k, one
            if k:
                self._remotes[k - 1].send("prepare", c.spec, answer=False)
            else:
                mine.append(c)
        for remote, those in zip(self._remotes, back[1:], strict=True):
            # Also when there are none: a fleet whose queue has dried up narrows. At once: tracing takes a second in every pool.
            remote.send("admit", those, answer=False)
        self._local.admit(mine, back[0])

    def pause(self, trial: int) -> None:
        """Copy a trial out of its lane; it counts in no lane until it is promoted."""
        self._tell(trial, "pause")
        self._paused[trial] = self._where.pop(trial)

    def _upgrade(self) -> None:
        """Change all pools over to native kernels once they are built; in a round that was run before, when it was done then."""
        if not self._local.may_upgrade:
            return
        coming = self._rounds + 1
        if coming == self._decisions.native_at:
            native.insist()
        elif coming <= self._decisions.until:
            return
        if native.kernels() is None:
            return
        for remote in self._remotes:
            remote.later("upgrade")
        self._local.upgrade()
        self._events.append(Event(0, "tier", data={"tier": self._local.tier}))

    def run_epoch(self) -> list[Measured]:
        """One epoch of every running trial, all pools at once, in the order of their keys."""
        self._rounds += 1
        for remote in self._remotes:
            remote.send("run_epoch")
        out = self._local.run_epoch()
        self._note(self._local.drain_events(), 0)
        for k, remote in enumerate(self._remotes, 1):
            measured, events = remote.receive()
            out += measured
            self._note(events, k)
        return sorted(out, key=lambda m: m.trial)

    def _note(self, events: Sequence[Event], pool: int) -> None:
        """Number fleets apart by pool, and say aloud, once per reason, what trains solo."""
        for e in events:
            fleet = None if e.fleet is None else e.fleet * (1 + len(self._remotes)) + pool
            data = {
                k: (v * (1 + len(self._remotes)) + pool if k == "to" and isinstance(v, int) else v)
                for k, v in e.data.items()
            }
            if e.kind == "signature solo":
                data["pool"] = pool
            self._events.append(Event(e.tick, e.kind, e.trial, fleet, e.lane, data, e.time_s))
            reason = str(e.data.get("reason", ""))
            if e.kind == "solo" and reason and not reason.startswith("faster") and reason not in self._warned:
                self._warned.add(reason)
                warnings.warn(f"trial {part_of(e.trial or 0)[0]} trains solo: {reason}.", RuntimeWarning, stacklevel=4)

    def _tell(self, trial: int, method: str, *args: Any) -> None:
        k = self._where[trial] if trial in self._where else self._paused[trial]
        if k == 0:
            getattr(self._local, method)(trial, *args)
        else:
            self._remotes[k - 1].later(method, trial, *args)

    def epoch_done(self, trial: int, loss: float, value: float) -> None:
        """Step the schedules that step per epoch."""
        self._tell(trial, "epoch_done", loss, value)

    def remember(self, trial: int) -> None:
        """Keep a copy of a trial's weights as they are now: its best epoch so far."""
        self._tell(trial, "remember")

    def state_dict(self, trial: int, *, remembered: bool = False) -> dict[str, Tensor]:
        """A running trial's weights, on the CPU; as they are, or as they were when last remembered."""
        k = self._where[trial]
        if k == 0:
            return self._local.state_dict(trial, remembered=remembered)
        self._remotes[k - 1].send("state_arrays", trial, remembered)
        arrays = self._remotes[k - 1].receive()
        return tensors_of(arrays)

    def remove(self, trial: int) -> None:
        """Take a trial out, running or paused."""
        self._tell(trial, "remove")
        self._where.pop(trial, None)
        self._paused.pop(trial, None)
        del self._signature[trial]

    # -- trials that go on from others ------------------------------------------------------------------------------------

    def copy(self, moves: Sequence[tuple[TrialSpec, int]]) -> set[int]:
        """Let running trials go on from what others have learnt by now.

        Args:
            moves: What each goes on as, and whom it copies, who is not copied over itself.

        Returns:
            The trials that do, by key; nothing of the others has changed.
        """
        held = {
            source: self._ask(self._where[source], "taken", source) for source in dict.fromkeys(s for _, s in moves)
        }
        waiting = [(spec, source) for spec, source in moves if held[source] is not None]
        done: set[int] = set()
        for at_source in (
            False,
            True,
        ):  # at first where the trial is; else where its source is, which has what it takes
            for k in range(self.n_pools):
                part = [(p, s) for p, s in waiting if self._where[s if at_source else p.key] == k and p.key not in done]
                if at_source:
                    part = [(p, s) for p, s in part if self._where[p.key] != k]
                if not part:
                    continue
                said = self._ask(k, "gone_on", [(spec, held[source]) for spec, source in part])
                for (spec, source), problem in zip(part, said, strict=True):
                    if not problem:
                        self._settle_in(spec.key, k)
                        self._signature[spec.key] = self._signature[source]
                        done.add(spec.key)
        return done

    def _ask(self, k: int, method: str, *args: Any) -> Any:
        """What a pool answers at once."""
        if k == 0:
            return _ANSWERS[method](self._local, self._admission, *args)
        self._remotes[k - 1].send(method, *args)
        return self._remotes[k - 1].receive()

    def _settle_in(self, trial: int, k: int) -> None:
        """Note where a trial is now, and let the pool that it has left forget it."""
        before = self._where[trial]
        if before != k:
            best = self._ask(before, "left_behind", trial)
            self._ask(k, "brought_along", trial, best)
            self._where[trial] = k

    # -- snapshots --------------------------------------------------------------------------------------------------------

    def snapshot(self, folder: Path, stem: str) -> dict[str, Json]:
        """Write what every trial holds into the folder, a file per pool, all pools at once.

        Returns:
            JSON facts that ``restore`` takes.

        Raises:
            StorageError: A file could not be written.
        """
        names = [f"{stem}.{k}.safetensors" for k in range(self.n_pools)]
        for remote, name in zip(self._remotes, names[1:], strict=True):
            remote.send("snapshot", folder / name)
        seals: list[Json] = []
        failure: StorageError | None = None
        try:
            seals.append(write(folder / names[0], *freeze(self._local)).as_json())
        except StorageError as error:  # but first all others are heard
            failure = error
        for remote in self._remotes:
            try:
                seals.append(remote.receive())
            except StorageError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        kept = {**self._where, **self._paused}
        return {
            "files": seals,
            "running": {str(trial): k for trial, k in self._where.items()},
            "paused": {str(trial): k for trial, k in self._paused.items()},
            "costs": {str(trial): list(self._signature[trial]) for trial in kept},
        }

    def restore(self, folder: Path, facts: Mapping[str, Any], specs: Mapping[int, TrialSpec], rounds: int) -> None:
        """Go on from a snapshot. Call before anything else.

        Args:
            folder: Where its files lie, which have been checked.
            facts: What ``snapshot`` returned.
            specs: Of the study's trials.
            rounds: Epochs that had been run by then.

        Raises:
            StorageError: It does not fit: another number of pools, or other code.
        """
        names = [Seal.of(seal).name for seal in facts["files"]]
        if len(names) != self.n_pools:
            raise StorageError(f"a snapshot of {len(names)} processes cannot be taken up by {self.n_pools}.")
        try:
            self._where = {int(trial): int(k) for trial, k in facts["running"].items()}
            self._paused = {int(trial): int(k) for trial, k in facts["paused"].items()}
            self._signature = {int(trial): (str(key), float(cost)) for trial, (key, cost) in facts["costs"].items()}
            kept = {**self._where, **self._paused}
            if self._signature.keys() != kept.keys() or not all(0 <= k < self.n_pools for k in kept.values()):
                raise ValueError("trials without a place")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StorageError(f"the study file describes no snapshot ({error!r:.200}): it is damaged.") from error
        self._rounds = rounds
        if self._local.may_upgrade:  # before any pool that ran on it asks for it
            native.insist()
        for remote, name in zip(self._remotes, names[1:], strict=True):
            remote.send("restore", folder / name, _named(folder / name, specs))
        _restore(self._local, folder / names[0], specs, self._admission)
        for remote in self._remotes:
            remote.receive()

    def recall(self, decisions: Decisions) -> None:
        """Repeat what was decided by the clock in rounds that will be run again."""
        self._decisions = decisions
        for k, pool in enumerate([None, *self._remotes]):
            known = (decisions.of_pool(k), decisions.compiled_in(k), decisions.until, self._rounds)
            if pool is None:
                self._local.recall(*known)
            else:
                pool.later("recall", *known)

    def drain_events(self) -> list[Event]:
        """What happened since the last call."""
        self._note(self._local.drain_events(), 0)
        out, self._events = self._events, []
        return out


def _gone_on(pool: Pool, admission: Admission, moves: Sequence[tuple[TrialSpec, Held]]) -> list[str]:
    """For each of the moves, why the pool cannot make it, or ""."""
    said, made = [""] * len(moves), []
    for i, (spec, held) in enumerate(moves):
        try:
            made.append((i, admission(spec), held))
        except Exception as error:
            said[i] = f"define raised {blame(error)}"
    for (i, _, _), problem in zip(made, go_on(pool, [(c, held) for _, c, held in made]), strict=True):
        said[i] = problem
    return said


def _left_behind(pool: Pool, admission: Admission, trial: int) -> dict[str, Portable] | None:
    """Forget a trial; what it was when it was best, if that is kept."""
    best = portable(pool.state_dict(trial, remembered=True)) if pool.remembers(trial) else None
    pool.remove(trial)
    return best


def _brought_along(pool: Pool, admission: Admission, trial: int, best: Mapping[str, Portable] | None) -> None:
    if best is not None:
        pool.remember(trial, tensors_of(best))


# What a pool can be asked.
_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "taken": lambda pool, admission, trial: take(pool, trial),
    "gone_on": _gone_on,
    "left_behind": _left_behind,
    "brought_along": _brought_along,
}


def _named(path: Path, specs: Mapping[int, TrialSpec]) -> dict[int, TrialSpec]:
    """The specs of the trials that a file names."""
    with reading(path) as file:
        numbers = {int(number) for number in file.facts["trials"]} | {g["template"] for g in file.facts["groups"]}
    return {number: specs[number] for number in numbers}


def _restore(pool: Pool, path: Path, specs: Mapping[int, TrialSpec], admission: Admission) -> None:
    with reading(path) as file:
        thaw(pool, file, specs, admission)


def n_workers(lanes: int, *, device: torch.device, reproducible: bool) -> int:
    """Processes worth having: one per core on a CPU, as long as each has four lanes to fill."""
    if reproducible or device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        return 1
    if (
        multiprocessing.current_process().daemon
    ):  # Python lets a daemonic process (a worker of a Pool, say) have no children
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(cores, torch.get_num_threads(), lanes // 4, 16))


@contextmanager
def pools(make_pool: Callable[[], Pool], admission: Admission, count: int, opening: float = 0.0) -> Iterator[PoolSet]:
    """Open ``count`` pools: one here, the others in forked workers that end with this context or with this process.

    Args:
        make_pool: Makes the pool, in the process where it will live.
        admission: Replays and signs a trial.
        count: Pools in all. Kernels use one thread each when there is more than one.
        opening: As for `PoolSet`.
    """
    threads = torch.get_num_threads()
    remotes: list[_Remote] = []
    _keep_freed_memory()
    if count > 1:
        _import_ahead()
        torch.set_num_threads(1)  # before the fork: a child has no use for the parent's team of threads
    try:
        context: Any = multiprocessing.get_context("fork") if count > 1 else None
        for _ in range(count - 1):
            ours, theirs = context.Pipe()
            others = [r.connection for r in remotes]
            with warnings.catch_warnings():
                # Python 3.12 warns that forking beside threads may deadlock; the child takes none of their locks.
                warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
                process = context.Process(
                    target=_serve, args=(theirs, [ours, *others], make_pool, admission), daemon=True
                )
                process.start()
            theirs.close()
            remotes.append(_Remote(ours, process))
        yield PoolSet(make_pool(), remotes, admission, opening)
    finally:
        for remote in remotes:
            with contextlib.suppress(OSError):
                remote.connection.close()
        for remote in remotes:
            remote.process.join(0.2)
            if remote.process.is_alive():
                remote.process.kill()
                remote.process.join()
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory for the next tick, which otherwise takes it from the system again, page by page.

    A twentieth to a tenth of a tick of a small network. Other allocators are left alone.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (nothing but glibc has it)
        libc.mallopt(mmap_threshold, 32 * 2**20)
        libc.mallopt(trim_threshold, 256 * 2**20)


def _import_ahead() -> None:
    """Load once, before the fork, what every pool would load by itself with its first trial: over a second each."""
    for name in ("torch._dynamo", "torch.fx.experimental.proxy_tensor"):  # an optimizer's constructor; tracing
        importlib.import_module(name)


def _serve(
    connection: Connection, others: Sequence[Connection], make_pool: Callable[[], Pool], admission: Admission
) -> None:
    """A worker's life: carry out commands in order until the other end of the pipe is closed."""
    for other in others:
        other.close()  # or this process would keep its own pipe open, and never see the parent go
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # likewise, when it is sent to all of a job's processes
    torch.set_num_threads(1)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    pool = make_pool()

    def run_epoch() -> tuple[list[Measured], list[Event]]:
        return pool.run_epoch(), pool.drain_events()

    def state_arrays(trial: int, remembered: bool) -> dict[str, Any]:
        return portable(pool.state_dict(trial, remembered=remembered))

    ready: list[Candidate] = []  # to be admitted

    def prepare(spec: TrialSpec) -> None:
        try:
            ready.append(admission(spec))
        except Exception as error:
            pool.fail(spec.key, f"trial {spec.number}: define raised {blame(error)}")

    def admit(promoted: Sequence[int]) -> None:
        candidates, ready[:] = list(ready), []
        pool.admit(candidates, promoted)

    commands: dict[str, Callable[..., Any]] = {
        "prepare": prepare,
        "admit": admit,
        "upgrade": pool.upgrade,
        "recall": pool.recall,
        "snapshot": lambda path: write(path, *freeze(pool)).as_json(),
        "restore": lambda path, specs: _restore(pool, path, specs, admission),
        "pause": pool.pause,
        "run_epoch": run_epoch,
        "epoch_done": pool.epoch_done,
        "remember": pool.remember,
        "remove": pool.remove,
        "state_arrays": state_arrays,
        **{name: functools.partial(answer, pool, admission) for name, answer in _ANSWERS.items()},
    }
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        failure: Exception | None = None  # of a command that nobody waited for: it is the next answer
        while True:
            value: Any = None
            try:
                answer, queue = connection.recv()
                for method, args in queue:
                    value = commands[method](*args)
            except EOFError:
                break
            except Exception as error:  # carried to the parent, which raises it where the caller stands
                failure = failure or _portable(error)
            if answer:
                connection.send(
                    (*(("value", value) if failure is None else ("error", failure)), pool.n_lanes, pool.n_fleets)
                )
                failure = None
    os._exit(0)  # not the interpreter's exit: what the parent registered to run at exit is not this process's to run


def _die_with(parent: int) -> None:
    """A parent that was killed closes its pipes, but a worker in the middle of a long epoch would not notice."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _portable(error: Exception) -> Exception:
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return StudyError(f"{type(error).__name__} in a worker: {error}")
    return error
