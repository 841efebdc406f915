"""What the trials of a pool hold, as tensors and plain facts, and a pool that goes on from them.

A recipe is not stored but replayed: ``define`` makes the model, the optimizer and the schedule again, and the schedule is stepped
as often as it was, with the losses it was shown. What training has changed (parameters, optimizer state, buffers) is copied in.
Order of samples and random keys follow from seed and epoch.

Names of tensors: ``N/flat`` and ``N/extra/NAME`` are the lane of trial ``N``; ``N/model/NAME``, ``N/loss/NAME`` and
``N/optimizer/K`` a trial that trains solo; ``N/best/NAME`` its weights when it was best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import StorageError
from shoal.lanes.compiled import Variant
from shoal.lanes.lane import LaneTrial
from shoal.lanes.paused import Paused
from shoal.lanes.plain import pack, unpack
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.solo import Solo
from shoal.lanes.state import LaneRow
from shoal.recipe import Recipe
from shoal.records import Event, Json, TrialSpec
from shoal.sealed_file import SealedFile

# More than anybody trains a trial for: a schedule is stepped as often as a file says.
_MOST_EPOCHS = 1_000_000

# -- out ------------------------------------------------------------------------------------------------------------------------


def freeze(pool: Pool) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """All that a pool needs to go on elsewhere, as it stands between two epochs: copies on the host, and facts."""
    tensors: dict[str, Tensor] = {}
    trials: dict[str, Json] = {}
    groups: list[Json] = []
    refused = dict(pool._refused)
    for key, g in pool._groups.items():
        if g.solo_reason:
            refused[key] = g.solo_reason
            continue
        lanes = [] if g.fleet is None else g.fleet.lanes
        if g.fleet is not None:
            for i, t in enumerate(lanes):
                if t is not None:
                    trials[str(t.spec.key)] = lane_out(pool, key, t, g.fleet.state.take(i).to_host(), tensors)
        # Also without a lane: its template is what the next trial of the signature is traced by, and it keeps what its trial began
        # with, whatever that trial trains with by now.
        numbers: list[Json] = [None if t is None else t.spec.key for t in lanes]
        entry: dict[str, Json] = {"signature": key, "template": g.spec.key, "lanes": numbers, "max_width": g.max_width}
        groups.append({**entry, "params": dict(g.spec.params), "origin": g.spec.origin})
    for number, solo in pool._solos.items():
        trials[str(number)] = solo_out(pool, solo, tensors)
    for held in pool._paused:
        number = held.spec.key
        if held.solo is not None:
            facts = solo_out(pool, held.solo, tensors)
        elif held.row is not None and held.trial is not None and held.signature not in refused:
            facts = lane_out(pool, held.signature, held.trial, held.row, tensors)
        else:
            facts = {"form": "bare"}
        trials[str(number)] = facts | {"paused": True}
    for number, state in pool._remembered.items():
        tensors |= {f"{number}/best/{name}": t for name, t in state.items()}
    return tensors, {
        "tier": pool.tier,
        "compiled": _variants_out(pool.compiled),
        "groups": groups,
        "refused": dict(refused),
        "trials": trials,
        "numbers": [[key, width, number] for (key, width), number in pool._numbers.items()],
        "measured": list[Json](sorted(pool._measured)),
        "broken": {str(number): message for number, message in pool._broken.items()},
        # A worker's are fetched with its next epoch.
        "events": [[e.kind, e.trial, e.fleet, e.lane, dict(e.data)] for e in pool._events],
    }


def _variants_out(variants: Mapping[str, Variant]) -> dict[str, Json]:
    return {
        key: {
            "uses": None if v.uses is None else list[Json](sorted(v.uses)),
            "tail": v.tail,
            "moves": list[Json](sorted(v.moves)),
        }
        for key, v in variants.items()
    }


def _variants_in(facts: Mapping[str, Any]) -> dict[str, Variant]:
    return {
        key: Variant(
            None if v["uses"] is None else frozenset(map(str, v["uses"])),
            int(v["tail"]),
            frozenset(map(str, v.get("moves", ()))),
        )
        for key, v in facts.items()
    }


def lane_out(pool: Pool, signature: str, t: LaneTrial, row: LaneRow, tensors: dict[str, Tensor]) -> dict[str, Json]:
    """What a trial in a lane holds; its tensors are added to ``tensors``."""
    number = t.spec.key
    tensors[f"{number}/flat"] = row.flat
    tensors |= {f"{number}/extra/{name}": value for name, value in row.extra.items()}
    carried: list[Json] = [dict(c) for c in t.carried]
    return {
        "form": "lane",
        "signature": signature,
        "epoch": t.epoch,
        "updates": t.updates,
        "carried": carried,
        "shown": _shown_out(pool, number),
    }


def solo_out(pool: Pool, solo: Solo, tensors: dict[str, Tensor], *, whole: bool = False) -> dict[str, Json]:
    """What a solo trial holds; ``whole`` takes its state also where training again would be surer.

    Raises:
        TypeError: With ``whole``, of an optimizer that keeps what is no plain data.
    """
    number, recipe = solo.spec.key, solo.recipe
    facts: dict[str, Json] = {"form": "solo", "epoch": solo.epoch, "shown": _shown_out(pool, number), "optimizer": None}
    whole = whole or solo.spec.origin is not None  # it went on from another trial, and cannot train up to here again
    if whole or (solo.epoch and _repeats(recipe)):
        try:
            facts["optimizer"] = pack(recipe.optimizer.state_dict(), f"{number}/optimizer", tensors)
        except TypeError:  # state that is no plain data: the trial trains again up to where it was
            if whole:
                raise
            return facts
        for name, t in learnt_by(recipe).items():
            tensors[f"{number}/{name}"] = t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return facts


def _shown_out(pool: Pool, number: int) -> list[Json]:
    return [[loss, value] for loss, value in pool._shown.get(number, ())]


def learnt_by(recipe: Recipe) -> dict[str, Tensor]:
    """What training changes, by the name that it is stored under."""
    parts = {"model": recipe.model, "loss": recipe.loss}
    return {
        f"{part}/{name}": t
        for part, module in parts.items()
        if isinstance(module, nn.Module)
        for name, t in (*module.named_parameters(), *module.named_buffers())
    }


def _repeats(recipe: Recipe) -> bool:
    """Whether all that a solo trial's future depends on is in torch's own state: not so of a schedule or an optimizer of the
    user's, which may keep anything anywhere."""
    known = "torch.optim"
    schedule = recipe.schedule
    if recipe.extensions:
        return False
    if schedule is not None:
        inner = getattr(schedule, "_schedulers", ())
        if any(not type(s).__module__.startswith(known) or hasattr(s, "lr_lambdas") for s in (schedule, *inner)):
            return False
    return type(recipe.optimizer).__module__.startswith(known)


# -- in -------------------------------------------------------------------------------------------------------------------------


def thaw(
    pool: Pool, file: SealedFile, specs: Mapping[int, TrialSpec], admission: Callable[[TrialSpec], Candidate]
) -> None:
    """Let a pool that is still empty go on from what ``freeze`` gave.

    Args:
        pool: An empty pool.
        file: Tensors and facts.
        specs: Of every trial that the facts name.
        admission: Replays and signs a trial.

    Raises:
        StorageError: ``define`` makes other models than it did, or the file is not what ``freeze`` gave.
    """
    facts = file.facts
    try:
        if facts["tier"] == "native":
            pool.upgrade()
        pool.compiled_before = _variants_in(facts["compiled"])
        pool._refused = dict(facts["refused"])
        pool._numbers = {(key, width): number for key, width, number in facts["numbers"]}
        pool._measured = set(facts["measured"])
        pool._broken = {int(number): message for number, message in facts["broken"].items()}
        events = [Event(0, kind, trial, fleet, lane, data) for kind, trial, fleet, lane, data in facts["events"]]
        trials = {int(number): trial for number, trial in facts["trials"].items()}
        pool._shown = {
            number: [(float(loss), float(value)) for loss, value in trial["shown"]]
            for number, trial in trials.items()
            if trial.get("shown")
        }
        for entry in facts["groups"]:
            _group_in(pool, file, entry, trials, specs, admission)
        for number, trial in trials.items():
            if trial.get("paused"):
                pool._paused.keep(_paused_in(pool, file, specs[number], trial, admission))
            elif trial["form"] == "solo":
                pool._solos[number] = _solo_in(pool, file, specs[number], trial)
            if names := file.names(f"{number}/best/"):
                pool._remembered[number] = {name: file.take(f"{number}/best/{name}") for name in names}
        pool._events = events
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"the facts in a snapshot are not what they should be ({error!r}): it is damaged."
        ) from error


def _group_in(
    pool: Pool,
    file: SealedFile,
    entry: Mapping[str, Any],
    trials: Mapping[int, Any],
    specs: Mapping[int, TrialSpec],
    admission: Callable[[TrialSpec], Candidate],
) -> None:
    key = entry["signature"]
    began = replace(specs[entry["template"]], params=entry["params"], origin=entry["origin"])
    group = pool._open_group(_signed(began, key, admission))
    group.max_width = int(entry["max_width"])
    pool._groups[key] = group
    if not entry["lanes"]:
        return
    fleet = group.fleet = pool._fleet(group, len(entry["lanes"]))
    for i, number in enumerate(entry["lanes"]):
        if number is not None:
            row, lane = _lane_in(pool, file, key, specs[number], trials[number], admission)
            fleet.state.restore(i, row)
            fleet.lanes[i] = lane
    fleet.settle()


def _signed(spec: TrialSpec, signature: str, admission: Callable[[TrialSpec], Candidate]) -> Candidate:
    found = admission(spec)
    if found.lane is None or found.signature != signature:
        raise StorageError(
            f"trial {spec.number} has another model, loss or optimizer than when the study was interrupted"
            f"{f' ({found.reason})' if found.reason else ''}. Use the code that made the study."
        )
    return found


def _lane_in(
    pool: Pool,
    file: SealedFile,
    signature: str,
    spec: TrialSpec,
    facts: Mapping[str, Any],
    admission: Callable[[TrialSpec], Candidate],
) -> tuple[LaneRow, LaneTrial]:
    found = _signed(spec, signature, admission)
    t, group = found.lane, pool._groups[signature]
    assert t is not None
    t.epoch, t.updates = _epochs(facts), int(facts["updates"])
    t.carried = [{str(name): float(value) for name, value in c.items()} for c in facts["carried"]]
    n_updates = t.shape(pool.work.data.train.n, found.quantum).n_updates
    with t.looking_on():
        step_again(pool, t.recipe, spec.key, t.epoch, n_updates)
    layout = group.layout
    flat = file.take(f"{spec.key}/flat", torch.empty(4, layout.size, dtype=layout.dtype, device="meta"))
    known = (*layout.frozen, *layout.lifted, *layout.buffers, *layout.values)
    names = {
        *known,
        *file.names(f"{spec.key}/extra/"),
    }  # there may be more, which the lane has asked for while it trained
    like = {name: group.like[name] for name in known}
    return LaneRow(flat, {n: file.take(f"{spec.key}/extra/{n}", like.get(n)) for n in sorted(names)}), t


def _paused_in(
    pool: Pool,
    file: SealedFile,
    spec: TrialSpec,
    facts: Mapping[str, Any],
    admission: Callable[[TrialSpec], Candidate],
) -> Paused:
    if facts["form"] == "solo":
        return Paused(spec, solo=_solo_in(pool, file, spec, facts))
    if facts["form"] == "lane":
        row, t = _lane_in(pool, file, facts["signature"], spec, facts, admission)
        return Paused(spec, facts["signature"], t, row)
    return Paused(spec)


def _solo_in(pool: Pool, file: SealedFile, spec: TrialSpec, facts: Mapping[str, Any]) -> Solo:
    solo, number = Solo(spec, pool._rebuild(spec), pool.work), spec.key
    epochs, recipe = _epochs(facts), solo.recipe
    if facts["optimizer"] is None:
        for epoch in range(epochs):  # alone, a trial that trains again gives what it gave
            solo.train_epoch()
            _step_again_after(pool, recipe, number, epoch)
        return solo
    rows, _ = pool.work.rows(spec.part)
    n_updates = -(-(pool.work.data.train.n if rows is None else len(rows)) // recipe.batch_size)
    step_again(pool, recipe, number, epochs, n_updates)
    with torch.no_grad():
        for name, t in learnt_by(recipe).items():
            t.copy_(file.take(f"{number}/{name}", t))
    recipe.optimizer.load_state_dict(unpack(facts["optimizer"], file.take))
    solo.epoch = epochs
    return solo


def _epochs(facts: Mapping[str, Any]) -> int:
    epochs = int(facts["epoch"])
    if not 0 <= epochs <= _MOST_EPOCHS:
        raise StorageError(f"a snapshot says that a trial has trained {epochs:.3g} epochs: it is damaged.")
    return epochs


def step_again(pool: Pool, recipe: Recipe, number: int, epochs: int, n_updates: int) -> None:
    """Bring a schedule to where it was."""
    if recipe.schedule is None:
        return
    for epoch in range(epochs):
        if recipe.schedule_every == "epoch":
            _step_again_after(pool, recipe, number, epoch)
        else:
            for i in range(n_updates):
                recipe.step_schedule(progress=epoch + i / n_updates)


def _step_again_after(pool: Pool, recipe: Recipe, number: int, epoch: int) -> None:
    shown = pool._shown.get(number, [])
    if (
        recipe.schedule is not None
        and recipe.schedule_every == "epoch"
        and epoch < len(shown)
        and number not in pool._broken
    ):
        loss, value = shown[epoch]
        recipe.step_schedule(loss=loss, value=value)
