"""A trial that goes on from what another one has learnt, with a recipe of its own: taken out of one lane, put into another.

What is learnt are parameters, optimizer state, buffers, and where a schedule and an optimizer's counters stand. What the recipe
says (learning rates and what a schedule makes of them, dropout rates, class weights, numbers of its modules) comes from the recipe,
which ``define`` has made anew. Order of samples and random keys follow from the trial's own seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.errors import FuseError, StorageError, blame
from shoal.keys import digest
from shoal.lanes import fleet
from shoal.lanes.paused import Paused
from shoal.lanes.plain import unpack
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.snapshot import lane_out, learnt_by, solo_out, step_again
from shoal.lanes.solo import Solo
from shoal.lanes.state import OWN, LaneRow
from shoal.lanes.step import Layout
from shoal.recipe import Recipe

# Bytes, since NumPy has no bfloat16.
Portable = tuple[NDArray[np.uint8], torch.dtype, torch.Size]


@dataclass(frozen=True, slots=True)
class Held:
    """All that a trial has learnt, as data that can go to another process."""

    number: int
    facts: Mapping[str, Any]
    tensors: Mapping[str, Portable]

    def take(self, name: str, like: Tensor | None = None) -> Tensor:
        """A tensor, on the CPU.

        Raises:
            StorageError: There is none, or its shape or type is not that of ``like``.
        """
        full = f"{self.number}/{name}"
        if full not in self.tensors:
            raise StorageError(f"there is no {name!r}")
        _, dtype, shape = self.tensors[full]
        if like is not None and (shape, dtype) != (like.shape, like.dtype):
            raise StorageError(f"{name!r} is {tuple(shape)}, and {tuple(like.shape)} is needed")
        return tensors_of({name: self.tensors[full]})[name].clone()  # several trials may take it

    def names(self, prefix: str) -> list[str]:
        """The tensors whose names begin so, without the beginning."""
        full = f"{self.number}/{prefix}"
        return sorted(name.removeprefix(full) for name in self.tensors if name.startswith(full))


def portable(tensors: Mapping[str, Tensor]) -> dict[str, Portable]:
    """Tensors as what can be sent through a pipe."""
    return {n: (t.contiguous().flatten().view(torch.uint8).numpy(), t.dtype, t.shape) for n, t in tensors.items()}


def tensors_of(arrays: Mapping[str, Portable]) -> dict[str, Tensor]:
    """What ``portable`` was given, on the CPU."""
    return {name: torch.from_numpy(raw).view(dtype).view(shape) for name, (raw, dtype, shape) in arrays.items()}


def form_of(recipe: Recipe) -> str:
    """What must be equal for what one recipe has learnt to be of use to another, in a lane."""
    layout, optimizer = Layout.of(recipe), recipe.optimizer
    groups = tuple(len(g["params"]) for g in optimizer.param_groups)
    names = (layout.names, layout.shapes, layout.dtype, layout.frozen, layout.buffers)
    return digest((names, type(optimizer).__qualname__, groups))


def take(pool: Pool, key: int) -> Held | None:
    """What a trial of the pool has learnt; None if it cannot be had."""
    tensors: dict[str, Tensor] = {}
    try:
        if key in pool._solos:
            solo = pool._solos[key]
            facts: dict[str, Any] = solo_out(pool, solo, tensors, whole=True)
            for name in solo.configured():
                tensors.pop(f"{key}/{name}", None)
        else:
            signature, where, t = pool._lane(key)
            facts = lane_out(pool, signature, t, where.state.take(where.lane_of(key)).to_host(), tensors)
            facts |= {"state": form_of(t.recipe), "family": int(t.family)}
    except (KeyError, TypeError):  # it has just failed, or its optimizer keeps what is no data
        return None
    return Held(key, facts, portable(tensors))


def go_on(pool: Pool, moves: Sequence[tuple[Candidate, Held]]) -> list[str]:
    """Let trials go on from what others have learnt.

    Args:
        pool: Where they will train; they may train in it now.
        moves: Each trial's new self, and what it goes on from.

    Returns:
        For each, why it cannot; or "", and then nothing is left of what it was.
    """
    said, arriving = [], []
    for c, held in moves:
        try:
            arriving.append(_alone(pool, c, held) if held.facts["form"] == "solo" else _in_lane(pool, c, held))
            said.append("")
        except (FuseError, StorageError) as error:
            said.append(str(error))
        except Exception as error:
            said.append(f"its recipe raised {blame(error)}")
    pool.replace(arriving)
    return said


def _in_lane(pool: Pool, c: Candidate, held: Held) -> Paused:
    t = c.lane
    if t is None:
        raise FuseError(f"with these hyperparameters it has no lane form: {c.reason}")
    if reason := pool.settle(c.signature, [c]):
        raise FuseError(reason)
    facts, recipe, key = held.facts, t.recipe, c.spec.key
    if (form_of(recipe), int(t.family)) != (facts["state"], facts["family"]):
        raise StorageError("with these hyperparameters its weights or its optimizer's state have another form")
    t.epoch, t.updates = int(facts["epoch"]), int(facts["updates"])
    t.carried = [{str(name): float(value) for name, value in carried.items()} for carried in facts["carried"]]
    pool._shown[key] = [(float(loss), float(value)) for loss, value in facts["shown"]]
    with t.looking_on():
        step_again(pool, recipe, key, t.epoch, t.shape(pool.work.data.train.n, c.quantum).n_updates)
    if t.looks:
        raise FuseError(t.looks)
    return Paused(c.spec, c.signature, t, _row(recipe, held))


def _row(recipe: Recipe, held: Held) -> LaneRow:
    """What was learnt, and the numbers of the recipe."""
    layout, mine = Layout.of(recipe), fleet.tensors_of(recipe)
    extra = {name: held.take(f"extra/{name}", mine[name]) for name in (*layout.frozen, *layout.buffers)}
    extra |= {name: held.take(f"extra/{name}") for name in held.names("extra/") if name.startswith(OWN)}
    extra |= {name: mine[name].detach().cpu().clone() for name in (*layout.lifted, *layout.values)}
    return LaneRow(held.take("flat"), extra)


def _alone(pool: Pool, c: Candidate, held: Held) -> Paused:
    # What was found out about the candidate's recipe may have left traces in it.
    solo, facts, key = Solo(c.spec, pool._rebuild(c.spec), pool.work), held.facts, c.spec.key
    hand_over(solo.recipe, facts["optimizer"], held)
    rows, _ = pool.work.rows(c.spec.part)
    n = pool.work.data.train.n if rows is None else len(rows)
    pool._shown[key] = [(float(loss), float(value)) for loss, value in facts["shown"]]
    step_again(pool, solo.recipe, key, int(facts["epoch"]), -(-n // solo.recipe.batch_size))
    solo.epoch = int(facts["epoch"])
    return Paused(c.spec, solo=solo)


def hand_over(recipe: Recipe, packed: Any, held: Held) -> None:
    """Give a plain recipe what another one's model and optimizer have learnt.

    Raises:
        StorageError: Its tensors have other names, shapes or types.
    """
    mine, learnt = learnt_by(recipe), {name for name in held.names("") if not name.startswith("optimizer/")}
    # Of a loss, what training has not changed is the recipe's: class weights, say.
    if not learnt <= set(mine) or not {name for name in mine if not name.startswith("loss/")} <= learnt:
        raise StorageError("with these hyperparameters its model has other tensors")
    found = {name: held.take(name, mine[name]) for name in learnt}
    with torch.no_grad():
        for name, t in found.items():
            mine[name].copy_(t)
    take_state(recipe, unpack(packed, lambda name: held.take(name.removeprefix(f"{held.number}/"))))


def take_state(recipe: Recipe, learnt: Mapping[str, Any]) -> None:
    """Load what another optimizer of the class has learnt: its state, and what groups hold that is no hyperparameter.

    Args:
        recipe: Its optimizer keeps its own learning rates and the like, and what its schedule keeps in the groups.
        learnt: The other's ``state_dict()``.
    """
    own = recipe.optimizer.state_dict()
    kept = {*inspect.signature(type(recipe.optimizer).__init__).parameters, "params", *_of_schedule(recipe.schedule)}
    groups = [
        {**mine, **{name: value for name, value in theirs.items() if name not in kept}}
        for mine, theirs in zip(own["param_groups"], learnt["param_groups"], strict=True)
    ]
    recipe.optimizer.load_state_dict({**own, "state": learnt["state"], "param_groups": groups})


def _of_schedule(schedule: object) -> set[str]:
    """What a schedule keeps in parameter groups, for itself: OneCycleLR its ``max_lr``, say, which it is given."""
    names = {"initial_lr", "min_lr"}
    for cls in type(schedule).__mro__ if schedule is not None else ():
        names |= set(inspect.signature(cls).parameters)
    return names.union(*(_of_schedule(inner) for inner in getattr(schedule, "_schedulers", ())))
