"""Everything that trains on one device: fleets by signature, solo trials, and which of the two a signature gets.

The engine speaks to this class only: admit, run an epoch, apply decisions. What happened to lanes comes back as events.

A pool knows parts of trials, by `TrialSpec.key`; a trial without folds and seeds has one part, whose key is its number.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoal import planner
from shoal.errors import FuseError, blame
from shoal.lanes import native
from shoal.lanes.compiled import Compilation, Unsupported, Variant
from shoal.lanes.compiled._runner import agrees, obstacle
from shoal.lanes.fleet import Fleet, Work, example_of
from shoal.lanes.graph import Blueprint
from shoal.lanes.kernels import Kernels, TorchKernels
from shoal.lanes.lane import LaneTrial, Measured
from shoal.lanes.limits import SETUP_S, OutOfTime, at_most, for_want_of_memory
from shoal.lanes.paused import Paused, PausedTrials
from shoal.lanes.solo import Solo
from shoal.lanes.step import Layout, Program
from shoal.lanes.tryout import confirmed, expected_loss, pays, time_compiled, time_solo, time_tick
from shoal.recipe import Recipe
from shoal.records import Event, Json, TrialSpec, part_of

# State, gradients and temporaries of a lane, in multiples of its parameters; a fleet may take so much memory, and half of a GPU's.
_STATE_COPIES = 10
_MEMORY_BYTES = 2 * 2**30
# A fleet of an earlier width is kept, for the width may come back; one whose lanes take more than this is not.
_KEPT_BYTES = 32 * 2**20
# A signature that has trained this long is compiled: what that takes is then at most doubled by a search that ends right after.
_COMPILE_AFTER_S = 1.0
# One that may train this long yet is compiled at once.
_COMPILE_AHEAD_S = 10.0
# A library that was timed and found slower is timed again after this many times as much training.
_AGAIN = 4.0
# Where plain steps are faster than a fleet's as it is, so long is waited for a compiled epoch, which may be faster than both.
_COMPILE_WAIT_S = 10.0


def _memory_bytes(device: torch.device) -> int:
    """What a fleet may take."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _MEMORY_BYTES


@dataclass(slots=True)
class Candidate:
    """A trial that is ready to start: signed for a fleet, or solo with the reason why."""

    spec: TrialSpec
    recipe: Recipe
    lane: LaneTrial | None
    signature: str = ""
    quantum: int = 0
    exact: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was once chosen for a signature: why it trains solo, or "" for fused; and what was measured."""

    solo: str
    timed: Mapping[str, Json]


@dataclass(slots=True)
class _Group:
    """One signature: its template, its fleet, and what is known of it."""

    signature: str
    spec: TrialSpec  # whose recipe the template is
    template: Recipe
    layout: Layout
    like: Mapping[str, Tensor]
    quantum: int
    exact: bool
    max_width: int
    fleet: Fleet | None = None
    solo_reason: str = ""
    blueprints: dict[tuple[str, int], Blueprint | None] = field(default_factory=dict)
    trained_s: float = 0.0
    ahead_s: float = 0.0  # how long its trials may train yet, by the time of its first ticks
    compilation: Compilation | None = None  # on its way, or at work
    compiles: bool = True  # False once it is known that it has no compiled form
    try_at_s: float = 0.0  # a compiled tick that took longer is timed again once the signature has trained for so long
    by_width: dict[int, Fleet] = field(default_factory=dict)  # fleets that were open once
    compiled: bool = False  # whether its fleets run on the compilation
    agreed: bool = False  # whether the compilation has been compared with a fleet's own tick


class Pool:
    """Fleets and solo trials of one study on one device.

    Args:
        work: Data and metrics.
        rebuild: Replays a trial's recipe (for templates, and for trials that fall back to solo).
        measure: Whether to time fused against solo steps and choose; False always fuses what can be fused.
        native: Whether native kernels may be changed over to (``shoal.lanes.native``).
        by_clock: Whether a signature is compiled once it has trained for long, or will; else only ``compile_now`` does so.
        lane_epochs: Epochs that the pool's trials may train in all.
        limit_s: How long an epoch of a trial may take.
    """

    def __init__(
        self,
        work: Work,
        rebuild: Callable[[TrialSpec], Recipe],
        *,
        measure: bool,
        native: bool = False,
        by_clock: bool = True,
        lane_epochs: float = 0.0,
        limit_s: float | None = None,
    ) -> None:
        self.work, self._rebuild, self._measure, self._limit_s = work, rebuild, measure, limit_s
        self._compile_after_s = _COMPILE_AFTER_S if by_clock else math.inf
        self._lane_epochs = lane_epochs
        self.may_upgrade = native and work.device.type == "cpu"
        self._kernels: Kernels = TorchKernels()
        self._groups: dict[str, _Group] = {}
        self._solos: dict[int, Solo] = {}
        self._numbers: dict[tuple[str, int], int] = {}  # signature and width -> number of the fleet in the journal
        self._shown: dict[int, list[tuple[float, float]]] = {}  # trial -> (loss, value) that its schedule was shown
        self._choices: dict[str, list[Choice]] = {}
        self._compiled_at: dict[str, int] = {}  # signature -> the round from which on it ran compiled, before
        self.compiled_before: dict[str, Variant] = {}  # signatures that ran compiled when a snapshot was taken
        self._until = self._rounds = 0  # rounds that were run before; rounds that have been run
        self._remembered: dict[int, dict[str, Tensor]] = {}
        self._refused: dict[str, str] = {}  # signature -> why no fleet of it could be made
        self._measured: set[int] = set()  # running trials with an epoch behind them
        self._paused = PausedTrials()
        self._broken: dict[int, str] = {}  # trials whose own code raised -> message; they end with the next epoch
        self._events: list[Event] = []

    # -- what is going on -------------------------------------------------------------------------------------------------

    @property
    def n_running(self) -> int:
        inside = set(self._solos) | {t.spec.key for f in self._open() for t in f.lanes if t is not None}
        return len(inside | set(self._broken))

    @property
    def n_lanes(self) -> int:
        return len(self._solos) + sum(f.width for f in self._open())

    @property
    def n_fleets(self) -> int:
        return sum(1 for _ in self._open())

    def _open(self) -> Iterator[Fleet]:
        return (g.fleet for g in self._groups.values() if g.fleet is not None)

    @property
    def signatures(self) -> frozenset[str]:
        """Those that it has a fleet for, or had."""
        return frozenset(key for key, g in self._groups.items() if not g.solo_reason)

    @property
    def tier(self) -> str:
        """What its fleets run on."""
        return self._kernels.tier

    def drain_events(self) -> list[Event]:
        """What happened since the last call (ticks and times are filled in by the engine)."""
        out, self._events = self._events, []
        return out

    # -- admission --------------------------------------------------------------------------------------------------------

    def admit(self, candidates: Sequence[Candidate], promoted: Sequence[int] = ()) -> None:
        """Start trials and let paused ones go on: fleets are opened, widened or narrowed as the planner says, then lanes
        are filled, those of promoted trials first."""
        waiting = self._sorted_out(candidates)
        returning: dict[str, list[Paused]] = {}
        for held_key in promoted:
            held = self._paused.take(held_key)
            if held.row is not None and not self._groups[held.signature].solo_reason:
                returning.setdefault(held.signature, []).append(held)
            else:
                self._go_on_solo(held)
        demands = {}
        for key, g in self._groups.items():
            if g.solo_reason:
                continue
            fleet, n_new = g.fleet, len(waiting.get(key, [])) + len(returning.get(key, []))
            demands[key] = planner.Demand(
                fleet.width if fleet else 0, fleet.n_active if fleet else 0, n_new, g.max_width
            )
        for key, width in planner.widths(demands).items():
            self._resize(key, self._groups[key], width)
        for key in {**waiting, **returning}:
            fleet = self._groups[key].fleet
            assert fleet is not None
            self._fill(fleet, waiting.get(key, []), returning.get(key, []))

    def _sorted_out(self, candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
        """By signature, those that go into lanes; the others have started solo."""
        waiting: dict[str, list[Candidate]] = {}
        for c in candidates:
            if c.lane is None:  # what was found out about its recipe may have left traces in it
                self._restart_solo(c.spec, c.reason)
            else:
                waiting.setdefault(c.signature, []).append(c)
        for key, group in list(waiting.items()):
            if reason := self.settle(key, group):
                for c in waiting.pop(key):
                    self._start_solo(c.spec, c.recipe, reason)
        return waiting

    def settle(self, key: str, group: Sequence[Candidate]) -> str:
        """Find out how trials of a signature train: "" in lanes, or the reason why one by one."""
        if key not in self._groups and key not in self._refused:
            try:
                with at_most(self._limit_s and self._limit_s + SETUP_S):
                    self._groups[key] = self._open_group(group[0])
            except Exception as error:  # alone, the trial either trains or fails with the user's own error
                self._refused[key] = f"it cannot run over lanes ({blame(error)})"
        if key not in self._refused:
            self._choose(self._groups[key], group)
        return self._refused.get(key) or self._groups[key].solo_reason

    def _fill(self, fleet: Fleet, waiting: Sequence[Candidate], returning: Sequence[Paused]) -> None:
        """Let trials into the free lanes of a fleet."""
        room = fleet.width - fleet.n_active
        admitted: list[TrialSpec] = []
        for held in returning[:room]:
            assert held.trial is not None and held.row is not None
            fleet.readmit(held.trial, held.row)
            admitted.append(held.spec)
        for held in returning[room:]:
            self._go_on_solo(held)
        room -= len(admitted)
        for c in waiting[room:]:  # memory allows no wider fleet
            self._start_solo(c.spec, c.recipe, "its fleet is as wide as memory allows")
        for c in waiting[:room]:
            assert c.lane is not None
            try:
                with at_most(self._limit_s):
                    c.lane.expected = expected_loss(c.lane, self.work, fleet.quantum)
            except Exception as error:
                self._restart_solo(c.spec, f"its own forward pass raised {blame(error)}")
                continue
            fleet.admit(c.lane)
            admitted.append(c.spec)
        fleet.arrange()
        for spec in admitted:
            self._events.append(Event(0, "admitted", spec.key, fleet.number, fleet.lane_of(spec.key)))

    # -- pausing ----------------------------------------------------------------------------------------------------------

    def pause(self, trial: int) -> None:
        """Copy a trial out of its lane, which is free for another; ``admit`` lets it go on where it was."""
        if trial in self._solos:
            solo = self._solos.pop(trial)
            self._paused.keep(Paused(solo.spec, solo=solo))
            self._events.append(Event(0, "left", trial, None, None, {"reason": "paused"}))
            return
        key, fleet, t = self._lane(trial)
        lane = fleet.lane_of(trial)
        self._paused.keep(Paused(t.spec, key, t, fleet.state.take(lane).to_host()))
        fleet.leave(lane)
        self._events.append(Event(0, "left", trial, fleet.number, lane, {"reason": "paused"}))

    def replace(self, arriving: Sequence[Paused]) -> None:
        """Let trials go on with what they now hold; whatever they were before is gone."""
        for held in arriving:
            key = held.spec.key
            if key in self._solos:
                del self._solos[key]
                self._events.append(Event(0, "left", key, None, None, {"reason": "copied over"}))
            elif any(t.spec.key == key for f in self._open() for _, t in f.active):
                _, fleet, _ = self._lane(key)
                lane = fleet.lane_of(key)
                fleet.leave(lane)
                self._events.append(Event(0, "left", key, fleet.number, lane, {"reason": "copied over"}))
            self._measured.add(key)
            self._paused.keep(held, briefly=True)
        if arriving:
            self.admit([], [held.spec.key for held in arriving])

    def _go_on_solo(self, held: Paused) -> None:
        """A promoted trial that no fleet can take: its solo self goes on, or it starts again from its first epoch."""
        if held.solo is not None:
            self._solos[held.spec.key] = held.solo
            self._events.append(Event(0, "solo", held.spec.key, None, None, {"reason": ""}))
        else:
            self._restart_solo(held.spec, "its paused state could not be kept, or its fleet has no lane for it")

    def _open_group(self, c: Candidate) -> _Group:
        template = self._rebuild(c.spec)
        object.__setattr__(template, "lifts", c.recipe.lifts)  # rebuilt, not signed again
        template.model.to(self.work.device)
        layout = Layout.of(template)
        like = example_of(template, lambda: self._rebuild(c.spec), self.work)
        per_lane = layout.size * torch.empty((), dtype=layout.dtype).element_size() * _STATE_COPIES
        per_lane += c.quantum * sum(t[0].numel() * t.element_size() for t in self.work.data.train.tensors) * 4
        most = min(planner.widest(self.work.device.type), max(1, _memory_bytes(self.work.device) // max(1, per_lane)))
        limit = max(w for w in planner.WIDTHS if w <= most)
        return _Group(c.signature, c.spec, Program.prepare(template), layout, like, c.quantum, c.exact, limit)

    def _fleet(self, g: _Group, width: int) -> Fleet:
        if width not in g.by_width:
            number = self._numbers.setdefault((g.signature, width), len(self._numbers))
            g.by_width[width] = Fleet(
                number, g.template, g.layout, width, g.quantum, g.exact, self.work, g.like, g.blueprints
            )
            g.by_width[width].kernels = self._kernels
            if g.signature in self.compiled_before and g.compiles and not g.compiled:
                self._compile_again(g, g.by_width[width])
            if g.compiled:
                g.by_width[width].compiled = g.compilation
        return g.by_width[width]

    def upgrade(self) -> None:
        """Change over to native kernels, which must be there: it rounds differently from here on."""
        found = native.kernels()
        if found is None or not self.may_upgrade:
            return
        self.may_upgrade, self._kernels = False, found
        for g in self._groups.values():
            for fleet in g.by_width.values():
                fleet.kernels = found

    def recall(
        self, choices: Mapping[str, Sequence[Choice]], compiled: Mapping[str, int], until: int, done: int
    ) -> None:
        """Choose as was chosen before: between fused and solo by signature, in turn, then by measurement again; and from which
        round on a signature runs compiled, in rounds up to ``until``, of which ``done`` are behind."""
        self._choices = {key: list(made) for key, made in choices.items()}
        self._compiled_at, self._until, self._rounds = dict(compiled), until, done

    @property
    def compiled(self) -> dict[str, Variant]:
        """Signatures that run compiled, or will when a trial of theirs comes, and for which lanes."""
        now = {k: g.compilation.variant for k, g in self._groups.items() if g.compiled and g.compilation is not None}
        return {**self.compiled_before, **now}

    def compile_now(self, signatures: Iterable[str]) -> None:
        """Run the fleets of these signatures compiled from their next epoch on, once all libraries are built side by side."""
        if self.tier != "native":
            return
        groups = [g for key in signatures if (g := self._groups.get(key)) is not None]
        wanted = [(g, g.fleet) for g in groups if g.fleet is not None and g.compiles and not g.compiled]
        for wait in (False, True):
            for g, fleet in wanted:
                if g.compiles and not g.compiled:
                    self.compile(g, fleet, wait=wait)

    def _see_to_compiling(self, g: _Group) -> None:
        """Start to build a signature's compiled epoch when that pays, and take it up once it is there."""
        if g.agreed or not g.compiles or g.fleet is None or g.fleet.n_active == 0 or self.tier != "native":
            return
        if g.compiled:  # from before; it is only looked at once more
            self.compile(g, g.fleet, wait=True)
            return
        again = self._rounds <= self._until  # the round was run before: then or never
        if again and self._compiled_at.get(g.signature) != self._rounds:
            return
        due = not math.isinf(self._compile_after_s) and (
            g.trained_s > max(self._compile_after_s, g.try_at_s) or (g.ahead_s > _COMPILE_AHEAD_S and not g.try_at_s)
        )
        if (again or due) and self.compile(g, g.fleet, wait=again, measure=not again):
            data: dict[str, Json] = {"tier": g.fleet.tier, "signature": g.signature}
            self._events.append(Event(0, "tier", None, g.fleet.number, None, data))

    def compile(self, g: _Group, fleet: Fleet, *, wait: bool, measure: bool = False) -> bool:
        """Run a signature's fleets compiled, if its library is there, agrees with what the lanes of ``fleet`` give, and is, where
        that is to be measured, no slower.

        It rounds differently from here on. Whatever is wrong with it, the fleets train on without it, after one warning.
        """
        try:
            if g.compilation is None:
                g.compilation = self._compilation(g, fleet, Variant.of(fleet))
            g.compilation.start()
            if (g.compilation.wait() if wait else g.compilation.ready()) is None or obstacle(g.compilation, fleet):
                return False
            if not agrees(g.compilation, fleet):
                raise RuntimeError("its library does not give what its lanes give")
            g.agreed = True
            if measure and not pays(g.compilation, fleet):  # on a busy machine, or in few lanes: perhaps later
                g.agreed, g.try_at_s = False, _AGAIN * max(g.trained_s, self._compile_after_s)
                return False
        except Unsupported:
            g.compiles = False
        except Exception as error:
            self._not_compiled(g, error)
        g.compiled = g.compiles
        for each in g.by_width.values():
            each.compiled = g.compilation if g.compiled else None
        return g.compiled

    def _compile_again(self, g: _Group, fleet: Fleet) -> None:
        """Run a signature compiled from its first epoch on, as before the snapshot, whoever comes into its lanes."""
        try:
            variant = self.compiled_before[g.signature]
            if not 1 <= variant.tail <= g.quantum:
                raise ValueError(f"a snapshot says that its last batches have {variant.tail} of {g.quantum} samples")
            g.compilation = self._compilation(g, fleet, variant)
            g.compiled = g.compilation.wait() is not None
        except Exception as error:
            self._not_compiled(g, error)

    def _compilation(self, g: _Group, fleet: Fleet, variant: Variant) -> Compilation:
        return Compilation(fleet.program, self.work.data, g.quantum, variant)

    @staticmethod
    def _not_compiled(g: _Group, error: Exception) -> None:
        g.compiles = False
        why = f"a signature is not compiled, training is slower: {blame(error)}"
        warnings.warn(why, RuntimeWarning, stacklevel=3)

    def _resize(self, key: str, g: _Group, width: int) -> None:
        old = g.fleet
        if width == (old.width if old else 0):
            return
        if width == 0:
            g.fleet = None
            self._let_go(g, old)
            return
        fleet = self._fleet(g, width)
        if old is not None:
            old.move_to(fleet)
            for i, t in enumerate(fleet.lanes):
                if t is not None:
                    self._events.append(Event(0, "left", t.spec.key, old.number, None, {"to": fleet.number}))
                    self._events.append(Event(0, "admitted", t.spec.key, fleet.number, i))
            self._let_go(g, old)
        self._take_up(g, fleet, key)

    @staticmethod
    def _let_go(g: _Group, fleet: Fleet | None) -> None:
        """A fleet that nobody trains in is kept for when its width comes back, unless it is large."""
        if fleet is not None and fleet.state.flat.nbytes > _KEPT_BYTES:
            del g.by_width[fleet.width]

    def _take_up(self, g: _Group, fleet: Fleet, signature: str, timed: Mapping[str, Json] | None = None) -> None:
        """Make a fleet the one that trains its group's lanes; ``timed`` is what was measured for it."""
        g.fleet = fleet
        data: dict[str, Json] = {
            "width": fleet.width,
            "signature": signature,
            "tier": fleet.tier,
            "quantum": g.quantum,
            **(timed or {}),
        }
        self._events.append(Event(0, "fleet", None, fleet.number, None, data))

    # -- fused or solo ----------------------------------------------------------------------------------------------------

    def _choose(self, g: _Group, group: Sequence[Candidate]) -> None:
        """Try a signature out before its first lane trains: does it trace, and is a tick cheaper than as many plain steps?"""
        if g.solo_reason or g.fleet is not None:
            return
        width = planner.snug(len(group), g.max_width)
        fleet = self._fleet(g, width)
        made = self._choices.get(g.signature)
        known = made.pop(0) if made else None
        timed: dict[str, Json] = {} if known is None else dict(known.timed)
        measure = self._measure and known is None
        try:
            if known is not None and known.solo:
                raise FuseError(known.solo)
            for c in group[:width]:
                assert c.lane is not None
                fleet.admit(c.lane)
            fleet.arrange()
            with at_most(self._limit_s and self._limit_s + SETUP_S):
                fused_s = time_tick(fleet, 4 if measure else 1)
                solo_s = 0.0
                if measure:
                    solo_s = time_solo(group[0].spec, self._rebuild(group[0].spec), self.work, group[0].quantum)
            if measure:
                busy = min(len(group), width)
                if solo_s * busy < 0.9 * fused_s and (compiled_s := self._compiled_tick(g, fleet)) < fused_s:
                    fused_s = compiled_s
                    g.ahead_s = math.inf  # from the first epoch on
                # For the report: what the lanes gain, on this machine.
                timed = {"tick_s": fused_s, "tick_lanes": busy, "solo_step_s": solo_s}
                g.ahead_s = max(g.ahead_s, fused_s / busy * self.work.data.train.n / g.quantum * self._lane_epochs)
                if solo_s * busy < 0.9 * fused_s:
                    g.solo_reason = (
                        f"faster one by one on this device ({1e3 * solo_s:.1f} ms a step, against {1e3 * fused_s / busy:.1f} ms in "
                        f"{busy} lanes)"
                    )
        except FuseError as error:
            g.solo_reason = str(error)
        except (
            Exception
        ) as error:  # the plain loop will say so, with the user's own error, if it is not only a matter of lanes
            g.solo_reason = f"it cannot run over lanes ({blame(error)[:200]})"
        if g.solo_reason:
            g.by_width.clear()
            why: dict[str, Json] = {"signature": group[0].signature, "reason": g.solo_reason}
            self._events.append(Event(0, "signature solo", None, None, None, why))
            return
        # The trial run left its traces in program and state; the lanes are filled anew from the recipes.
        fleet.lanes = [None] * width
        self._take_up(g, fleet, group[0].signature, timed)

    def _compiled_tick(self, g: _Group, fleet: Fleet) -> float:
        """Seconds of a tick of a fleet on a library that is built for it now; infinite where none is there in time."""
        if self.tier != "native" or math.isinf(self._compile_after_s):
            return math.inf
        try:
            g.compilation = self._compilation(g, fleet, Variant.of(fleet))
        except Unsupported:
            g.compiles = False
            return math.inf
        g.compilation.start()
        until = time.perf_counter() + _COMPILE_WAIT_S
        while g.compilation.ready() is None:
            if g.compilation.failed or time.perf_counter() > until:
                return math.inf
            time.sleep(0.01)
        return math.inf if obstacle(g.compilation, fleet) else time_compiled(g.compilation, fleet, 4)

    def _start_solo(self, spec: TrialSpec, recipe: Recipe, reason: str) -> None:
        self._solos[spec.key] = Solo(spec, recipe, self.work)
        self._events.append(Event(0, "solo", spec.key, None, None, {"reason": reason}))

    def _restart_solo(self, spec: TrialSpec, reason: str) -> None:
        self._shown.pop(spec.key, None)
        self._measured.discard(spec.key)
        try:
            recipe = self._rebuild(spec)
        except Exception as error:
            self.fail(spec.key, f"trial {spec.number}: define raised {blame(error)}")
        else:
            self._start_solo(spec, recipe, reason)

    def fail(self, trial: int, message: str) -> None:
        """End a trial with the next epoch: its own code raised."""
        self._broken[trial] = message

    # -- training ---------------------------------------------------------------------------------------------------------

    def run_epoch(self) -> list[Measured]:
        """One epoch of every running trial, in the order of their numbers."""
        self._rounds += 1
        out: list[Measured] = []
        for g in self._groups.values():
            fleet = g.fleet
            if fleet is None:
                continue
            self._let_out(fleet)
            self._see_to_compiling(g)
            start = time.perf_counter()
            try:
                with at_most(self._limit_s and self._limit_s * fleet.n_active):
                    measured = fleet.run_epoch()
            except Exception as error:
                self._abandon(g, fleet, error)
                continue
            g.trained_s += time.perf_counter() - start
            for m in measured:
                trial = fleet.lanes[fleet.lane_of(m.trial)]
                assert trial is not None
                if m.error:
                    lane = fleet.lane_of(m.trial)
                    fleet.leave(lane)
                    self._events.append(Event(0, "left", m.trial, fleet.number, lane, {"reason": m.error}))
                    self.fail(m.trial, m.error)
                    continue
                if trial.expected is not None and not confirmed(trial.expected, m.first_loss, fleet.layout.dtype):
                    self._fall_back(fleet, m, trial.expected)
                    continue
                trial.expected = None
                self._measured.add(m.trial)
                out.append(m)
            self._let_out(fleet)
        for key, solo in list(self._solos.items()):
            try:
                with at_most(self._limit_s):
                    out.append(solo.run_epoch())
            except Exception as error:
                cut = isinstance(error, OutOfTime) or for_want_of_memory(error)
                if cut:
                    self._events.append(Event(0, "cut off", key, None, None, {"reason": blame(error)}))
                self.fail(key, f"trial {solo.spec.number}: training raised {blame(error)}")
        out = [m for m in out if m.trial not in self._broken]
        nan = float("nan")
        out += [Measured(key, 0, nan, nan, {}, nan, False, message) for key, message in self._broken.items()]
        return sorted(out, key=lambda m: m.trial)

    def _abandon(self, g: _Group, fleet: Fleet, error: Exception) -> None:
        """A fleet that raised: whose fault it is shows alone, so its lanes start over solo, or fail if they are past that.

        Those of a fleet that was cut off start over in any case: at most one of them can be to blame. One that found no memory
        gets narrower, and its lanes start over in what it is then.
        """
        if for_want_of_memory(error) and fleet.width > 1:
            self._narrow(g, fleet, error)
            return
        g.fleet, g.solo_reason = None, f"its fleet raised {blame(error)}"
        g.by_width.clear()
        again = for_want_of_memory(error) or isinstance(error, OutOfTime)
        if again:
            self._events.append(Event(0, "cut off", None, fleet.number, None, {"reason": g.solo_reason}))
        for trial in self._vacate(fleet, g.solo_reason):
            spec = trial.spec
            if spec.key in self._measured and not again:
                self.fail(spec.key, f"trial {spec.number}: training raised {blame(error)}")
            else:
                self._restart_solo(spec, g.solo_reason)

    def _vacate(self, fleet: Fleet, reason: str) -> list[LaneTrial]:
        """Free every lane of a fleet; the trials that were in them."""
        out = []
        for lane, trial in enumerate(list(fleet.lanes)):
            if trial is not None:
                out.append(fleet.leave(lane))
                data: dict[str, Json] = {"reason": reason}
                self._events.append(Event(0, "left", trial.spec.key, fleet.number, lane, data))
        return out

    def _narrow(self, g: _Group, fleet: Fleet, error: Exception) -> None:
        """Memory ran out in the middle of an epoch: half the width from now on, and everyone from the start.

        Who finds no lane trains solo.
        """
        g.fleet, g.max_width = None, planner.snug(fleet.width // 2, fleet.width // 2)
        reason = f"there was no memory for {fleet.width} lanes ({blame(error)}), now there are at most {g.max_width}"
        narrowed: dict[str, Json] = {"signature": g.signature, "width": g.max_width, "reason": reason}
        self._events.append(Event(0, "narrowed", None, fleet.number, None, narrowed))
        left = self._vacate(fleet, reason)
        g.by_width.clear()
        again: list[Candidate] = []
        for t in left:
            self._shown.pop(t.spec.key, None)
            self._measured.discard(t.spec.key)
            try:
                recipe = self._rebuild(t.spec)
            except Exception as e:
                self.fail(t.spec.key, f"trial {t.spec.number}: define raised {blame(e)}")
                continue
            object.__setattr__(recipe, "lifts", t.recipe.lifts)
            again.append(Candidate(t.spec, recipe, t.afresh(recipe), g.signature, g.quantum, g.exact))
        if again:
            self._resize(g.signature, g, planner.snug(len(again), g.max_width))
            assert g.fleet is not None
            self._fill(g.fleet, again, [])

    def _fall_back(self, fleet: Fleet, m: Measured, expected: float) -> None:
        """A lane that does not do what its recipe does alone: its epoch is dropped, and it starts over solo."""
        lane = fleet.lane_of(m.trial)
        trial = fleet.leave(lane)
        self._events.append(Event(0, "left", m.trial, fleet.number, lane, {"reason": "admission check"}))
        self._restart_solo(
            trial.spec,
            f"its first loss in a lane was {m.first_loss:.7g}, alone it is {expected:.7g}; something that its program "
            "baked in (a global, a counter, an object's state) differs between trials",
        )

    def _let_out(self, fleet: Fleet) -> None:
        """Let trials go on alone whose schedules look at what a lane trains elsewhere."""
        for lane, trial in enumerate(list(fleet.lanes)):
            if trial is not None and trial.looks:
                fleet.leave(lane)
                key, data = trial.spec.key, {"reason": trial.looks}
                self._events.append(Event(0, "left", key, fleet.number, lane, data))
                if trial.spec.origin is None:
                    self._catch_up(trial)
                else:
                    self.fail(key, f"trial {trial.spec.number}: {trial.looks}; it goes on from another trial's weights")

    def _catch_up(self, trial: LaneTrial) -> None:
        """Start a trial alone, and train it as far as its lane was: what it gave until then, it gives again."""
        key, shown = trial.spec.key, self._shown.get(trial.spec.key, [])
        try:
            recipe = self._rebuild(trial.spec)
            with at_most(self._limit_s and self._limit_s * (1 + trial.epoch)):
                solo = Solo(trial.spec, recipe, self.work)
                for epoch in range(trial.epoch):
                    solo.train_epoch()
                    if recipe.schedule_every == "epoch" and epoch < len(shown):
                        recipe.step_schedule(loss=shown[epoch][0], value=shown[epoch][1])
        except Exception as error:
            self.fail(key, f"trial {trial.spec.number}: training raised {blame(error)}")
            return
        self._solos[key] = solo
        self._events.append(Event(0, "solo", key, None, None, {"reason": trial.looks}))

    def recipe(self, trial: int) -> Recipe:
        """The recipe of a running trial."""
        if trial in self._solos:
            return self._solos[trial].recipe
        return self._lane(trial)[2].recipe

    def epoch_done(self, trial: int, loss: float, value: float) -> None:
        """Step the schedules that step per epoch."""
        recipe = self.recipe(trial)
        if recipe.schedule is not None and recipe.schedule_every == "epoch":
            self._shown.setdefault(trial, []).append((loss, value))
            looking_on = nullcontext() if trial in self._solos else self._lane(trial)[2].looking_on()
            try:
                with looking_on:
                    recipe.step_schedule(loss=loss, value=value)
            except Exception as error:
                self.fail(trial, f"trial {part_of(trial)[0]}: its schedule raised {blame(error)}")

    def remember(self, trial: int, state: dict[str, Tensor] | None = None) -> None:
        """Keep a copy of a trial's weights as they are now, or the given ones."""
        self._remembered[trial] = self.state_dict(trial) if state is None else state

    def remembers(self, trial: int) -> bool:
        """Whether such a copy is kept."""
        return trial in self._remembered

    def state_dict(self, trial: int, *, remembered: bool = False) -> dict[str, Tensor]:
        """A running trial's weights, on the CPU; as they are, or as they were when last remembered."""
        if remembered:
            return self._remembered[trial]
        if trial in self._solos:
            return self._solos[trial].state_dict()
        _, fleet, _ = self._lane(trial)
        return fleet.state.state_dict(fleet.lane_of(trial))

    def _lane(self, trial: int) -> tuple[str, Fleet, LaneTrial]:
        """Signature, fleet and lane trial of a trial that trains in a lane."""
        for key, g in self._groups.items():
            for t in g.fleet.lanes if g.fleet is not None else ():
                if t is not None and t.spec.key == trial:
                    assert g.fleet is not None
                    return key, g.fleet, t
        raise KeyError(trial)

    def remove(self, trial: int) -> None:
        """Take a trial out, running or paused; its lane is free for the next one."""
        self._remembered.pop(trial, None)
        self._shown.pop(trial, None)
        self._measured.discard(trial)
        broken = self._broken.pop(trial, None) is not None
        if trial in self._paused:
            self._paused.take(trial)
            return
        if trial in self._solos:
            del self._solos[trial]
            self._events.append(Event(0, "left", trial, None, None))
            return
        try:
            _, fleet, _ = self._lane(trial)
        except KeyError:
            if broken:  # it had left its fleet, or never got into one
                return
            raise
        lane = fleet.lane_of(trial)
        fleet.leave(lane)
        self._events.append(Event(0, "left", trial, fleet.number, lane))


@dataclass(frozen=True, slots=True)
class Outlook:
    """How trials of one signature would train.

    Attributes:
        solo: Why one by one after all, or "" when their step traces.
        tier: Otherwise what their fleet runs on in the end.
        uncompiled: Where that is not ``compiled``, what its epoch lacks of a compiled form.
    """

    solo: str
    tier: str = ""
    uncompiled: str = ""


def outlook(work: Work, group: Sequence[Candidate], rebuild: Callable[[TrialSpec], Recipe]) -> Outlook:
    """How signed trials of one signature would train: what ``explain`` reports. Nothing is compiled for it but Shoal's kernels."""
    pool = Pool(work, rebuild, measure=False, native=True)
    native.prepare()
    native.wait()
    pool.upgrade()
    g = pool._open_group(group[0])
    pool._choose(g, group)
    if g.fleet is None:
        return Outlook(g.solo_reason)
    for c in group[: g.fleet.width]:
        assert c.lane is not None
        g.fleet.admit(c.lane)
    if pool.tier != "native":
        return Outlook("", pool.tier, "the native kernels are not there")
    try:
        lacks = obstacle(pool._compilation(g, g.fleet, Variant.of(g.fleet)), g.fleet)
    except Unsupported as error:
        lacks = f"{error} has no compiled form"
    return Outlook("", pool.tier if lacks else "compiled", lacks)
