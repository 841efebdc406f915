"""What ``define(trial)`` returns: one trial as plain PyTorch objects, checked the moment it is made."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler, ReduceLROnPlateau

from shoal.batches import TARGETS, Form
from shoal.errors import RecipeError
from shoal.extend import Extension

Batch: TypeAlias = tuple[Tensor, ...]
Loss: TypeAlias = nn.Module | Callable[..., Tensor]

# ``torch.nn.functional`` losses are criteria on (output, target); the module of the same defaults stands for each.
FUNCTIONAL_CRITERIA: dict[Callable[..., Any], Callable[..., nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.kl_div: nn.KLDivLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One trial as ordinary PyTorch objects.

    Args:
        model: The network. What its weights are when ``define`` returns is where training starts.
        optimizer: A ``torch.optim`` optimizer over exactly the parameters of ``model`` that require a gradient.
        loss: A criterion (an ``nn.Module`` or a loss of ``torch.nn.functional``), called as ``loss(model(*inputs), target)``
            where the last tensor of the data is the target (in dicts, the one key among "target", "targets", "label", "labels",
            "y"); or any other callable, called as ``loss(model, batch)`` with
            ``batch`` the tuple, or the dict, of the data's tensors. Either returns a scalar.
        batch_size: Samples per update, from 1 to the size of the training split. The last batch of an epoch may be smaller.
        schedule: A scheduler of ``torch.optim.lr_scheduler`` on ``optimizer``. ``ReduceLROnPlateau`` is shown the validation
            loss when its mode is "min", and the study's metric when it is "max".
        schedule_every: Whether ``schedule`` steps after each epoch ("epoch") or after each update ("step"). "fraction" is for
            ``CosineAnnealingWarmRestarts`` alone: after update i of the n of an epoch it is told ``epoch + i / n``, so that
            its ``T_0`` counts epochs and the learning rate moves within them.
        clip_norm: Largest norm of an update's gradient over all parameters together, as
            ``torch.nn.utils.clip_grad_norm_`` has it. None or 0: not clipped.
        clip_value: Largest absolute value of each element of it, clipped before the norm is taken. None or 0: not clipped.
        l1: What the sum of absolute values of all trainable parameters (biases too) counts for in what is minimised: its
            gradient is added before any clipping. The losses reported are without it.
        l2: The same of half the sum of their squares: what is minimised is ``loss + l1 * |p|_1 + l2 / 2 * |p|_2^2``, the elastic
            net where both are there. Unlike an optimizer's ``weight_decay``, it is clipped with the gradient, and adaptive
            optimizers scale it.
        max_norm: Largest norm of the weights that come into one unit: after each update, rows (along the first axis) of every
            trainable parameter with two axes or more that are longer are shortened, as ``torch.renorm(p, 2, 0, max_norm)`` does.
            None or 0: not limited.
        predict: ``predict(model, batch) -> outputs (n, ...)``: what metrics see. By default ``model(*inputs)`` for a
            criterion; with a callable loss and no ``predict`` only the loss is measured.
        transform: ``transform(batch) -> batch`` on the tuple or dict of the data's tensors, in training only: flips, crops, noise,
            mixup (see ``shoal.transforms``). Called on the device under keyed randomness, so it must draw with ``torch.rand``,
            ``torch.randn`` or their ``_like`` forms, with one row per sample. With one of your own, lanes train whole batches.
        sample_weights: How often each training sample is drawn, relative to the others: an epoch is then as many draws with
            replacement as there are samples, as ``torch.utils.data.WeightedRandomSampler`` makes them. Weights (n,) of 0 or more,
            or a callable that gives them for ``batch``, all training data at once. None: every sample once, shuffled.
        extensions: Hyperparameters that move while the model trains (``shoal.extend``), at most one of each kind.

    Raises:
        RecipeError: If the parts do not fit each other; the message says which and what to do.

    Example:
        >>> from torch import nn, optim
        >>> model = nn.Linear(4, 2)
        >>> Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), batch_size=8).batch_size
        8
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    batch_size: int
    schedule: LRScheduler | ReduceLROnPlateau | None = None
    schedule_every: Literal["epoch", "step", "fraction"] = "epoch"
    clip_norm: float | None = None
    clip_value: float | None = None
    l1: float = 0.0
    l2: float = 0.0
    max_norm: float | None = None
    transform: Callable[..., Any] | None = None
    predict: Callable[[nn.Module, Any], Tensor] | None = None
    sample_weights: Any = None
    extensions: Sequence[Extension] = ()
    # Per-submodule train/eval flags as ``define`` left them: a BatchNorm that the user froze stays frozen.
    training: dict[str, bool] = field(init=False, repr=False, compare=False)
    # Numbers of the user's own modules and loss that a lane may have for itself; found when the recipe is signed.
    lifts: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())
    # How the data's batches look to the user's code; told when the recipe is made for a study.
    form: Form = field(init=False, repr=False, compare=False, default=Form())

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise RecipeError(f"Recipe(model=...) must be an nn.Module, not {_kind(self.model)}.")
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise RecipeError(f"Recipe(optimizer=...) must be a torch.optim optimizer, not {_kind(self.optimizer)}.")
        if not callable(self.loss):
            raise RecipeError(f"Recipe(loss=...) must be a criterion or a callable, not {_kind(self.loss)}.")
        if isinstance(self.loss, type):
            raise RecipeError(
                f"Recipe(loss={self.loss.__name__}) is a class; pass an instance: {self.loss.__name__}()."
            )
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise RecipeError(f"Recipe(batch_size=...) must be a whole number of at least 1, not {self.batch_size!r}.")
        if self.schedule_every not in ("epoch", "step", "fraction"):
            raise RecipeError(
                f"Recipe(schedule_every=...) must be 'epoch', 'step' or 'fraction', not {self.schedule_every!r}."
            )
        for name in ("clip_norm", "clip_value", "l1", "l2", "max_norm"):
            object.__setattr__(self, name, self._strength(name))
        if self.transform is not None and not callable(self.transform):
            raise RecipeError(f"Recipe(transform=...) must be a callable on a batch, not {_kind(self.transform)}.")
        self._check_optimizer()
        if self.schedule is not None:
            owner = getattr(self.schedule, "optimizer", None)
            if owner is not self.optimizer:
                raise RecipeError(
                    "Recipe(schedule=...) must be a torch.optim.lr_scheduler over the recipe's own optimizer; build it as "
                    f"Scheduler(optimizer, ...). Got {_kind(self.schedule)}."
                )
            if self.schedule_every != "epoch" and isinstance(self.schedule, ReduceLROnPlateau):
                raise RecipeError("ReduceLROnPlateau needs a validation result; use schedule_every='epoch'.")
            if self.schedule_every == "fraction" and not isinstance(self.schedule, CosineAnnealingWarmRestarts):
                raise RecipeError(
                    "schedule_every='fraction' is for CosineAnnealingWarmRestarts, the only scheduler that takes fractions of an "
                    f"epoch, not for {_kind(self.schedule)}; use 'epoch' or 'step'."
                )
        object.__setattr__(self, "loss", _as_module(self.loss))
        self._check_extensions()
        object.__setattr__(self, "training", {name: m.training for name, m in self.model.named_modules()})

    def _strength(self, name: str) -> float | None:
        """A limit or a penalty as a float; None stays None."""
        value, optional = getattr(self, name), name not in ("l1", "l2")
        if value is None and optional:
            return None
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
        if not 0 <= number < math.inf:
            raise RecipeError(
                f"Recipe({name}=...) must be a finite number of at least 0 (0{' or None' if optional else ''} for off), "
                f"not {value!r}."
            )
        return number

    def _check_optimizer(self) -> None:
        named = dict(self.model.named_parameters())
        if not any(p.requires_grad for p in named.values()):
            raise RecipeError("the model has no parameter that requires a gradient: there is nothing to train.")
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        foreign = held - {id(p) for p in named.values()}
        if foreign:
            raise RecipeError(
                f"the optimizer holds {len(foreign)} tensor(s) that are not parameters of this model; build it from "
                "model.parameters() of the model in the recipe."
            )
        missing = [name for name, p in named.items() if p.requires_grad and id(p) not in held]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise RecipeError(
                f"the optimizer misses {len(missing)} parameter(s) of the model ({shown}); pass model.parameters(), or set "
                "requires_grad=False on what should stay fixed."
            )

    def _check_extensions(self) -> None:
        if not isinstance(self.extensions, Sequence) or isinstance(self.extensions, str):
            raise RecipeError(
                f"Recipe(extensions=...) must be a list of extensions out of shoal.extend, not {_kind(self.extensions)}."
            )
        object.__setattr__(self, "extensions", tuple(self.extensions))
        kinds: set[type] = set()
        for e in self.extensions:
            if not isinstance(e, Extension):
                hint = f"; pass an instance: {e.__name__}()" if isinstance(e, type) else ""
                raise RecipeError(
                    f"Recipe(extensions=...) holds {_kind(e)}, which is no extension of shoal.extend{hint}."
                )
            if type(e) in kinds:
                raise RecipeError(f"Recipe(extensions=...) holds {type(e).__name__} twice; keep one of them.")
            kinds.add(type(e))
            if e.on:
                e.check(self)

    @property
    def is_criterion(self) -> bool:
        """Whether ``loss`` is called on (output, target) rather than on (model, batch)."""
        return isinstance(self.loss, nn.Module)

    def fit(self, form: Form) -> None:
        """Settle how batches look to this recipe's own code.

        Raises:
            RecipeError: If the loss wants a target, and the data has none.
        """
        if self.is_criterion and not form.has_target:
            data = f"a dict of {list(form.names)}" if form.names else "one tensor"
            advice = f"Name the target as one of {', '.join(TARGETS)}" if form.names else "Pass (inputs, targets)"
            raise RecipeError(
                f"the loss {type(self.loss).__name__} is a criterion, called as loss(output, target), and the data ({data}) does "
                f"not say what the target is. {advice}, or use a callable loss(model, batch)."
            )
        object.__setattr__(self, "form", form)

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """What a model gives for a batch's inputs: all of its tensors but the target."""
        args, kwargs = self.form.inputs(batch)
        return model(*args, **kwargs)

    def loss_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a model on a batch, as the user wrote it."""
        if self.is_criterion:
            return self.loss(self.outputs(model, batch), batch[-1])
        return self.loss(model, self.form.batch(batch))

    def shown(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """What metrics see, if anything; ``predict`` must be there, or a criterion."""
        if self.predict is not None:
            return self.predict(model, self.form.batch(batch))
        return self.outputs(model, batch) if self.is_criterion else None

    def transformed(self, batch: Batch) -> Batch:
        """A training batch as the model is shown it.

        Raises:
            RecipeError: If ``transform`` gives anything but a batch like the one it got.
        """
        if self.transform is None:
            return batch
        out = self.transform(self.form.batch(batch))
        found = self.form.tensors(out, len(batch))
        if found is None or any(
            not isinstance(t, Tensor) or t.shape[:1] != b.shape[:1] for t, b in zip(found, batch, strict=True)
        ):
            wanted = f"a dict of {list(self.form.names)}, all" if self.form.names else f"{len(batch)} tensor(s)"
            raise RecipeError(
                f"Recipe(transform=...) must return a batch like the one it is given, {wanted} of as many rows; got {_kind(out)}."
            )
        return found

    def train_mode(self) -> None:
        """Put every submodule back into the mode that ``define`` left it in."""
        for name, module in self.model.named_modules():
            module.training = self.training.get(name, True)

    def step_schedule(self, *, loss: float = math.nan, value: float = math.nan, progress: float = math.nan) -> None:
        """Advance the schedule once (after an epoch, or after an update), as a plain loop would.

        Args:
            loss: The validation loss, after an epoch.
            value: The study's metric, after an epoch.
            progress: Epochs behind the trial, as ``schedule_every="fraction"`` counts them.
        """
        if self.schedule is None:
            return
        # A fused trial never calls ``optimizer.step``; torch warns about the order of calls unless told that it was.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
            if isinstance(self.schedule, ReduceLROnPlateau):
                self.schedule.step(loss if self.schedule.mode == "min" else value)
            elif self.schedule_every == "fraction":
                self.schedule.step(progress)  # type: ignore[arg-type]
            else:
                self.schedule.step()


def _as_module(loss: Loss) -> Loss:
    """A loss of ``torch.nn.functional``, or ``functools.partial(F.cross_entropy, label_smoothing=0.1)``, as its module."""
    function, options = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    known = FUNCTIONAL_CRITERIA.get(function) if isinstance(function, Hashable) else None
    if known is None:
        return loss
    try:
        return known(**options)
    except TypeError as error:
        raise RecipeError(f"Recipe(loss=partial({function.__name__}, ...)): {error}") from error


def _kind(value: object) -> str:
    return "None" if value is None else f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
