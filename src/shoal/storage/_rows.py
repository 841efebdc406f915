"""Rows into tables: what a batch does to a file or database.

Consecutive operations of one kind go out as one bulk statement. Each is an upsert or a delete and insert, so that a
trial that is resumed or extended may say again what it said before.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState as OptunaState

from shoal.objectives import OPTUNA_PREFIX, PROPERTIES
from shoal.records import TrialResult, TrialState
from shoal.storage import _codec
from shoal.storage._database import Owner
from shoal.storage._tables import EPOCH, EVENT, META, TRAJECTORY, TRIAL

# What a queued operation is: its kind, which is the name of a method of `RowWriter`, and its rows.
Operation: TypeAlias = "tuple[str, Sequence[Any]]"

_TRIALS = models.TrialModel.__table__
_PARAMS = models.TrialParamModel.__table__
_VALUES = models.TrialValueModel.__table__
_ATTRS = models.TrialUserAttributeModel.__table__
_SYSTEM = models.TrialSystemAttributeModel.__table__
_STEPS = models.TrialIntermediateValueModel.__table__

_STATES = {
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.FINISHED: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A `TrialSpec` in the form of its rows; ``params`` are (name, Optuna's internal value, distribution as JSON)."""

    number: int
    seed: str
    spec: str
    params: tuple[tuple[str, float, str], ...]
    start: datetime.datetime


@dataclass(frozen=True, slots=True)
class EndedRow:
    """A `TrialResult` and when it came."""

    result: TrialResult
    end: datetime.datetime


class _Bulk:
    """A statement that the driver is given as text, with its rows as they are.

    SQLAlchemy looks at each value of each row, which takes longer than the database does; epochs are most of what is written.

    Args:
        statement: With one bound value per column.
        dialect: Of the connections that it will be used on.
        columns: In the order of the rows' values.
    """

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: Sequence[str]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(columns))
        self._text = str(compiled)
        self._columns = tuple(columns)
        names: Sequence[str] | None = compiled.positiontup
        # Either values in the statement's order, or by name.
        self._order = None if names is None else [self._columns.index(name) for name in names]
        self._as_they_are = self._order == list(range(len(self._columns)))

    def write(self, connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows, if there are any."""
        if not rows:
            return
        given: list[Any]
        if self._order is None:
            given = [dict(zip(self._columns, row, strict=True)) for row in rows]
        else:
            given = list(rows) if self._as_they_are else [tuple(row[i] for i in self._order) for row in rows]
        connection.exec_driver_sql(self._text, given)


class RowWriter:
    """Writes operations of one study; used from the writer's thread only.

    Args:
        owner: the study's, whose connection nobody else uses.
        study_id: the study's key in Optuna's tables.
        trial_ids: Optuna's trial key by trial number, for the trials that are stored already.
        several: whether the study has several objectives. Optuna then knows no reports, and a pruned trial has no value.
    """

    def __init__(self, owner: Owner, study_id: int, trial_ids: list[int], *, several: bool = False) -> None:
        self._owner = owner
        self._several = several
        self._connection = owner.connection
        self._study_id = study_id
        self._trial_ids = trial_ids
        dialect = self._connection.dialect
        steps = ("trial_id", "step", "intermediate_value", "intermediate_value_type")
        self._put_step = _Bulk(self._upsert(_STEPS, ("trial_id", "step")), dialect, steps)
        self._put_value = self._upsert(_VALUES, ("trial_id", "objective"))
        self._put_attr = self._upsert(_ATTRS, ("trial_id", "key"))
        self._put_system = self._upsert(_SYSTEM, ("trial_id", "key"))
        epochs = [column.name for column in EPOCH.columns]
        self._put_epoch = _Bulk(self._upsert(EPOCH, ("study_id", "trial", "epoch")), dialect, epochs)
        self._put_trajectory = self._upsert(TRAJECTORY, ("study_id", "trial", "epoch"))
        self._put_meta = self._upsert(META, ("study_id", "key"))
        self._put_event = self._upsert(EVENT, ("study_id", "seq"))

    def _upsert(self, table: Any, keys: Sequence[str]) -> Any:
        statement = self._owner.insert(table)
        surrogate = {c.name for c in table.primary_key if c.autoincrement is True or len(table.primary_key) == 1}
        changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in {*keys, *surrogate}}
        return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)

    def commit(self, batch: Sequence[Operation]) -> None:
        """Make a batch durable: one transaction, and one wait for the disk.

        Raises:
            StorageError: it could not be written; then nothing of the batch is stored.
        """
        n_trials = len(self._trial_ids)

        def work(connection: sa.Connection) -> None:
            del self._trial_ids[n_trials:]  # of an attempt that was cut off
            self._connection = connection
            for kind, operations in itertools.groupby(batch, key=lambda operation: operation[0]):
                rows = list(itertools.chain.from_iterable(rows for _, rows in operations))
                getattr(self, kind)(rows)

        self._owner.commit(work)

    def asked(self, rows: Sequence[AskedRow]) -> None:
        """New trials, running, with their parameters."""
        ids = self._owner.new_trial_ids(self._connection, len(rows))  # so that nothing has to be read back
        self._trial_ids.extend(ids)
        self._many(
            sa.insert(_TRIALS),
            [
                {
                    "trial_id": trial_id,
                    "number": row.number,
                    "study_id": self._study_id,
                    "state": OptunaState.RUNNING,
                    "datetime_start": row.start,
                }
                for trial_id, row in zip(ids, rows, strict=True)
            ],
        )
        self._many(
            sa.insert(_PARAMS),
            [
                {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": distribution}
                for trial_id, row in zip(ids, rows, strict=True)
                for name, value, distribution in row.params
            ],
        )
        fresh = {"study_id": self._study_id, "state": TrialState.RUNNING.value, "epoch": 0, "reason": "", "time_s": 0.0}
        self._many(
            sa.insert(TRIAL), [{**fresh, "number": row.number, "seed": row.seed, "spec": row.spec} for row in rows]
        )

    def recorded(self, rows: Sequence[tuple[int, int, float, float, str, float]]) -> None:
        """Epochs, as the values of rows of shoal_epoch without the study."""
        steps = []
        for trial, epoch, _, value, *_ in () if self._several else rows:
            stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
            steps.append((self._trial_ids[trial], epoch, stored, kind.name))
        self._put_step.write(self._connection, steps)
        self._put_epoch.write(self._connection, [(self._study_id, *row) for row in rows])

    def moved(self, rows: Sequence[dict[str, Any]]) -> None:
        """What extensions moved, as rows of shoal_trajectory without the study."""
        self._many(self._put_trajectory, [{"study_id": self._study_id, **row} for row in rows])

    def ended(self, rows: Sequence[EndedRow]) -> None:
        """How trials ended, for the first time or again."""
        self._close([row.result for row in rows], {row.result.number: row.end for row in rows})

    def restart(self, numbers: Sequence[int]) -> None:
        """Trials that run again from the start: as if they had only been asked."""
        ids = [{"key_": self._trial_ids[number]} for number in numbers]
        self._many(sa.delete(_STEPS).where(_STEPS.c.trial_id == sa.bindparam("key_")), ids)
        for table in (EPOCH, TRAJECTORY):
            mine = sa.and_(table.c.study_id == self._study_id, table.c.trial == sa.bindparam("number_"))
            self._many(sa.delete(table).where(mine), [{"number_": number} for number in numbers])
        self._close([TrialResult(number, TrialState.RUNNING, None, 0) for number in numbers], {})

    def happened(self, rows: Sequence[dict[str, Any]]) -> None:
        """Events, as rows of shoal_event without the study; those of rounds that are run again replace what they were."""
        self._many(self._put_event, [{"study_id": self._study_id, **row} for row in rows])

    def set_meta(self, rows: Sequence[dict[str, str]]) -> None:
        """Facts about the study, as rows of shoal_meta without the study."""
        self._many(self._put_meta, [{"study_id": self._study_id, **row} for row in rows])

    def _close(self, results: Sequence[TrialResult], ends: dict[int, datetime.datetime]) -> None:
        latest = list({result.number: result for result in results}.values())  # the last word on each trial counts
        states, values, attrs, system, own = [], [], [], [], []
        for result in latest:
            trial_id = self._trial_ids[result.number]
            shown = self._optuna_values(result)
            state = _STATES[result.state]
            if state is OptunaState.COMPLETE and not shown:
                state = OptunaState.FAIL  # what Optuna itself makes of a value that is NaN
            states.append({"key_": trial_id, "state_": state, "end_": ends.get(result.number)})
            for objective, value in enumerate(shown):
                stored, kind = models.TrialValueModel.value_to_stored_repr(value)
                values.append({"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind})
            system += [
                {"trial_id": trial_id, "key": f"{OPTUNA_PREFIX}{key}", "value_json": json.dumps(broken_by)}
                for key, broken_by in result.outcome.constraints.items()
            ]
            if result.state is not TrialState.RUNNING:
                attrs.append({"trial_id": trial_id, "key": "epoch", "value_json": str(result.epoch)})
                told: dict[str, Any] = {"reason": result.reason or None, "standard_error": result.standard_error}
                told["lane_values"] = list(result.lanes) or None
                told |= result.outcome.measured
                told["schedule"] = list(result.schedule) or None
                attrs += [
                    {"trial_id": trial_id, "key": key, "value_json": _codec.encode(said, key)}
                    for key, said in told.items()
                    if said is not None
                ]
            own.append(
                {
                    "number_": result.number,
                    "state_": result.state.value,
                    "value_": _codec.judged(result.value, result.outcome),
                    "epoch_": result.epoch,
                    "reason_": result.reason,
                    "time_": result.time_s,
                }
            )
        keys = [{"key_": row["key_"]} for row in states]
        names = ("reason", "epoch", "standard_error", "lane_values", "schedule", *PROPERTIES)
        is_mine = sa.or_(*(_ATTRS.c.key == key for key in names))
        self._many(sa.delete(_VALUES).where(_VALUES.c.trial_id == sa.bindparam("key_")), keys)
        self._many(sa.delete(_ATTRS).where(_ATTRS.c.trial_id == sa.bindparam("key_"), is_mine), keys)
        is_bound = _SYSTEM.c.key.startswith(OPTUNA_PREFIX, autoescape=True)
        self._many(sa.delete(_SYSTEM).where(_SYSTEM.c.trial_id == sa.bindparam("key_"), is_bound), keys)
        changed: dict[str, Any] = {"state": sa.bindparam("state_"), "datetime_complete": sa.bindparam("end_")}
        self._many(sa.update(_TRIALS).where(_TRIALS.c.trial_id == sa.bindparam("key_")).values(changed), states)
        self._many(self._put_value, values)
        self._many(self._put_attr, attrs)
        self._many(self._put_system, system)
        fields: dict[str, Any] = {name: sa.bindparam(f"{name}_") for name in ("state", "value", "epoch", "reason")}
        mine = sa.and_(TRIAL.c.study_id == self._study_id, TRIAL.c.number == sa.bindparam("number_"))
        self._many(sa.update(TRIAL).where(mine).values(**fields, time_s=sa.bindparam("time_")), own)

    def _optuna_values(self, result: TrialResult) -> Sequence[float]:
        """The values that Optuna shows: none for a failed trial, the last finite one for a pruned trial of one objective."""
        if result.state is TrialState.FINISHED:
            values = result.outcome.values if self._several else (result.value,)
            return [v for v in values if v is not None] if all(v is not None and v == v for v in values) else ()
        if result.state is not TrialState.STOPPED or self._several:
            return ()
        if result.value is not None and math.isfinite(result.value):
            return (result.value,)
        finite = sa.and_(EPOCH.c.value > -math.inf, EPOCH.c.value < math.inf)
        query = sa.select(EPOCH.c.value).where(
            EPOCH.c.study_id == self._study_id, EPOCH.c.trial == result.number, finite
        )
        last: float | None = self._connection.scalar(query.order_by(EPOCH.c.epoch.desc()).limit(1))
        return () if last is None else (last,)

    def _many(self, statement: Any, rows: Sequence[dict[str, Any]]) -> None:
        if rows:
            self._connection.execute(statement, rows)
