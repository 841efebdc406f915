"""What a study file would run, in a few lines: data, model, space, search, storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from shoal import schedulers
from shoal._text import format_number
from shoal.replay import run_define
from shoal.spaces import probe
from shoal.study_file._ready import ReadyStudy

_LABEL: Final = 12


def summary(ready: ReadyStudy) -> str:
    """Text for people, one fact per line."""
    keywords, data = ready.keywords, ready.data
    parts = [("train", data.train), ("validation", data.valid), ("test", data.test)]
    sizes = ", ".join(f"{split.n:,} {name}" for name, split in parts if split is not None)
    if (folds := keywords.get("folds")) is not None:
        held = f", {data.test.n:,} test" if data.test is not None else ""
        sizes = f"{data.train.n + data.valid.n:,} in {folds} folds{held}"
    rows = [("data", f"{ready.file.given.get('data') or ready.file.given['define']}: {sizes}")]
    if ready.file.source != "code":
        rows.append(("target", _target(ready.source.target)))

    def define(trial: Any) -> Any:
        recipe = run_define(ready.source.define, trial, 0, data.train.n)
        n_parameters.append(sum(p.numel() for p in recipe.model.parameters()))
        return recipe

    n_parameters: list[int] = []
    space, _ = probe(define)
    if n_parameters:
        low, high = min(n_parameters), max(n_parameters)
        rows.append(("model", f"{low:,} parameters" if low == high else f"{low:,} to {high:,} parameters"))
    rows += [("space" if i == 0 else "", f"{name}: {_values(d)}") for i, (name, d) in enumerate(sorted(space.items()))]
    trials = f"{keywords.get('n_trials', 100):,} trials of at most {keywords.get('max_epochs', 30):,} epochs"
    sampler = keywords.get("sampler", "tpe")
    name = sampler["name"] if isinstance(sampler, dict) else sampler
    several = isinstance(keywords.get("metric"), list) and len(keywords["metric"]) > 1
    scheme = schedulers.resolve(
        keywords.get("scheduler") or ("none" if several else None),
        max_epochs=keywords.get("max_epochs", 30),
        n_trials=keywords.get("n_trials", 100),
    )
    rows.append(("search", f"{trials}, sampler {name}, scheduler {scheme.name}"))
    limits = ("timeout_s", "max_total_epochs", "target_value", "patience_trials")
    said = [f"{limit} {keywords[limit]}" for limit in limits if keywords.get(limit) is not None]
    if said:
        rows.append(("ends at", ", ".join(said)))
    metric = keywords.get("metric")
    rows.append(
        (
            "metric",
            ", ".join(metric) if isinstance(metric, list) else str(metric or "accuracy for classes, else the loss"),
        )
    )
    if keywords.get("constraints"):
        rows.append(("constraints", ", ".join(keywords["constraints"])))
    rows.append(("storage", _storage(keywords.get("storage"))))
    return "\n".join(f"{label:<{_LABEL}}{text}" for label, text in rows)


def _target(target: Any) -> str:
    names = ", ".join(target.names)
    if target.task != "classes":
        return f"{names} ({target.task})"
    shown = ", ".join(target.values[:8]) + (", ..." if len(target.values) > 8 else "")
    return f"{names}, {len(target.values)} classes: {shown}"


def _values(distribution: Any) -> str:
    if not hasattr(distribution, "low"):
        return " or ".join(json.dumps(choice) for choice in distribution.choices)
    ends = f"{format_number(distribution.low)} to {format_number(distribution.high)}"
    step = getattr(distribution, "step", None)
    return ends + (" (logarithmic)" if distribution.log else f" in steps of {step}" if step not in (None, 1) else "")


def _storage(storage: Any) -> str:
    if storage is None:
        return "in memory"
    text = str(storage)
    path = Path(text.removeprefix("sqlite:///"))
    if "://" in text and not text.startswith("sqlite:///"):
        from shoal.storage import shown

        return shown(text)  # a password is not printed
    return f"{text} ({'exists: the study in it goes on' if path.exists() else 'new'})"
