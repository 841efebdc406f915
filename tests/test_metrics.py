"""Metrics over lanes against scikit-learn, one lane at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from shoal.errors import UsageError
from shoal.metrics import Metric, resolve, standard_metrics
from shoal.records import Direction

Oracle = Callable[[Tensor, Tensor], float]


def averaged(score: Callable[..., float], average: str) -> Oracle:
    return lambda truth, predicted: float(score(truth, predicted, average=average, zero_division=0))


CLASSIFICATION: dict[str, Oracle] = {"accuracy": lambda truth, predicted: float(sk.accuracy_score(truth, predicted))}
for metric_name, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
    CLASSIFICATION[metric_name] = averaged(function, "macro")
    for kind in ("micro", "weighted"):
        CLASSIFICATION[f"{metric_name}_{kind}"] = averaged(function, kind)

REGRESSION: dict[str, Oracle] = {
    "mae": lambda truth, output: float(sk.mean_absolute_error(truth, output)),
    "mse": lambda truth, output: float(sk.mean_squared_error(truth, output)),
    "rmse": lambda truth, output: float(sk.root_mean_squared_error(truth, output)),
    "r2": lambda truth, output: float(sk.r2_score(truth, output)),
}

INTS, FLOATS = torch.tensor([0, 1, 2, 1]), torch.tensor([0.5, 1.0, 2.0, -1.0])


def named(name: str, targets: Tensor) -> Metric:
    metric = resolve(name, targets=targets)
    assert metric is not None
    return metric


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(values: Tensor, expected: list[float]) -> None:
    assert values.dtype is torch.float64
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_class_logits_score_as_in_scikit_learn(name: str, n_classes: int) -> None:
    # Few samples and many classes: some classes are never predicted, never true, or neither.
    logits, targets = made(6, 12, n_classes), torch.arange(12) % max(2, n_classes - 2)
    expected = [CLASSIFICATION[name](targets, lane.argmax(dim=1)) for lane in logits]
    close(named(name, targets).compute(logits, targets), expected)


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize("output_shape", [(12,), (12, 1)])
@pytest.mark.parametrize("target_shape", [(12,), (12, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_binary_logits_are_cut_at_zero(
    name: str, output_shape: tuple[int, ...], target_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    logits, targets = made(5, *output_shape), (torch.arange(12) % 3 == 0).to(dtype).reshape(target_shape)
    expected = [CLASSIFICATION[name](targets.flatten().long(), (lane > 0).flatten().long()) for lane in logits]
    close(named(name, targets).compute(logits, targets), expected)


@pytest.mark.parametrize("name", [*CLASSIFICATION, "top_2_accuracy"])
def test_pixels_count_like_samples_and_ignored_targets_do_not_count(name: str) -> None:
    logits, targets = made(3, 4, 5, 2, 2), torch.arange(16).reshape(4, 2, 2) % 5
    flat = logits.movedim(2, -1).reshape(3, 16, 5)
    metric = named(name, targets)
    torch.testing.assert_close(metric.compute(logits, targets), metric.compute(flat, targets.flatten()))
    kept = torch.arange(16) % 3 > 0
    holes = targets.masked_fill(~kept.reshape(4, 2, 2), -100)
    torch.testing.assert_close(metric.compute(logits, holes), metric.compute(flat[:, kept], targets.flatten()[kept]))


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_top_k_scores_as_in_scikit_learn(k: int, tied: bool) -> None:
    logits, targets = made(4, 30, 7), torch.arange(30) % 7
    logits = logits.round() if tied else logits
    labels = np.arange(7)
    expected = [float(sk.top_k_accuracy_score(targets, lane.numpy(), k=k, labels=labels)) for lane in logits]
    close(named(f"top_{k}_accuracy", targets).compute(logits, targets), expected)


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regression_scores_as_in_scikit_learn(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    outputs, targets = made(4, *shape).to(dtype), made(*shape, seed=1).to(dtype)
    expected = [REGRESSION[name](targets.double(), lane.double()) for lane in outputs]
    close(named(name, targets).compute(outputs, targets), expected)


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize(("output", "target"), [((9, 1), (9,)), ((9,), (9, 1))])
def test_a_column_and_a_vector_are_the_same_and_never_broadcast(
    name: str, output: tuple[int, ...], target: tuple[int, ...]
) -> None:
    outputs, targets = made(2, *output), made(*target, seed=1)
    expected = [REGRESSION[name](targets.flatten().double(), lane.flatten().double()) for lane in outputs]
    close(named(name, targets).compute(outputs, targets), expected)


def test_r2_of_a_constant_target_is_as_in_scikit_learn() -> None:
    targets = torch.stack([torch.ones(5), torch.arange(5.0)], dim=1)
    outputs = torch.stack([targets, targets + 1])
    expected = [REGRESSION["r2"](targets, lane) for lane in outputs]
    close(named("r2", targets).compute(outputs, targets), expected)


@pytest.mark.parametrize("name", [*CLASSIFICATION, "top_2_accuracy", *REGRESSION])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_lane_that_is_not_finite_stays_alone(name: str, bad: float) -> None:
    targets = torch.arange(12) % 4 if name not in REGRESSION else made(12, seed=1)
    outputs = made(3, 12, 4) if name not in REGRESSION else made(3, 12)
    metric = named(name, targets)
    clean = metric.compute(outputs, targets)
    outputs[1, 5] = bad
    values = metric.compute(outputs, targets)
    assert torch.equal(values[[0, 2]], clean[[0, 2]])
    assert not math.isnan(bad) or bool(values[1].isnan())


def test_binary_logits_with_nan_score_nan() -> None:
    targets = torch.tensor([0, 1, 1, 1])
    values = named("accuracy", targets).compute(torch.tensor([[math.nan, 1, 1, 1], [-1, 1, 1, 1]]), targets)
    assert bool(values[0].isnan()) and values[1] == 1.0


@pytest.mark.parametrize(
    ("metric", "targets", "direction", "expected"),
    [
        (None, INTS, None, ("accuracy", "maximize")),
        (None, FLOATS, None, None),
        (None, INTS[:, None], None, None),
        (None, None, None, None),
        ("loss", None, None, None),
        ("loss", INTS, "maximize", None),
        ("mae", FLOATS, None, ("mae", "minimize")),
        ("mae", INTS, None, ("mae", "minimize")),
        ("r2", FLOATS, None, ("r2", "maximize")),
        ("f1_weighted", INTS, None, ("f1_weighted", "maximize")),
        ("accuracy", INTS, "minimize", ("accuracy", "minimize")),
        ("top_3_accuracy", INTS, None, ("top_3_accuracy", "maximize")),
    ],
)
def test_resolve(
    metric: str | None, targets: Tensor | None, direction: Direction | None, expected: tuple[str, str] | None
) -> None:
    found = resolve(metric, targets=targets, direction=direction)
    assert (found and (found.name, found.direction)) == expected


@pytest.mark.parametrize(
    ("targets", "names"),
    [(INTS, ["accuracy", "f1"]), (FLOATS, ["mae", "rmse", "r2"]), (None, []), (INTS[:, None], [])],
)
def test_standard_metrics(targets: Tensor | None, names: list[str]) -> None:
    assert [metric.name for metric in standard_metrics(targets)] == names


def bias(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs - targets).mean())


def test_a_callable_sees_one_lane_at_a_time() -> None:
    metric = resolve(bias, targets=FLOATS, direction="minimize")
    assert metric is not None and (metric.name, metric.direction) == ("bias", "minimize")
    close(metric.compute(torch.stack([FLOATS, FLOATS + 1, FLOATS - 2]), FLOATS), [0.0, 1.0, -2.0])


def test_a_callable_may_return_a_tensor_of_one_number_and_have_no_name() -> None:
    metric = resolve(lambda outputs, targets: outputs.max(), targets=None, direction="maximize")
    assert metric is not None and metric.name == "metric"
    close(metric.compute(torch.tensor([[1.0, 2.0], [4.0, 3.0]]), FLOATS[:2]), [2.0, 4.0])


def test_a_callable_may_fail_only_on_outputs_that_are_not_finite() -> None:
    def strict(outputs: Tensor, targets: Tensor) -> float:
        if bool((outputs > 5).any()) or bool(outputs.isnan().any()):
            raise ValueError("too much")
        return 1.0

    metric = resolve(strict, targets=FLOATS, direction="maximize")
    assert metric is not None
    values = metric.compute(torch.tensor([[0.0, math.nan], [0.0, 1.0]]), FLOATS[:2])
    assert bool(values[0].isnan()) and values[1] == 1.0
    with pytest.raises(ValueError, match="too much"):
        metric.compute(torch.tensor([[0.0, 9.0]]), FLOATS[:2])


@pytest.mark.parametrize("value", ["0.5", None, torch.zeros(2)])
def test_a_callable_must_return_a_number(value: object) -> None:
    metric = resolve(lambda outputs, targets: value, targets=FLOATS, direction="minimize")  # type: ignore[arg-type,return-value]
    assert metric is not None
    with pytest.raises(UsageError, match="must return one number per call; got"):
        metric.compute(made(2, 4), FLOATS)


@pytest.mark.parametrize(
    ("metric", "targets", "direction", "message"),
    [
        ("acuracy", INTS, None, "Unknown metric 'acuracy'. Did you mean 'accuracy'?"),
        ("top_k_accuracy", INTS, None, "Did you mean 'top_5_accuracy'?"),
        ("top_0_accuracy", INTS, None, "Unknown metric 'top_0_accuracy'"),
        ("accuracy", FLOATS, None, "needs classes as targets: integers"),
        ("top_5_accuracy", FLOATS, None, "needs classes as targets: integers"),
        ("f1", torch.full((4, 3), 0.5), None, "needs classes as targets: integers"),
        ("mae", torch.zeros(4, dtype=torch.complex64), None, "needs real targets; got torch.complex64"),
        ("accuracy", None, None, "the data has none"),
        (bias, FLOATS, None, "metric 'bias' is a callable, so say what is better"),
        (3, FLOATS, None, "must be a name or a callable"),
        ("mae", FLOATS, "down", "direction must be 'minimize' or 'maximize'; got 'down'"),
    ],
)
def test_nonsense_is_refused(metric: str, targets: Tensor | None, direction: Direction | None, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve(metric, targets=targets, direction=direction)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "message"),
    [
        ("r2", made(2, 4, 3), INTS, "needs outputs of the targets' shape: targets are (4,), outputs (4, 3)"),
        ("mse", made(2, 1, 4), FLOATS, "needs outputs of the targets' shape"),
        ("accuracy", made(2, 4, 3, 2), INTS, "needs logits (n, C), or binary logits (n,) or (n, 1)"),
        ("accuracy", made(2, 4, 3), INTS.clamp(max=1).float(), "needs logits (n, C), or binary logits (n,) or (n, 1)"),
        ("accuracy", made(2, 4, 2), INTS, "targets have class 2, but the outputs have 2 classes"),
        ("f1", made(2, 4), INTS, "targets have class 2, but the outputs have 2 classes"),
        ("top_3_accuracy", made(2, 4, 3), INTS, "needs more than 3 classes"),
        ("top_1_accuracy", made(2, 4), INTS.clamp(max=1), "needs more than 1 classes"),
    ],
)
def test_outputs_that_do_not_suit_are_refused(name: str, outputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        named(name, targets).compute(outputs, targets)
