"""Coefficient tables out of torch's own optimizers: which family an optimizer is, its numbers at each update, its first state.

The numbers come from the parameter groups as the recipe's own schedule leaves them before each update, so whatever a schedule
moves (learning rate, momentum, betas) is followed.

Glossary: ``U`` updates of an epoch; ``h`` the numbers of one parameter group by name: floats where nothing changes within the
epoch, (U,) where a schedule moves them, and two of either for pairs such as betas; ``steps`` (U,) counts updates from 1;
``carried`` what torch keeps as a scalar of its state from one update to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from shoal import optim as own
from shoal.errors import FuseError
from shoal.lanes.optim import C3, C4, C5, C6, C7, C8, DECAY, L2, SIGN, Family, K
from shoal.optim._schedule_free import weighted

Numbers = Mapping[str, Any]
Table = NDArray[np.float64]

# Every entry of a parameter group that an update depends on.
_COMMON = (
    "lr",
    "weight_decay",
    "decoupled_weight_decay",
    "maximize",
    "momentum",
    "betas",
    "eps",
    "centered",
    "amsgrad",
)
_OWN = ("dampening", "nesterov", "alpha", "momentum_decay", "lr_decay", "rho", "etas", "step_sizes", "lambd")
_SHOALS = ("warmup_steps", "r", "weight_lr_power", "decouple", "use_bias_correction")
_NAMES = frozenset((*_COMMON, *_OWN, *_SHOALS))

_SOLO_REASONS: dict[type[optim.Optimizer], str] = {
    optim.LBFGS: "LBFGS evaluates the loss as often as its line search asks for, which differs from trial to trial",
    optim.SparseAdam: "SparseAdam updates the rows that a sparse gradient names, which differ from trial to trial",
    optim.Adafactor: "Adafactor keeps means over the rows and columns of whole matrices, and no lane form of that exists",
    optim.Muon: "Muon orthogonalises whole matrices, and no lane form of that exists",
}


def family_of(optimizer: optim.Optimizer, schedule: object = None) -> Family:
    """The family of an optimizer.

    Args:
        optimizer: Fresh: it has made no step yet.
        schedule: Its schedule, which may move momentum.

    Raises:
        FuseError: If the class or an option has no lane form; the trial then trains solo.
    """
    cls, groups = type(optimizer), optimizer.param_groups
    if cls in _SOLO_REASONS:
        raise FuseError(_SOLO_REASONS[cls])
    # A scheduler wraps ``step`` of its optimizer to watch the order of calls; any other replacement is the user's own code.
    patched = "step" in vars(optimizer) and not hasattr(optimizer.step, "_wrapped_by_lr_sched")
    if cls not in _TABLES or patched:
        raise FuseError(f"optimizer {cls.__module__}.{cls.__qualname__} has no lane form")
    if any(float(state.get("step", 1)) > 0 for state in optimizer.state.values()):  # Adagrad has state from the start
        raise FuseError(f"the {cls.__name__} optimizer already has state")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise FuseError("the optimizer has step hooks")
    if any(group.get("differentiable") for group in groups):
        raise FuseError(f"{cls.__name__}(differentiable=True) has no lane form")
    if cls is optim.RMSprop:
        centered = {bool(g["centered"]) for g in groups}
        if True in centered:
            return Family.RMS_CENTERED if len(centered) == 1 else Family.RMS_MIXED
        # Without momentum it is Adam with b1 = 0 and no bias correction.
        return Family.RMS if any(g["momentum"] for g in groups) or _may_move_momentum(schedule) else Family.ADAM
    if cls in (optim.Adam, optim.AdamW):
        return Family.ADAM_MAX if any(g["amsgrad"] for g in groups) else Family.ADAM
    return _TABLES[cls][0]


def _may_move_momentum(schedule: object) -> bool:
    """Whether a schedule moves momentum (OneCycleLR, CyclicLR), or is of a class that nobody here knows."""
    if schedule is None:
        return False
    inner: Sequence[LRScheduler] = getattr(schedule, "_schedulers", ())
    unknown = type(schedule).__module__ != "torch.optim.lr_scheduler"
    return unknown or bool(getattr(schedule, "cycle_momentum", False)) or any(map(_may_move_momentum, inner))


def numbers(group: Mapping[str, Any]) -> dict[str, float | tuple[float, ...]]:
    """The numbers of a parameter group as they are now."""
    return {
        name: tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)
        for name, value in group.items()
        if name in _NAMES
    }


def stacked(snapshots: Sequence[Mapping[str, float | tuple[float, ...]]]) -> Numbers:
    """A group's numbers before each update of an epoch, (U,) each; a single snapshot holds for all updates."""
    if len(snapshots) == 1:
        return snapshots[0]
    out: dict[str, Any] = {}
    for name in snapshots[0]:
        column = np.array([s[name] for s in snapshots])  # (U,) or (U, 2)
        out[name] = column if column.ndim == 1 else tuple(column.T)
    return out


def coefficients(
    optimizer: optim.Optimizer, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]
) -> Table:
    """Coefficients of one parameter group at each update of an epoch.

    Args:
        optimizer: The recipe's own; only its class is looked at.
        family: Its family.
        h: The group's numbers.
        steps: Which updates these are, (U,), counted from 1.
        carried: The group's scalars, empty before the first update; they are brought up to date.

    Returns:
        (U, K), float64.
    """
    out = np.zeros((len(steps), K))
    decoupled, decay = h.get("decoupled_weight_decay", 0.0), h.get("weight_decay", 0.0)
    out[:, SIGN] = 1.0 - 2.0 * h.get("maximize", 0.0)
    out[:, DECAY] = 1.0 - decoupled * h["lr"] * decay
    out[:, L2] = (1.0 - decoupled) * decay
    _TABLES[type(optimizer)][1](out, family, h, steps, carried)
    return out


def _sgd(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    """torch makes the momentum buffer at the first update with momentum, out of that gradient itself, whatever the dampening; an
    update without momentum (a schedule may move it to zero) leaves the buffer alone."""
    momentum, nesterov = h["momentum"], h["nesterov"]
    made = carried.get("made", 0.0)
    if isinstance(momentum, float) and made == float(momentum != 0):  # as ever, or without momentum
        out[:, C3], out[:, C4] = momentum, 1.0 - (momentum != 0) * h["dampening"]
        out[:, C5], out[:, C6] = nesterov, np.where(nesterov, momentum, 1.0)
    else:
        on = np.broadcast_to(np.asarray(momentum) != 0, steps.shape)
        held = np.concatenate([[made != 0], on]).cumsum()[:-1] > 0
        out[:, C3] = np.where(held, np.where(on, momentum, 1.0), 0.0)
        out[:, C4] = np.where(held, np.where(on, 1.0 - h["dampening"], 0.0), 1.0)
        out[:, C5] = np.where(on, nesterov, held)
        out[:, C6] = np.where(on, np.where(nesterov, momentum, 1.0), ~held)
        carried["made"] = float(held[-1] | on[-1])
    out[:, C7] = -h["lr"]


def _asgd(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    """Its average of the parameters (torch's ``ax``) never comes back into training, and is not kept."""
    lr = np.broadcast_to(h["lr"], steps.shape)
    after = _scalar(lr / (1.0 + h["lambd"] * lr * steps) ** h["alpha"])
    eta = np.concatenate([[carried.get("eta", _scalar(lr)[0])], after[:-1]])
    carried["eta"] = float(after[-1])
    out[:, DECAY] = 1.0 - h["lambd"] * eta
    out[:, C4], out[:, C6], out[:, C7] = 1.0, 1.0, -eta


def _rmsprop(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    rate = 1.0 - h["alpha"]
    out[:, C7] = -h["lr"]
    if family is Family.ADAM:
        out[:, C3], out[:, C4], out[:, C5], out[:, C6] = 1.0, rate, 1.0, h["eps"]
    else:
        out[:, C3], out[:, C4], out[:, C5], out[:, C6] = rate, h["eps"], h["momentum"], 1.0
        out[:, C8] = h["centered"] * rate


def _adam(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    b1, b2 = h["betas"]
    out[:, C3], out[:, C4] = 1.0 - b1, 1.0 - b2
    out[:, C5] = 1.0 / np.sqrt(1.0 - b2**steps)
    out[:, C6] = h["eps"]
    out[:, C7] = -h["lr"] / (1.0 - b1**steps)
    if family is Family.ADAM_MAX:
        out[:, C8] = h["amsgrad"]


def _radam(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    """Liu et al. 2020, algorithm 2: Adam, but plain momentum while the variance is not tractable (rho <= 5)."""
    b1, b2 = h["betas"]
    correction = 1.0 - b2**steps
    longest = 2.0 / (1.0 - b2) - 1.0
    rho = longest - 2.0 * steps * b2**steps / correction
    tractable = rho > 5.0
    with np.errstate(invalid="ignore", divide="ignore"):
        rectified = np.sqrt((rho - 4.0) * (rho - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * rho))
    out[:, C3], out[:, C4] = 1.0 - b1, 1.0 - b2
    out[:, C5] = np.where(tractable, 1.0, 0.0)
    out[:, C6] = np.where(tractable, h["eps"], 1.0)
    out[:, C7] = -h["lr"] / (1.0 - b1**steps) * np.where(tractable, np.sqrt(correction) * rectified, 1.0)


def _nadam(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    b1, b2 = h["betas"]
    mu = b1 * (1.0 - 0.5 * 0.96 ** (steps * h["momentum_decay"]))
    following = b1 * (1.0 - 0.5 * 0.96 ** ((steps + 1.0) * h["momentum_decay"]))
    factors = np.concatenate([[carried.get("mu_product", 1.0)], mu]).astype(_scalar_dtype())
    product = np.multiply.accumulate(factors)[1:].astype(np.float64)
    carried["mu_product"] = float(product[-1])
    out[:, C3], out[:, C4] = 1.0 - b1, 1.0 - b2
    out[:, C5] = 1.0 / np.sqrt(1.0 - b2**steps)
    out[:, C6] = h["eps"]
    out[:, C7] = -h["lr"] * (1.0 - mu) / (1.0 - product)
    out[:, C8] = -h["lr"] * following / (1.0 - product * following)


def _adamax(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    b1, b2 = h["betas"]
    out[:, C3], out[:, C4], out[:, C5], out[:, C6] = 1.0 - b1, b2, 1.0, h["eps"]
    out[:, C7] = -h["lr"] / (1.0 - b1**steps)


def _adagrad(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    out[:, C4], out[:, C6] = 1.0, h["eps"]
    out[:, C7] = -h["lr"] / (1.0 + (steps - 1.0) * h["lr_decay"])


def _adadelta(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    out[:, C3], out[:, C4], out[:, C7] = 1.0 - h["rho"], h["eps"], -h["lr"]


def _rprop(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    """The learning rate is where step sizes start (``first_second``); nothing reads it afterwards."""
    (out[:, C3], out[:, C4]), (out[:, C5], out[:, C6]) = h["etas"], h["step_sizes"]
    out[:, C7] = -1.0


def _schedule_free(
    out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]
) -> None:
    group: dict[str, Any] = {**h, "weight_sum": 0.0, "lr_max": 0.0, **carried}
    for name in ("warmup_steps", "r", "weight_lr_power"):  # no schedule of torch moves them
        group[name] = float(np.broadcast_to(h[name], steps.shape)[0])
    adam = "betas" in h
    b = np.broadcast_to(h["betas"][0] if adam else h["momentum"], steps.shape)
    for i, (step, lr) in enumerate(zip(steps, np.broadcast_to(h["lr"], steps.shape), strict=True)):
        rate, share = weighted(group, int(step), float(lr))
        out[i, C3], out[i, C7], out[i, C8] = share, rate * (b[i] * (1.0 - share) - 1.0), -rate
    carried.update(weight_sum=group["weight_sum"], lr_max=group["lr_max"])
    if adam:
        b2 = h["betas"][1]
        out[:, C4], out[:, C5], out[:, C6] = 1.0 - b2, 1.0 / np.sqrt(1.0 - b2**steps), h["eps"]
    else:
        out[:, C4], out[:, C5], out[:, C6] = 0.0, 0.0, 1.0


def _distance(out: Table, family: Family, h: Numbers, steps: NDArray[np.float64], carried: dict[str, float]) -> None:
    b1, b2 = h["betas"]
    out[:, L2] = (1.0 - h["decouple"]) * h["weight_decay"]
    out[:, C3], out[:, C4], out[:, C5], out[:, C6] = b1, b2, h["eps"], h["decouple"] * h["weight_decay"]
    corrected = np.sqrt(1.0 - b2**steps) / (1.0 - b1**steps)
    out[:, C7] = h["lr"] * np.where(h["use_bias_correction"], corrected, 1.0)


_Tabulate = Callable[[Table, Family, Numbers, NDArray[np.float64], dict[str, float]], None]
_TABLES: dict[type[optim.Optimizer], tuple[Family, _Tabulate]] = {
    optim.SGD: (Family.SGD, _sgd),
    optim.ASGD: (Family.SGD, _asgd),
    optim.RMSprop: (Family.RMS, _rmsprop),
    optim.Adam: (Family.ADAM, _adam),
    optim.AdamW: (Family.ADAM, _adam),
    optim.RAdam: (Family.ADAM, _radam),
    optim.NAdam: (Family.NADAM, _nadam),
    optim.Adamax: (Family.ADAMAX, _adamax),
    optim.Adagrad: (Family.ADAGRAD, _adagrad),
    optim.Adadelta: (Family.ADADELTA, _adadelta),
    optim.Rprop: (Family.RPROP, _rprop),
    own.SGDScheduleFree: (Family.SCHEDULE_FREE, _schedule_free),
    own.AdamWScheduleFree: (Family.SCHEDULE_FREE, _schedule_free),
    own.Prodigy: (Family.PRODIGY, _distance),
    own.DAdaptAdam: (Family.DADAPT, _distance),
}


def _scalar_dtype() -> type[np.floating[Any]]:
    """What torch keeps the scalars of an optimizer's state in, whatever its parameters are."""
    return np.float64 if torch.get_default_dtype() == torch.float64 else np.float32


def _scalar(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x.astype(_scalar_dtype()).astype(np.float64)


def first_second(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor | float]:
    """What the second row of a fresh lane holds, by parameter; nothing where it is zero."""
    if not isinstance(optimizer, optim.Adagrad | optim.Rprop):
        return {}
    start: dict[int, Tensor | float] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if isinstance(optimizer, optim.Rprop):
                start[id(p)] = float(group["lr"])
            else:
                start[id(p)] = optimizer.state[p].get("sum", optimizer.defaults["initial_accumulator_value"])
    return {name: start[id(p)] for name, p in model.named_parameters() if p.requires_grad}
