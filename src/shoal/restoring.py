"""Opening a study file and going on from it: what is kept, what starts again, and what must not be mixed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from shoal.asking import Asker
from shoal.engine import Standing
from shoal.errors import StorageError, UsageError
from shoal.history import History, ended
from shoal.objectives import Objectives, too_large
from shoal.records import Direction, Event, Json, StudyRecord, TrialRecord, TrialResult, TrialSpec, TrialState
from shoal.schedulers import Explorer, Observation, Scheduler
from shoal.snapshots import Snapshot, Snapshots, of_meta, whole
from shoal.weights import WeightStore, weights_file

if TYPE_CHECKING:
    from shoal.storage import StudyStore


@contextmanager
def opened(
    storage: str | Path | None, directions: Sequence[Direction], name: str | None = None
) -> Iterator[tuple[StudyStore | None, StudyRecord | None]]:
    """The stored study, owned until the context ends, and what it holds; (None, None) without one."""
    if storage is None:
        yield None, None
        return
    from shoal.storage import DEFAULT_NAME, StudyStore

    with StudyStore.open(storage, name=DEFAULT_NAME if name is None else name, directions=directions) as store:
        record = store.load()
        yield store, (record if record.trials or record.meta else None)


@dataclass(frozen=True, slots=True)
class Restored:
    """Where a session starts.

    Attributes:
        history: Of the study so far.
        weights: Those kept of it.
        standing: Where the engine goes on.
        pending: Trials to run again from their first epoch.
        asked_before: Trials that were asked after the snapshot, which are asked again, in this order and with the same parameters.
        ended_before: How trials ended after the snapshot. They will end so again.
        events_before, rounds_before: The journal after the snapshot, and the last round that is known of.
        snapshot: What the pool goes on from, if anybody trained.
        snapshots: Takes those to come; None without a study file.
    """

    history: History
    weights: WeightStore
    standing: Standing
    pending: Sequence[TrialSpec] = ()
    asked_before: Sequence[TrialSpec] = ()
    ended_before: Mapping[int, TrialResult] = field(default_factory=dict)
    events_before: Sequence[Event] = ()
    rounds_before: int = 0
    snapshot: Snapshot | None = None
    snapshots: Snapshots | None = None


def recorded_pools(storage: str | Path | None, name: str | None) -> int | None:
    """How many processes trained when a study was interrupted; None when it does not matter."""
    if storage is None:
        return None
    from shoal.storage import DEFAULT_NAME, load_meta

    try:
        found = of_meta(load_meta(storage, DEFAULT_NAME if name is None else name)[1])
    except StorageError:  # no file yet, or one that will be refused when it is opened
        return None
    return (found[0].n_pools or None) if found else None


def restore(
    previous: StudyRecord | None,
    facts: Mapping[str, Json],
    *,
    asker: Asker,
    store: StudyStore | None,
    directions: tuple[Direction, ...],
    max_epochs: int,
    pauses: bool,
    best_epoch: bool,
    rungs: Collection[int] = (),
    weights: WeightStore | None = None,
) -> Restored:
    """Take a study up where its file left it: at its last snapshot, or else with what its rows alone allow.

    Args:
        previous: What the study file holds, or None for a new study.
        facts: This session's entries of ``StudyRecord.meta``; they win over earlier ones.
        asker: Shown the trials of ``previous``.
        store: The study file, if any. Trials that run again are reopened in it.
        max_epochs: Epochs of a full trial; more than before means that finished trials run again.
        pauses: Whether the scheduler pauses trials. If not, or if it is another one than before, paused trials run again.
        best_epoch: Whether trials are judged by their best epoch.
        rungs: Epochs at which the sampler was shown how trials that went on were doing.
        weights: Those kept so far, when they are at hand.
    """
    folder = None if store is None else store.beside(".weights")
    signs = tuple(1.0 if direction == "minimize" else -1.0 for direction in directions)
    name = "shoal" if store is None else store.name
    if previous is None:
        history = History(name, directions[0], dict(facts), directions=directions)
        start = Restored(history, weights or WeightStore(folder, signs), Standing())
    else:
        start = _exactly(previous, facts, store, max_epochs, folder, signs) or _roughly(
            previous, facts, store, max_epochs, pauses, folder, signs
        )
        if weights is not None:
            start = replace(start, weights=weights)
        asker.restore(_as_seen(start, best_epoch, rungs))
    history, standing = start.history, start.standing
    if store is None:
        return start
    start.weights.sweep()
    if start.snapshots is None:
        now = Snapshot(
            standing.tick,
            history.elapsed_s,
            len(history.specs),
            len(history.events),
            {**standing.running, **standing.paused},
            standing.paused,
            sorted(standing.bare),
            [spec.number for spec in start.pending],
        )
        start = replace(start, snapshots=Snapshots(_folder(store), [now]))
        assert start.snapshots is not None
    history.meta["snapshots"] = start.snapshots.as_json() if start.snapshots is not None else []
    store.set_meta(history.meta)
    return start


def _folder(store: StudyStore) -> Path:
    return store.beside(".snapshots")


def _exactly(
    previous: StudyRecord,
    facts: Mapping[str, Json],
    store: StudyStore | None,
    max_epochs: int,
    folder: Path | None,
    signs: tuple[float, ...],
) -> Restored | None:
    """Go back to the last snapshot, from where all that came after it will come again; None where that cannot be promised.

    Nothing is taken out of the study file: what came after the snapshot stays in it until the same comes again.
    """
    known = of_meta(previous.meta)
    if store is None or not known or max_epochs > _max_epochs(previous, max_epochs):
        return None
    at = whole(known, _folder(store))
    if at is None:
        return None
    trials: list[TrialRecord] = []
    asked_before: list[TrialSpec] = []
    ended_before: dict[int, TrialResult] = {}
    later: set[float] = set()
    for t in previous.trials:
        number = t.spec.number
        kept = None
        if number >= at.n_asked:
            asked_before.append(t.spec)
            kept = 0
        elif number in at.pending:
            kept = 0
        elif number in at.open:
            kept = at.open[number]
            if kept and (not t.rows or t.rows[-1].epoch < kept):
                return None  # likewise: it was to start again from its first epoch
        elif t.state is TrialState.RUNNING:
            return None  # rows and snapshot do not belong together
        if kept is None:
            trials.append(t)
            continue
        if t.state is not TrialState.RUNNING:
            ended_before[number] = ended(t)
        later |= {row.time_s for row in t.rows if row.epoch > kept}
        if number < at.n_asked:
            rows = tuple(row for row in t.rows if row.epoch <= kept)
            trials.append(TrialRecord(t.spec, TrialState.RUNNING, None, kept, "", rows))
    events = previous.events[at.n_events :]
    if at.n_asked > len(previous.trials):
        return None
    anything = bool(asked_before or ended_before or later or events)
    same = all(previous.meta.get(key) == facts[key] for key in ("options", "hardware", "sampler", "scheduler"))
    if (anything and not same) or len(previous.events) < at.n_events:
        return None
    record = replace(previous, trials=tuple(trials), events=previous.events[: at.n_events])
    history = History.of(record, {**previous.meta, **facts, "elapsed_s": at.time_s})
    store.rewind(at.n_events)
    until = max([at.tick + len(later), *(e.tick for e in events)])
    running = {n: epoch for n, epoch in at.open.items() if n not in at.paused}
    return Restored(
        history,
        _weights(record, folder, signs),
        Standing(at.tick, running, at.paused, frozenset(at.bare)),
        [history.specs[n] for n in at.pending],
        asked_before,
        ended_before,
        events,
        until,
        at if at.pool is not None else None,
        Snapshots(_folder(store), [at]),
    )


def _roughly(
    previous: StudyRecord,
    facts: Mapping[str, Json],
    store: StudyStore | None,
    max_epochs: int,
    pauses: bool,
    folder: Path | None,
    signs: tuple[float, ...],
) -> Restored:
    """Go on with what the rows allow: trials that were running start again from their first epoch, paused ones if promoted."""
    longer = max_epochs > _max_epochs(previous, max_epochs)
    paused = _paused(previous) if pauses and not longer and previous.meta.get("scheduler") == facts["scheduler"] else {}
    states = {TrialState.RUNNING, TrialState.FINISHED} if longer else {TrialState.RUNNING}
    again = [t.spec.number for t in previous.trials if t.state in states and t.spec.number not in paused]
    trials = tuple(_reopened(t) if t.spec.number in again else t for t in previous.trials)
    record = replace(previous, trials=trials)
    # A winner that trains again is another one: what was measured on it no longer holds.
    stale = ("winner", "test", "test_trial") if longer else ()
    meta = {**{k: v for k, v in previous.meta.items() if k not in stale}, **facts}
    history = History.of(record, meta)
    if store is not None and again:
        store.set_meta({"snapshots": []})  # before the rows go that they count on: the process may be killed in between
        store.restart(again)
    for number in again:
        if folder is not None:
            weights_file(folder, number).unlink(missing_ok=True)
    return Restored(
        history,
        _weights(record, folder, signs),
        Standing(history.tick, paused=paused, bare=frozenset(paused)),
        [history.specs[n] for n in sorted(again)],
    )


def _max_epochs(previous: StudyRecord, default: int) -> int:
    before = previous.meta.get("options")
    found = before.get("max_epochs") if isinstance(before, dict) else None
    return found if isinstance(found, int) else default


def _paused(previous: StudyRecord) -> dict[int, int]:
    """Trials whose last event of the kind is a pause and that have not ended -> their last epoch."""
    last = {e.trial: e.kind for e in previous.events if e.kind in ("paused", "promoted")}
    return {
        t.spec.number: t.rows[-1].epoch
        for t in previous.trials
        if t.state is TrialState.RUNNING and last.get(t.spec.number) == "paused" and t.rows
    }


def _as_seen(start: Restored, best_epoch: bool, rungs: Collection[int]) -> list[TrialRecord]:
    """Trials as samplers saw them: one that was paused or passed a rung counts as stopped there, also when it has gone on since."""
    history = start.history
    pending = {spec.number for spec in start.pending}
    paused = {e.trial: cast(int, e.data["epoch"]) for e in history.events if e.kind == "paused"}
    out = []
    for t in history.record.trials:
        passed = [row.epoch for row in t.rows if row.epoch in rungs]
        at = max([paused.get(t.spec.number, 0), *passed])
        rows = [row for row in t.rows if row.epoch <= at and row.value == row.value]
        if t.state is TrialState.RUNNING and rows and t.spec.number not in pending:
            row = min(rows, key=lambda r: (history.sign * r.value, r.epoch)) if best_epoch else rows[-1]
            t = replace(t, state=TrialState.STOPPED, value=row.value, epoch=row.epoch)
        out.append(t)
    return out


def _reopened(trial: TrialRecord) -> TrialRecord:
    return TrialRecord(trial.spec, TrialState.RUNNING, None, 0, "", ())


def _weights(record: StudyRecord, folder: Path | None, signs: tuple[float, ...]) -> WeightStore:
    """The weights that are there. The folder says so and not the list in the study file: a study that was killed had no time to
    bring that up to date."""
    if folder is None:
        return WeightStore(None, signs)
    finished = [t for t in record.trials if t.state is TrialState.FINISHED and t.value is not None]
    paths = {t.spec.number: weights_file(folder, t.spec.number) for t in finished}
    known = {t.spec.number: (t.values, str(paths[t.spec.number])) for t in finished if paths[t.spec.number].exists()}
    seen = {t.spec.number: t.values for t in record.front()} if len(signs) > 1 else {}
    return WeightStore(folder, signs, known, seen)


def show(scheduler: Scheduler, history: History) -> None:
    """Show a scheduler what earlier sessions saw, round by round."""
    explores = isinstance(scheduler, Explorer)
    rounds: dict[float, list[Observation]] = {}
    for trial, rows in history.rows.items():
        params = history.specs[trial].params
        result = history.results.get(trial)
        if (
            result is not None
            and result.state is TrialState.STOPPED
            and result.epoch == 1
            and too_large(result.outcome)
        ):
            continue  # stopped by the engine
        for row in rows:
            loss = row.metrics.get("loss", 0.0)
            finite = row.value == row.value and math.isfinite(row.train_loss) and math.isfinite(loss)
            if finite or explores:  # what was not finite ended there, unseen by others
                value = history.sign * row.value if finite else math.nan
                seen = Observation(trial, row.epoch, value, params if explores else {})
                rounds.setdefault(row.time_s, []).append(seen)  # all rows of a round bear the same time
            if row.copied is not None:
                params = row.copied.params
    for _, together in sorted(rounds.items()):
        scheduler.observe(together)


def warm_trials(earlier: StudyRecord, wanted: Objectives) -> list[TrialRecord]:
    """The trials of an earlier study that a sampler can learn from.

    Raises:
        UsageError: It was judged by other metrics or in other directions.
    """
    names = earlier.objectives if earlier.meta.get("metric") else wanted.names
    if names != wanted.names or earlier.directions != wanted.directions:
        if wanted.several or len(names) > 1:
            had = replace(wanted, names=names, directions=earlier.directions).wanted
            raise UsageError(
                f"warm_start needs a study that was judged as this one is: it had {had}, this one has {wanted.wanted}."
            )
        judged, metric, direction = names[0], wanted.names[0], wanted.directions[0]
        raise UsageError(
            f"warm_start needs a study that was judged as this one is: it had {judged!r} to {earlier.direction}, this one has "
            f"{metric!r} to {direction}."
        )
    ended = (TrialState.FINISHED, TrialState.STOPPED)
    return [t for t in earlier.trials if t.state in ended and t.value is not None]


def check_same(previous: StudyRecord, facts: Mapping[str, Json]) -> None:
    """Refuse to mix trials of other code, data or metric into a study."""
    advice = "Use the file that the study was started with, or another storage."
    if previous.meta.get("fingerprint") not in (None, facts["fingerprint"]):
        raise StorageError(
            f"study {previous.name!r} belongs to other code: define() has changed since it was started (of a data file: its "
            f"target, its other options, or its rows). {advice}"
        )
    if previous.meta.get("data") not in (None, facts["data"]):
        raise StorageError(f"study {previous.name!r} was started with other data (its fingerprint differs). {advice}")
    if previous.meta.get("metric") not in (None, facts["metric"]):
        raise StorageError(
            f"study {previous.name!r} is judged by {previous.meta['metric']!r}, not by {facts['metric']!r}. {advice}"
        )
    for key, what in (("objectives", "is judged by"), ("constraints", "has the constraints")):
        had, has = previous.meta.get(key), facts.get(key)
        if "metric" in previous.meta and had != has:
            raise StorageError(f"study {previous.name!r} {what} {_listed(had)}, not {_listed(has)}. {advice}")
    if _digest(previous.meta.get("folds")) != _digest(facts.get("folds")):
        raise StorageError(
            f"study {previous.name!r} was started with other folds or seeds (does the splitter have a random_state?). {advice}"
        )
    before, now = previous.meta.get("options"), facts["options"]
    if isinstance(before, dict) and isinstance(now, dict):
        was, is_ = before.get("prepare"), now.get("prepare")
        if was != is_:
            raise StorageError(
                f"study {previous.name!r} was started with prepare={was}, not {is_}. Pass the same object; the file holds only "
                "what it is called."
            )
        for key in ("seed", "value"):
            if before.get(key) != now.get(key):
                raise StorageError(
                    f"study {previous.name!r} has {key}={before.get(key)!r}, not {now.get(key)!r}. {advice}"
                )
        if cast(int, now["max_epochs"]) < (most := _max_epochs(previous, 0)):
            raise UsageError(f"study {previous.name!r} trains up to {most} epochs; it cannot go on with fewer.")


def _listed(names: Json) -> str:
    return ", ".join(map(repr, names)) if isinstance(names, list) else "none"


def _digest(folds: Json) -> tuple[Json, ...]:
    """What two studies' ``meta["folds"]`` must agree in."""
    return (folds.get("digest"), folds.get("seeds")) if isinstance(folds, dict) else ()
