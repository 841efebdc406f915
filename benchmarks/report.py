"""The report of a study with many trials, in a headless Chromium: its size, the time to open it, to sort and to search.

*Opened* is the load event; *drawn* is when the main thread is free after the first screen has been painted, its figures
included. Both count from the beginning of the navigation.

Run ``python benchmarks/report.py --n 10000 --epochs 30``. The study is made up, with six hyperparameters; what is measured
does not depend on what was trained.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from shoal.records import EpochRow, Event, ParamValue, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.report import write_report


def study(n_trials: int, n_epochs: int, stops: bool = True) -> StudyRecord:
    """Trials with six hyperparameters, two thirds of them stopped after a fifth of their epochs if some are stopped."""
    draw = random.Random(0)
    number = {"name": "FloatDistribution", "attributes": {"step": None, "low": 1e-4, "high": 0.1, "log": True}}
    choices: dict[str, list[ParamValue]] = {
        "optimizer": ["sgd", "adam", "rmsprop"],
        "activation": ["relu", "tanh", "gelu"],
        "width": [32, 64],
    }
    space = {name: json.dumps(number) for name in ("lr", "weight_decay", "dropout")}
    space |= {name: json.dumps({"attributes": {"choices": values}}) for name, values in choices.items()}
    trials, events = [], []
    for i in range(n_trials):
        params: dict[str, ParamValue] = {name: draw.uniform(1e-4, 0.1) for name in ("lr", "weight_decay", "dropout")}
        params |= {name: draw.choice(values) for name, values in choices.items()}
        state = TrialState.STOPPED if stops and i % 3 else TrialState.FINISHED
        length = max(1, n_epochs // 5) if state is TrialState.STOPPED else n_epochs
        top = draw.uniform(0.5, 0.99)
        rows = tuple(
            EpochRow(i, e, 2 / e, top * (1 - 0.7**e), {"loss": 2.3 / e, "accuracy": top * (1 - 0.7**e)}, 0.1 * e)
            for e in range(1, length + 1)
        )
        spec = TrialSpec(i, i, params, space)
        trials.append(TrialRecord(spec, state, rows[-1].value, length, "", rows, 0.01 * i + 1))
        events.append(Event(i, "admitted", i, 0, i % 64, time_s=0.01 * i))
        events.append(Event(i, "left", i, 0, i % 64, time_s=0.01 * i + 0.3))
    return StudyRecord("many", "maximize", tuple(trials), tuple(events), {"metric": "accuracy"})


WATCH = """
    window.longest = 0;
    new PerformanceObserver((list) => {
        for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
    }).observe({ type: "longtask", buffered: true });
    addEventListener("load", () => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => {
        window.drawn = performance.now();
    }))));
"""

SEARCH = """(text) => {
    const began = performance.now(), field = document.getElementById("search");
    field.value = text;
    field.dispatchEvent(new Event("input"));
    // The page waits 150 ms for more letters.
    return new Promise((done) => setTimeout(() => requestAnimationFrame(() => setTimeout(() => {
        done(performance.now() - began);
    })), 151));
}"""

# Every figure once, and the longest that the page did not answer meanwhile.
SCROLL = """async () => {
    window.longest = 0;
    for (let y = 0; y < document.documentElement.scrollHeight; y += 400) {
        scrollTo(0, y);
        await new Promise((done) => setTimeout(done, 50));
    }
    return window.longest;
}"""

SORT = """(name) => {
    const began = performance.now();
    [...document.querySelectorAll("#trials th button")].find((one) => one.title === name).click();
    document.body.getBoundingClientRect();  // lays the rows out
    return performance.now() - began;
}"""


def main() -> int:
    """Measure, and print a row per time that the page is opened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="trials")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--no-stops", action="store_true", help="every trial trains all epochs")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    browser = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if browser is None:
        print("needs Chromium", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    record = study(arguments.n, arguments.epochs, stops=not arguments.no_stops)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        began = time.process_time()
        path = write_report(record, Path(folder) / "report.html", {"lr": 0.6, "optimizer": 0.4})
        took_s, size_mb = time.process_time() - began, path.stat().st_size / 1e6
        print(f"{arguments.n} trials, written in {took_s:.1f} s of CPU: {size_mb:.1f} MB")
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(arguments.repeats):
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            page.add_init_script(WATCH)
            page.goto(path.as_uri())
            opened_ms = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
            page.wait_for_function("window.drawn > 0")
            drawn_ms, nodes = page.evaluate("[window.drawn, document.querySelectorAll('*').length]")
            sorts = ", ".join(f"{name} {page.evaluate(SORT, name):.0f}" for name in ("accuracy", "lr", "optimizer"))
            searches = ", ".join(f"{text} {page.evaluate(SEARCH, text):.0f}" for text in ("lr<0.01", "gelu", ""))
            longest_ms = page.evaluate(SCROLL)
            print(
                f"opened in {opened_ms:.0f} ms, drawn in {drawn_ms:.0f} ms, {nodes} elements; sorted in ms: {sorts}; "
                f"searched in ms: {searches}; scrolled through with at most {longest_ms:.0f} ms without an answer"
            )
            page.close()
        chromium.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
