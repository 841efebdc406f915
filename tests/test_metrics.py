"""Metrics over lanes against scikit-learn, one lane at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from shoal import memory
from shoal.errors import UsageError
from shoal.metrics import Meter, Metric, further, resolve, standard_metrics
from shoal.records import Direction

Oracle = Callable[[Tensor, Tensor], float]


def averaged(score: Callable[..., float], average: str) -> Oracle:
    return lambda truth, predicted: float(score(truth, predicted, average=average, zero_division=0))


CLASSIFICATION: dict[str, Oracle] = {"accuracy": lambda truth, predicted: float(sk.accuracy_score(truth, predicted))}
for metric_name, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
    CLASSIFICATION[metric_name] = averaged(function, "macro")
    for kind in ("micro", "weighted"):
        CLASSIFICATION[f"{metric_name}_{kind}"] = averaged(function, kind)

CLASSIFICATION["mcc"] = lambda truth, predicted: float(sk.matthews_corrcoef(truth, predicted))
CLASSIFICATION["kappa"] = lambda truth, predicted: float(sk.cohen_kappa_score(truth, predicted))
CLASSIFICATION["balanced_accuracy"] = lambda truth, predicted: float(
    sk.recall_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0)
)
for metric_name, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
    CLASSIFICATION[f"{metric_name}_macro"] = averaged(function, "macro")
    CLASSIFICATION[f"{metric_name}_class_1"] = lambda truth, predicted, f=function: float(  # type: ignore[misc]
        f(truth, predicted, average=None, labels=[0, 1], zero_division=0)[1]
    )

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
    [
        (INTS, ["accuracy", "f1"]),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0]]), ["accuracy", "f1"]),
        (FLOATS, ["mae", "rmse", "r2"]),
        (None, []),
        (INTS[:, None], []),
    ],
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


# --- scores ------------------------------------------------------------------------------------------------------


def auroc(truth: Tensor, scores: Tensor) -> float:
    return float(sk.roc_auc_score(truth, scores))


def average_precision(truth: Tensor, scores: Tensor) -> float:
    return float(sk.average_precision_score(truth, scores))


RANKED = {"auroc": auroc, "average_precision": average_precision}


@settings(deadline=None, max_examples=60)
@given(
    scores=st.lists(st.lists(st.integers(-4, 4), min_size=12, max_size=12), min_size=1, max_size=3),
    truth=st.lists(st.booleans(), min_size=12, max_size=12).filter(lambda t: 0 < sum(t) < 12),
    column=st.booleans(),
    floating=st.booleans(),
)
def test_ranks_of_binary_scores_are_exact_with_ties(
    scores: list[list[int]], truth: list[bool], column: bool, floating: bool
) -> None:
    outputs = torch.tensor(scores, dtype=torch.float32)
    targets = torch.tensor(truth).to(torch.float32 if floating else torch.int64)
    for name, oracle in RANKED.items():
        expected = [oracle(targets, lane) for lane in outputs]
        shown = outputs[..., None] if column else outputs
        close(named(name, targets).compute(shown, targets), expected)
        # A probability ranks as its logit does.
        close(named(name, targets).compute((shown.double() * 3).sigmoid(), targets), expected)


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("as_probabilities", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_ranks_of_classes_against_the_rest(name: str, as_probabilities: bool, n_classes: int) -> None:
    logits, targets = made(4, 40, n_classes).double(), torch.arange(40) ** 2 % 7 % n_classes
    chances = logits.softmax(2)
    shown = chances if as_probabilities else logits
    plain, by_support = [], []
    for lane in chances:
        if n_classes == 2:
            each = [RANKED[name](targets, lane[:, 1])]
            support = [1.0]
        else:
            present = [k for k in range(n_classes) if bool((targets == k).any())]
            each = [RANKED[name]((targets == k).int(), lane[:, k]) for k in present]
            support = [float((targets == k).sum()) for k in present]
        plain.append(sum(each) / len(each))
        by_support.append(float(np.average(each, weights=support)))
    close(named(name, targets).compute(shown, targets), plain)
    close(named(f"{name}_weighted", targets).compute(shown, targets), by_support)
    if name == "auroc" and n_classes == 3:
        close(
            named(name, targets).compute(shown, targets),
            [sk.roc_auc_score(targets, c, multi_class="ovr") for c in chances],
        )


@pytest.mark.parametrize("n_classes", [1, 2, 4])
@pytest.mark.parametrize("as_probabilities", [False, True])
def test_log_loss_scores_as_in_scikit_learn(n_classes: int, as_probabilities: bool) -> None:
    targets = torch.arange(24) % max(2, n_classes)
    logits = made(3, 24, n_classes).double()
    chances = logits.sigmoid() if n_classes == 1 else logits.softmax(2)
    expected = [float(sk.log_loss(targets, lane.squeeze(1) if n_classes == 1 else lane)) for lane in chances]
    found = named("log_loss", targets)
    assert found.direction == "minimize"
    scale = "probabilities" if as_probabilities else "logits"
    close(found.compute(chances if as_probabilities else logits, targets, scale), expected)  # type: ignore[arg-type]


def test_log_loss_of_a_certain_mistake_is_large_and_finite() -> None:
    targets = torch.tensor([0, 1])
    sure = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    close(named("log_loss", targets).compute(sure, targets), [float(sk.log_loss(targets, sure[0]))])


@pytest.mark.parametrize("name", ["auroc", "average_precision", "log_loss", "f1_class_2", "balanced_accuracy", "mcc"])
def test_ignored_targets_do_not_count_for_scores_either(name: str) -> None:
    logits, targets = made(3, 30, 4), torch.arange(30) % 4
    kept = torch.arange(30) % 5 > 0
    metric = named(name, targets)
    holes = targets.masked_fill(~kept, -100)
    torch.testing.assert_close(metric.compute(logits, holes), metric.compute(logits[:, kept], targets[kept]))


# --- several labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("scale", ["logits", "probabilities"])
def test_several_labels_score_as_in_scikit_learn(dtype: torch.dtype, scale: str) -> None:
    logits, truth = made(4, 25, 3).double(), (made(25, 3, seed=2) > 0.5).to(dtype)
    truth[:, 2] = 0  # never true
    shown = logits if scale == "logits" else logits.sigmoid()
    oracles: dict[str, Callable[[Tensor], float]] = {
        "accuracy": lambda lane: float(sk.accuracy_score(truth.int(), lane > 0)),
    }
    for score, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        for average in ("macro", "micro", "weighted"):
            oracles[f"{score}_{average}"] = lambda lane, f=function, a=average: float(  # type: ignore[misc]
                f(truth.int(), (lane > 0).int(), average=a, zero_division=0)
            )
        oracles[f"{score}_class_1"] = lambda lane, f=function: float(  # type: ignore[misc]
            f(truth.int(), (lane > 0).int(), average=None, zero_division=0)[1]
        )
    for name, oracle in RANKED.items():
        oracles[name] = lambda lane, f=oracle: (f(truth[:, 0], lane[:, 0]) + f(truth[:, 1], lane[:, 1])) / 2  # type: ignore[misc]
    for name, expected in oracles.items():
        found = named(name, truth).compute(shown, truth, scale)  # type: ignore[arg-type]
        close(found, [expected(lane) for lane in logits])


def test_binary_pixels_are_places() -> None:
    logits, truth = made(2, 5, 1, 3, 3), (made(5, 1, 3, 3, seed=3) > 0).float()
    expected = [float(sk.f1_score(truth.flatten(), lane.flatten() > 0, average="macro")) for lane in logits]
    close(named("f1", truth).compute(logits, truth), expected)
    close(named("f1", truth[:, 0].long()).compute(logits, truth[:, 0].long()), expected)


# --- chunks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "outputs", "targets"),
    [
        (["accuracy", "f1", "mcc", "top_2_accuracy", "auroc", "log_loss", "average_precision_weighted"],
         made(3, 50, 5), torch.arange(50) % 5),
        (["mae", "mse", "rmse", "r2"], made(3, 50, 2), made(50, 2, seed=1)),
        (["accuracy", "f1_micro", "auroc"], made(3, 50, 4), (made(50, 4, seed=1) > 0).float()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_a_file", [False, True])
def test_chunks_add_up_to_the_whole(
    names: list[str], outputs: Tensor, targets: Tensor, in_a_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_a_file:
        monkeypatch.setattr(memory, "limit_bytes", lambda: 0)
    metrics = [named(name, targets) for name in names]
    meter = Meter(metrics, targets)
    for part in torch.split(outputs, 16, dim=1):
        meter.add(part)
    for name, values in meter.results().items():
        torch.testing.assert_close(values, named(name, targets).compute(outputs, targets), rtol=1e-12, atol=1e-14)


def test_lanes_are_ranked_in_groups_that_fit_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.metrics import _meter

    logits, targets = made(7, 20, 3), torch.arange(20) % 3
    expected = named("auroc", targets).compute(logits, targets)
    monkeypatch.setattr(_meter, "_GROUP_BYTES", 2 * 20 * 3 * 8)
    assert torch.equal(named("auroc", targets).compute(logits, targets), expected)


def test_what_was_not_asked_for_is_left_out_where_it_does_not_suit() -> None:
    targets = torch.arange(12) % 4
    meter = Meter(standard_metrics(targets), targets)
    meter.add(made(2, 12, 2))  # an embedding, say: two numbers for four classes
    assert meter.results() == {}
    asked = Meter([named("accuracy", targets), *standard_metrics(targets)[1:]], targets)
    with pytest.raises(UsageError, match="metric 'accuracy': targets have class 3, but the outputs have 2 classes"):
        asked.add(made(2, 12, 2))


def test_outputs_need_a_row_per_sample() -> None:
    targets = torch.arange(12) % 4
    for outputs in (made(2), made(2, 3, 4)):
        with pytest.raises(UsageError, match="metric 'accuracy' needs one row of outputs per sample: 12 samples gave"):
            Meter([named("accuracy", targets)], targets).add(outputs, 12)


def test_further_metrics_need_no_direction() -> None:
    found = further(["auroc", "loss", bias], targets=INTS.clamp(max=1))
    assert [metric.name for metric in found] == ["auroc", "bias"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("f1", "metrics must be a list of names and callables to record, such as ['f1']; got 'f1'"),
        ([3], "each of metrics must be a name or a callable"),
        (["f1_mcro"], "Unknown metric 'f1_mcro'. Did you mean 'f1_micro'?"),
        (["f1", "f1"], "metrics has 'f1' twice"),
        (["roc_auc"], "Unknown metric 'roc_auc'. Did you mean 'auroc'?"),
    ],
)
def test_nonsense_among_further_metrics_is_refused(metrics: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        further(metrics, targets=INTS)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "message"),
    [
        ("auroc", made(2, 4, 3), torch.zeros(4).long(), "needs targets of at least two classes in the split"),
        ("f1_class_7", made(2, 4, 3), INTS, "there is no class 7; the outputs have 3 classes (0 to 2)"),
        ("mcc", made(2, 4, 3), torch.ones(4, 3), "needs one class per sample; these targets have several labels"),
        ("kappa", made(2, 4, 3), torch.ones(4, 3), "metric 'kappa' needs one class per sample"),
        ("balanced_accuracy", made(2, 4, 3), torch.ones(4, 3), "Take f1, auroc or average_precision"),
        ("log_loss", made(2, 4, 3), torch.ones(4, 3), "needs one class per sample; these targets have several labels"),
        ("f1", made(2, 4, 3), torch.full((4, 3), 2), "its target must be 0 or 1; the targets go from 2 to 2"),
    ],
)
def test_scores_that_make_no_sense_are_refused(name: str, outputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        named(name, targets).compute(outputs, targets)


def test_a_constant_guess_has_no_kappa_and_no_correlation() -> None:
    targets = torch.ones(5).long()
    logits = torch.tensor([0.0, 1.0]).expand(1, 5, 2)
    for name in ("kappa", "mcc"):
        close(named(name, targets).compute(logits, targets), [0.0])
