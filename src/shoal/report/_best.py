"""The best configuration, how sure one can be of it, and who came next, as plain HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any, Final

from shoal._text import format_param
from shoal.optimism import optimism
from shoal.records import StudyRecord, TrialRecord, TrialState
from shoal.report._comparison import comparison_section
from shoal.report._html import grid, note, pairs
from shoal.report._numbers import metric_name, text

N_RUNNERS_UP: Final = 8
# Half the width of a 95 % interval of a normal distribution, in standard errors.
_Z: Final = 1.959964


def best_section(record: StudyRecord) -> str:
    """Parameters and scores of the best trial, the sentence on how sure they are, and the trials behind it."""
    best = record.best()
    if best is None:
        return note("No trial has finished yet, so there is no best configuration.")
    several = len(record.directions) > 1
    # Parameters in full and not rounded: this is where people copy them from.
    parts = [pairs("Parameters", {name: _exact(value) for name, value in best.spec.params.items()})]
    lanes = lanes_in_words(record)
    title = f"Validation, epoch {best.epoch}" + (f", mean over {lanes}" if lanes else "")
    parts.append(pairs(title, _validation(record, best)))
    test = record.meta.get("test")
    if isinstance(test, dict) and test:
        intervals = _intervals(record, best, "test")
        names = [*[name for name in (metric_name(record),) if name in test], *test]
        parts.append(pairs(_title("Test", record, best, "test"), {n: _scored(n, test[n], intervals) for n in names}))
    columns = f'<div class="columns">{"".join(parts)}</div>'
    return (
        (note(f"Of the Pareto front below, the trial with the best {metric_name(record)}.") if several else "")
        + columns
        + _sureness(record, best)
        + comparison_section(record)
        + ("" if several else _runners_up(record, best))
        + _snippet(record, best)
    )


def interval_of(record: StudyRecord, split: str) -> tuple[float, float, int] | None:
    """Ends of the interval of the study's own metric on a split of the winner, and the split's size."""
    best = record.best()
    if best is None:
        return None
    found = _intervals(record, best, split).get(metric_name(record))
    size = _split(record, best, split).get("n")
    return (*found, size) if found is not None and isinstance(size, int) else None


def _split(record: StudyRecord, best: TrialRecord, split: str) -> Mapping[str, Any]:
    """What ``meta["winner"]`` says of a split, if it speaks of this very trial."""
    winner = record.meta.get("winner")
    if not isinstance(winner, dict) or winner.get("trial") != best.spec.number:
        return {}
    found = winner.get(split)
    return found if isinstance(found, dict) else {}


def _intervals(record: StudyRecord, best: TrialRecord, split: str) -> dict[str, tuple[float, float]]:
    scores = _split(record, best, split).get("scores")
    found: dict[str, tuple[float, float]] = {}
    for name, score in scores.items() if isinstance(scores, dict) else ():
        low, high = (score.get("low"), score.get("high")) if isinstance(score, dict) else (None, None)
        if isinstance(low, int | float) and isinstance(high, int | float):
            found[name] = (float(low), float(high))
    return found


def _title(word: str, record: StudyRecord, best: TrialRecord, split: str) -> str:
    size = _split(record, best, split).get("n")
    return f"{word}, {size:,} samples, 95 % interval" if isinstance(size, int) else word


def _scored(name: str, value: object, intervals: Mapping[str, tuple[float, float]]) -> str:
    if name not in intervals:
        return text(value)
    low, high = intervals[name]
    return f"{text(value)}  ({_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _validation(record: StudyRecord, best: TrialRecord) -> dict[str, str]:
    metric, intervals = metric_name(record), _intervals(record, best, "valid")
    scores: dict[str, str] = {metric: _scored(metric, best.value, intervals)}
    row = best.judged
    if row is not None:
        if row.standard_error is not None:
            scores[metric] += f"  (standard error {_short(row.standard_error)})"
        scores.update({name: text(value) for name, value in row.metrics.items() if name != metric})
        scores["train loss"] = text(row.train_loss)
    return scores


def _sureness(record: StudyRecord, best: TrialRecord) -> str:
    """What the numbers can carry: the interval, and how many trials the validation split cannot tell from the best."""
    sentences: list[str] = []
    held_out = interval_of(record, "test")
    if held_out is not None:
        low, high, size = held_out
        sentences.append(
            f"On {size:,} held-out samples that no trial was chosen by, {metric_name(record)} lies between {_short(low)} "
            f"and {_short(high)} with 95 % confidence (over samples; another training run may differ more)."
        )
    judged = interval_of(record, "valid")
    finished = [t for t in record.trials if t.state is TrialState.FINISHED and t.value is not None]
    if judged is not None and best.value is not None and len(finished) > 1:
        low, high, size = judged
        error = (high - low) / (2 * _Z)
        near = sum(abs((t.value or 0.0) - best.value) <= error for t in finished) - 1
        sentences.append(
            f"Its validation value has a standard error of {error:.2g} ({size:,} samples): "
            + (
                f"{near} other finished trial{'s lie' if near != 1 else ' lies'} within it, so the order among them is "
                "not settled."
                if near
                else "no other finished trial lies within it."
            )
            + " The best of many trials is also a little lucky, so expect somewhat worse than its validation value."
        )
    sentences += _luck(record)
    if not sentences:
        return ""
    return f'<p class="sure">{escape(" ".join(sentences))}</p>'


def _luck(record: StudyRecord) -> list[str]:
    """What the folds say of the winner: how far its mean may be off, and how much of it is the luck of the best."""
    known, lanes = optimism(record), lanes_in_words(record)
    if known is None or not lanes:
        return []
    sentences = []
    if known.standard_error is not None:
        sentences.append(
            f"Its validation value is the mean over {lanes}, with a standard error of {_short(known.standard_error)}"
            + ("; folds share training rows, so that is somewhat too small." if "fold" in lanes else ".")
        )
    if known.corrected is not None and known.n_trials > 1:
        sentences.append(
            f"As the best of {known.n_trials:,} finished trials it is also a little lucky: chosen by some folds and looked at in "
            f"the others, the best has {text(known.corrected)} rather than {text(known.value)} (bootstrap over folds, after "
            "Tsamardinos et al. 2018)."
        )
    return sentences


def lanes_in_words(record: StudyRecord) -> str:
    """ "5 folds under 3 seeds", or nothing where each trial is a single lane."""
    folds = record.meta.get("folds")
    if not isinstance(folds, dict):
        return ""
    n_folds, n_seeds = folds.get("n"), folds.get("seeds")
    words = [f"{n_folds} folds" if isinstance(n_folds, int) and n_folds else ""]
    words.append(f"{n_seeds} seeds" if isinstance(n_seeds, int) and n_seeds > 1 else "")
    return " under ".join(word for word in words if word)


def _runners_up(record: StudyRecord, best: TrialRecord) -> str:
    """The trials behind the best: finished ones, and then, where those are few, the best of the stopped ones."""
    sign = 1.0 if record.direction == "minimize" else -1.0
    valued = [
        t
        for t in record.trials
        if t.state in (TrialState.FINISHED, TrialState.STOPPED) and t.value is not None and math.isfinite(t.value)
    ]
    valued.sort(key=lambda t: (t.state is TrialState.STOPPED, sign * (t.value or 0.0), t.spec.number))
    ranked = valued[: N_RUNNERS_UP + 1]
    if len(ranked) < 2 or best.value is None:
        return ""
    names = list(dict.fromkeys(name for t in ranked for name in t.spec.params))
    rows = []
    for trial in ranked:
        gap = (trial.value or 0.0) - best.value
        behind = "" if trial.spec.number == best.spec.number else ("tied" if gap == 0 else f"{gap:+.3g}")
        values = [format_param(trial.spec.params[n]) if n in trial.spec.params else "-" for n in names]
        length = f"{trial.epoch}, stopped" if trial.state is TrialState.STOPPED else str(trial.epoch)
        rows.append([f"Trial {trial.spec.number}", text(trial.value), behind, length, *values])
    head = ["", metric_name(record), "to the best", "epochs", *names]
    return "<h3>The best and the runners-up</h3>" + grid("Parameters and values, best first", head, rows, marked=0)


def _snippet(record: StudyRecord, best: TrialRecord) -> str:
    weights = record.meta.get("weights")
    file = weights.get(str(best.spec.number)) if isinstance(weights, dict) else None
    if not isinstance(file, str):
        return note("The study kept no weights of this trial.")
    code = (
        "from safetensors.torch import load_file\n"
        "model = ...  # the same nn.Module that define() builds from the parameters above\n"
        f"model.load_state_dict(load_file({file!r}))"
    )
    return (
        "<h3>Load its weights in plain PyTorch</h3>"
        f'<div class="code"><pre tabindex="0"><code id="snippet">{escape(code)}</code></pre>'
        '<button type="button" id="copy" aria-label="Copy the snippet">Copy</button></div>'
    )


def _exact(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)
