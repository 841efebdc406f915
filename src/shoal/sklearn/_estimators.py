"""``ShoalClassifier`` and ``ShoalRegressor``: one network each, trained by the plain loop, behind scikit-learn's interface.

Glossary: ``n`` rows; ``C`` classes; ``k`` targets of a regression. Inputs are numbers (n, features).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from shoal.data import Datasets, Split
from shoal.devices import device_named
from shoal.errors import UsageError
from shoal.lanes.fleet import Work
from shoal.lanes.solo import Solo
from shoal.nn import mlp, optimizer
from shoal.recipe import Recipe
from shoal.records import TrialSpec
from shoal.replay import ReplayTrial, run_define

Array = npt.NDArray[Any]
_CHUNK: Final = 8192  # rows that are predicted at once
_PREFIX: Final = "params__"


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What a network is fitted to.

    ``inputs`` (n, features) and ``target`` ((n,) classes as int64, or (n, k) scaled numbers) are tensors; ``facts`` are the
    attributes that say what the network's outputs mean (``classes_``, say).
    """

    inputs: Tensor
    target: Tensor
    n_out: int
    facts: Mapping[str, Any]
    class_weights: Tensor | None = None


class _Given(ReplayTrial):
    """A trial that answers ``define`` with the estimator's ``params``."""

    def _known(self, name: str) -> Any:
        if name not in self.params:
            raise UsageError(
                f"define() asks for {name!r}, for which the estimator has no value: add it to params={{...}} (it has "
                f"{', '.join(self.params) or 'none'}), or search over it with ShoalSearchCV."
            )
        return self.params[name]


class ShoalEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share; their own docstrings list the parameters."""

    def __init__(
        self,
        *,
        hidden_layer_sizes: Any = (64, 64),
        activation: str = "relu",
        dropout: float | None = None,
        norm: str | None = None,
        residual: bool = False,
        init: str = "default",
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        max_epochs: int = 30,
        define: Callable[[Any, int, int], Recipe] | None = None,
        params: Mapping[str, Any] | None = None,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.norm = norm
        self.residual = residual
        self.init = init
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.define = define
        self.params = params
        self.random_state = random_state
        self.device = device

    # -- parameters of a define of one's own, one level down, as scikit-learn names them --------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; with `deep`, each of ``params`` as ``params__NAME`` too."""
        found: dict[str, Any] = super().get_params(deep=deep)
        if deep and isinstance(self.params, Mapping):
            found |= {f"{_PREFIX}{name}": value for name, value in self.params.items()}
        return found

    def set_params(self, **params: Any) -> Any:
        """Set parameters; ``params__NAME`` sets one of ``params``.

        Raises:
            ValueError: If there is no such parameter.
        """
        inner = {name.removeprefix(_PREFIX): value for name, value in params.items() if name.startswith(_PREFIX)}
        super().set_params(**{name: value for name, value in params.items() if not name.startswith(_PREFIX)})
        if inner:
            self.params = {**(self.params or {}), **inner}
        return self

    # -- fitting --------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> Any:
        """Train the network for ``max_epochs`` epochs.

        Args:
            X: Numbers (n, features), without gaps. Scale them first (``StandardScaler`` in a pipeline).
            y: Targets (n,); for a regressor perhaps (n, k).

        Returns:
            The estimator itself.

        Raises:
            ValueError: If the data or a parameter make no sense, or the loss is no longer finite.
        """
        epochs = self.epochs()
        problem = self.problem(X, y)
        spec, recipe = self.start(problem)
        data = Split((problem.inputs, problem.target))
        solo = Solo(spec, recipe, Work(Datasets(data, data, None, ""), (), device_named(self.device)))
        curve: list[float] = []
        for _ in range(epochs):
            loss, _ = solo.train_epoch()
            curve.append(loss)
            if not math.isfinite(loss):
                raise UsageError(not_finite(len(curve)))
            if recipe.schedule_every == "epoch":
                recipe.step_schedule(loss=loss, value=loss)
        return self.adopt(problem, recipe.model, curve)

    def epochs(self) -> int:
        """``max_epochs``, checked."""
        n = self.max_epochs
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise UsageError(f"max_epochs must be a whole number of at least 1, not {n!r}.")
        return int(n)

    def start(self, problem: Problem, number: int = 0) -> tuple[TrialSpec, Recipe]:
        """A trial of this estimator and its recipe, with fresh weights drawn from ``random_state``."""
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        spec = TrialSpec(number, seed, dict(self.params or {}), {})
        return spec, self.rebuild(spec, problem)

    def rebuild(self, spec: TrialSpec, problem: Problem) -> Recipe:
        """The same recipe again."""
        n = len(problem.inputs)
        return run_define(lambda trial: self.recipe(trial, problem), _Given(spec), spec.seed, n)

    def recipe(self, trial: Any, problem: Problem) -> Recipe:
        """What is trained, with `trial` answering a ``define`` of one's own."""
        n, n_in = problem.inputs.shape
        if self.define is not None:
            return self.define(trial, n_in, problem.n_out)
        model = mlp(
            n_in,
            problem.n_out,
            width=np.atleast_1d(np.asarray(self.hidden_layer_sizes)).tolist(),
            activation=self.activation,
            dropout=None if self.dropout is None else float(self.dropout),
            norm=self.norm,
            residual=self.residual,
            init=self.init,
        )
        made = optimizer(model, self.optimizer, lr=float(self.lr), weight_decay=float(self.weight_decay))
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise UsageError(f"batch_size must be a whole number of at least 1, not {size!r}.")
        return Recipe(model, made, self._criterion(problem), min(int(size), n))

    def adopt(self, problem: Problem, model: nn.Module, curve: list[float] | None = None) -> Any:
        """Become the fitted estimator of a trained network."""
        self.module_ = model.to("cpu").eval()
        self.loss_curve_ = list(curve or ())
        for name, value in problem.facts.items():
            setattr(self, name, value)
        return self

    def problem(self, X: Any, y: Any) -> Problem:
        """Data checked as scikit-learn does it, and as tensors."""
        raise NotImplementedError

    def _columns(self) -> dict[str, Any]:
        """What the check of the data has found out about its columns."""
        names = ("n_features_in_", "feature_names_in_")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def _criterion(self, problem: Problem) -> nn.Module:
        raise NotImplementedError

    # -- predicting -----------------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Tensor:
        """What the network says, (n, C) or (n, k)."""
        check_is_fitted(self)
        rows = tensor_of(validate_data(self, X, reset=False, dtype=number_type()))
        model = self.module_
        if self.define is None:  # in float64, a row's prediction does not depend on which rows come with it
            model, rows = copy.deepcopy(model).double(), rows.double()
        with torch.no_grad():
            parts = [model(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)]
        return torch.cat(parts).double()


class ShoalClassifier(ClassifierMixin, ShoalEstimator):  # type: ignore[misc]
    """A multi-layer perceptron that tells classes apart, or the network of a ``define`` of your own.

    Args:
        hidden_layer_sizes: Units of each hidden layer; a number for a single one, () for a linear model.
        activation, dropout, norm, residual, init: As for ``shoal.nn.mlp``.
        optimizer: By name, as for ``shoal.nn.optimizer``.
        lr, weight_decay: Of the optimizer.
        batch_size: Samples per update; at most as many as there are.
        max_epochs: Passes over the data.
        class_weight: None, "balanced", or a dict class -> weight, as in scikit-learn.
        define: A function ``define(trial, n_in, n_out)`` that returns a ``shoal.Recipe`` whose model gives logits (n, n_out). Then
            it decides on everything but the epochs.
        params: What ``trial.suggest_...`` answers in ``define``, by name; ``params__NAME`` in a grid.
        random_state: Of the initial weights, the order of samples and dropout.
        device: "auto", "cpu", "cuda", ...

    Attributes:
        classes_: The classes (C,).
        module_: The trained ``nn.Module``, in evaluation mode, on the CPU.
        loss_curve_: The training loss of each epoch; empty if it was trained as a lane.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> bool(ShoalClassifier(lr=0.01, random_state=0).fit(X, y).score(X, y) > 0.9)
        True
    """

    def __init__(
        self,
        *,
        hidden_layer_sizes: Any = (64, 64),
        activation: str = "relu",
        dropout: float | None = None,
        norm: str | None = None,
        residual: bool = False,
        init: str = "default",
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        max_epochs: int = 30,
        class_weight: Mapping[Any, float] | str | None = None,
        define: Callable[[Any, int, int], Recipe] | None = None,
        params: Mapping[str, Any] | None = None,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            dropout=dropout,
            norm=norm,
            residual=residual,
            init=init,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_epochs=max_epochs,
            define=define,
            params=params,
            random_state=random_state,
            device=device,
        )
        self.class_weight = class_weight

    def problem(self, X: Any, y: Any) -> Problem:
        X, y = validate_data(self, X, y, dtype=number_type())
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise UsageError(f"a classifier needs at least two classes; y has one class only, {classes[0]!r}.")
        weights = None
        if self.class_weight is not None:
            if self.define is not None:
                raise UsageError(
                    "with define= the loss is the recipe's own; give it the weights there, not class_weight."
                )
            found = compute_class_weight(self.class_weight, classes=classes, y=y)
            weights = torch.as_tensor(found, dtype=torch.get_default_dtype())
        facts = {"classes_": classes, **self._columns()}
        return Problem(tensor_of(X), torch.from_numpy(codes.astype(np.int64)), len(classes), facts, weights)

    def _criterion(self, problem: Problem) -> nn.Module:
        return nn.CrossEntropyLoss(weight=problem.class_weights)

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, (n, C), in the order of ``classes_``."""
        return torch.softmax(self._logits(X), 1).numpy()

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of the probabilities, (n, C)."""
        return torch.log_softmax(self._logits(X), 1).numpy()

    def predict(self, X: Any) -> Array:
        """The most probable class of each row, (n,)."""
        best = self._logits(X).argmax(1).numpy()
        return np.asarray(self.classes_[best])

    def _logits(self, X: Any) -> Tensor:
        found = self._outputs(X)
        if found.ndim != 2 or found.shape[1] != len(self.classes_):
            raise UsageError(
                f"define()'s model must give one logit per class, (n, {len(self.classes_)}); it gives {tuple(found.shape)}."
            )
        return found


class ShoalRegressor(MultiOutputMixin, RegressorMixin, ShoalEstimator):  # type: ignore[misc]
    """A multi-layer perceptron that predicts one or several numbers, or the network of a ``define`` of your own.

    The network learns targets scaled to mean 0 and standard deviation 1; predictions are in the targets' own units.

    Args:
        hidden_layer_sizes: Units of each hidden layer; a number for a single one, () for a linear model.
        activation, dropout, norm, residual, init: As for ``shoal.nn.mlp``.
        optimizer: By name, as for ``shoal.nn.optimizer``.
        lr, weight_decay: Of the optimizer.
        batch_size: Samples per update; at most as many as there are.
        max_epochs: Passes over the data.
        define: A function ``define(trial, n_in, n_out)`` that returns a ``shoal.Recipe`` whose model gives (n, n_out) numbers for
            scaled targets of that shape. Then it decides on everything but the epochs.
        params: What ``trial.suggest_...`` answers in ``define``, by name; ``params__NAME`` in a grid.
        random_state: Of the initial weights, the order of samples and dropout.
        device: "auto", "cpu", "cuda", ...

    Attributes:
        module_: The trained ``nn.Module``, in evaluation mode, on the CPU.
        target_mean_, target_std_: Of the targets, (k,).
        loss_curve_: The training loss of each epoch; empty if it was trained as a lane.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Example:
        >>> import numpy as np
        >>> X = np.linspace(-1, 1, 64)[:, None]
        >>> bool(ShoalRegressor(lr=0.01, random_state=0).fit(X, 100 * X[:, 0]).score(X, 100 * X[:, 0]) > 0.9)
        True
    """

    def problem(self, X: Any, y: Any) -> Problem:
        X, y = validate_data(self, X, y, dtype=number_type(), y_numeric=True, multi_output=True)
        columns = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        mean, std = columns.mean(axis=0), columns.std(axis=0)
        std = np.where(std > 0, std, 1.0)
        facts = {"target_mean_": mean, "target_std_": std, "_one_target": y.ndim == 1, **self._columns()}
        return Problem(tensor_of(X), tensor_of((columns - mean) / std), columns.shape[1], facts)

    def _criterion(self, problem: Problem) -> nn.Module:
        return nn.MSELoss()

    def predict(self, X: Any) -> Array:
        """The predicted number of each row, (n,); (n, k) if it was fitted to targets of two dimensions."""
        outputs = self._outputs(X).numpy()
        if outputs.shape != (len(outputs), len(self.target_mean_)):
            raise UsageError(
                f"define()'s model must give one number per target, (n, {len(self.target_mean_)}); it gives {outputs.shape}."
            )
        found = outputs * self.target_std_ + self.target_mean_
        return np.asarray(found[:, 0] if self._one_target else found)


def number_type() -> type[np.floating[Any]]:
    """What inputs are converted to: torch's default type."""
    return np.float64 if torch.get_default_dtype() is torch.float64 else np.float32


def tensor_of(rows: Array) -> Tensor:
    """A copy of numbers as a tensor."""
    return torch.from_numpy(np.array(rows, dtype=number_type(), order="C"))


def not_finite(epoch: int) -> str:
    """What is said of a training that diverged."""
    return f"the loss was not finite in epoch {epoch}: the learning rate may be too high, or X has values that are too large."
