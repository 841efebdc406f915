"""The report in a real browser: what is drawn, what the keyboard can do, and that 10,000 trials open and sort at once."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shoal.records import EpochRow, Event, Json, ParamValue, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.report import render_report, write_report
from shoal.watching import LivePage, WatchServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
# On a developer's machine a browser is optional; where all checks run, its absence must not look like success.
pytestmark = pytest.mark.skipif(
    BROWSER is None and os.environ.get("SHOAL_BROWSER") != "required", reason="needs Chromium"
)

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--"
LR = json.dumps({"name": "FloatDistribution", "attributes": {"step": None, "low": 1e-4, "high": 0.1, "log": True}})
SPACE = {"lr": LR, "opt imizer": json.dumps({"attributes": {"choices": ["sgd", "adam", HOSTILE]}}), HOSTILE: LR}
SIZES = {"desk": (1280, 900), "tablet": (820, 1100), "phone": (390, 844)}
RESIDUALS: dict[str, Json] = {
    "n": 9,
    "mean": 0.1,
    "std": 1.0,
    "quantiles": {q: 0.0 for q in ("0.05", "0.25", "0.5", "0.75", "0.95")},
    "range": [-1.0, 1.0],
    "grid": [[1, 0, 0], [0, 5, 1], [0, 0, 2]],
    "span": [-2.0, 2.0],
    "counts": [1, 6, 2],
}


CLASSES: dict[str, Json] = {
    "names": ["cat", HOSTILE, "a class with quite a long name"],
    "matrix": [[8, 1, 1], [0, 5, 5], [0, 0, 9]],
    "hits": [8, 5, 9],
    "predicted": [8, 6, 15],
    "support": [10, 10, 9],
}


def study(n_trials: int, n_epochs: int, meta: dict[str, Json] | None = None) -> StudyRecord:
    """Trials whose value follows from their parameters, a third of them stopped early, some failed, some diverged."""
    draw = random.Random(0)
    trials, events = [], []
    for i in range(n_trials):
        lr = 10 ** draw.uniform(-4, -1)
        params: dict[str, ParamValue] = {"lr": lr, "opt imizer": draw.choice(["sgd", "adam", HOSTILE]), HOSTILE: lr / 2}
        top = 0.97 - 0.05 * (math.log10(lr) + 2) ** 2
        state = (TrialState.FINISHED, TrialState.FINISHED, TrialState.STOPPED)[i % 3]
        length = n_epochs if state is TrialState.FINISHED else max(1, n_epochs // 5)
        rows = tuple(
            EpochRow(
                i,
                e,
                2 / e,
                top * (1 - 0.5**e),
                {"loss": math.nan if i == 5 else 2.3 / e},
                e * 0.1,
                trajectories={"lr": (lr * 1.1**e, lr * 1.1**e + 1e-4)} if i % 4 == 0 else {},
            )
            for e in range(1, length + 1)
        )
        value: float | None = rows[-1].value
        if i == 7:
            state, value, rows = TrialState.FAILED, None, ()
        spec = TrialSpec(i, i, params, SPACE)
        trials.append(TrialRecord(spec, state, value, len(rows), HOSTILE if i == 2 else "", rows, i * 0.01 + 1))
        events.append(Event(i, "admitted", i, 0, i % 32, time_s=i * 0.01))
        events.append(Event(i, "left", i, 0, i % 32, time_s=i * 0.01 + 0.3))
    facts: dict[str, Json] = {"metric": "accuracy", "elapsed_s": n_trials * 0.01 + 1, **(meta or {})}
    return StudyRecord(HOSTILE, "maximize", tuple(trials), tuple(events), facts)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # CI runs as root in a container, where Chromium's own sandbox cannot.
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "r.html"
    shares = {"lr": 0.7, "opt imizer": 0.2, HOSTILE: 0.1}
    return write_report(
        study(60, 12, {"winner": {"trial": 0, "residuals": RESIDUALS, "classes": CLASSES}}), path, shares
    )


# Through a copy: a browser warns of a canvas that is drawn on and read in turns.
BLANK = """const blank = (canvas) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    return copy.getImageData(0, 0, canvas.width, canvas.height).data.every((one) => one === 0);
};"""


class Opened:
    """A page, and whatever its console or its dialogs said."""

    def __init__(self, browser: Browser, file: Path, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.context.set_default_timeout(120_000)  # where all cores are taken, a page may wait long for one
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda m: self.said.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda r: self.said.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        self.page.goto(file.as_uri())

    def look_at(self, figure: str) -> None:
        """Scroll to a figure and wait until it is drawn, which nothing is before it is nearly on the screen."""
        self.page.locator(figure).scroll_into_view_if_needed()
        self.page.wait_for_function(f"() => {{ {BLANK} return !blank(document.querySelector('{figure} canvas')); }}")

    def to_the_end(self) -> None:
        """Scroll through the page, so that every figure is drawn."""
        self.page.evaluate("""async () => {
            for (let y = 0; y < document.documentElement.scrollHeight; y += 500) {
                scrollTo(0, y);
                await new Promise((done) => setTimeout(done, 40));
            }
        }""")


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[Opened]:
    one = Opened(browser, file)
    yield one
    one.context.close()
    assert one.said == []


@pytest.fixture(scope="module")
def searched(browser: Browser, file: Path) -> Iterator[Opened]:
    """One page for many searches: each types over the one before."""
    one = Opened(browser, file)
    yield one
    one.context.close()
    assert one.said == []


def blank_figures(page: Page) -> list[str]:
    """Labels of the figures on whose canvas nothing is drawn."""
    found: list[str] = page.evaluate(f"""() => {{
        {BLANK}
        return [...document.querySelectorAll(".chart")].filter((host) => host.hidden || blank(host.querySelector("canvas")))
            .map((host) => host.id + host.getAttribute("aria-label"));
    }}""")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_figure_is_drawn_and_fits(browser: Browser, file: Path, size: str, scheme: Any) -> None:
    width, height = SIZES[size]
    one = Opened(browser, file, viewport={"width": width, "height": height}, color_scheme=scheme)
    for _ in range(10):  # drawing follows scrolling by a frame or a few
        one.to_the_end()
        if not blank_figures(one.page):
            break
    assert blank_figures(one.page) == []
    assert one.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert one.page.locator("#importances .row").count() == 3
    assert one.page.locator("#residuals figure").count() == 2
    one.context.close()
    assert one.said == []


def test_an_empty_study_opens(browser: Browser, tmp_path: Path) -> None:
    one = Opened(browser, write_report(StudyRecord("empty", "minimize", (), (), {}), tmp_path / "r.html"))
    one.to_the_end()
    assert "No trial has trained an epoch yet." in one.page.inner_text("#curves-note")
    assert one.page.inner_text("#count") == "0 of 0 trials"
    # Figures that have nothing to draw are at rest: none waits for a width that it does not get.
    changes = one.page.evaluate("""() => new Promise((done) => {
        let seen = 0;
        const watch = new MutationObserver((all) => { seen += all.length; });
        watch.observe(document.body, { subtree: true, attributes: true });
        setTimeout(() => { watch.disconnect(); done(seen); }, 300);
    })""")
    assert changes == 0
    one.context.close()
    assert one.said == []


def test_folds_give_curves_a_band(browser: Browser, tmp_path: Path) -> None:
    """Drawn beside the best curve, said below it, and told at the pointer."""
    plain = study(4, 6)
    trials = [replace(t, rows=tuple(replace(r, standard_error=0.1) for r in t.rows)) for t in plain.trials]
    drawn = []
    for record in (plain, replace(plain, trials=tuple(trials))):
        one = Opened(browser, write_report(record, tmp_path / "r.html"), viewport={"width": 900, "height": 700})
        one.look_at("#curves")
        inked = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, k) => k % 4 === 3 && v > 0).length"
        drawn.append(
            one.page.evaluate(f"() => {{ const c = document.querySelector('#curves canvas'); return {inked}; }}")
        )
        note = one.page.inner_text("#curves-note")
        one.context.close()
        assert one.said == []
    assert "standard error; of the best trial" in note and "fainter of the others" in note
    assert drawn[1] > 1.1 * drawn[0]


def shown(page: Page) -> list[int]:
    """Numbers of the trials in the table's rows."""
    return [int(text) for text in page.locator("#trials tbody tr:not(.spacer) td:nth-child(2)").all_inner_texts()]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("lr<0.001", lambda t: t.spec.params["lr"] < 0.001),
        ("lr>=0.001 state=finished", lambda t: t.spec.params["lr"] >= 0.001 and t.state == "finished"),
        ('"opt imizer"=adam', lambda t: t.spec.params["opt imizer"] == "adam"),
        ('"opt imizer"!=adam', lambda t: t.spec.params["opt imizer"] != "adam"),
        ("trial=13", lambda t: t.spec.number == 13),
        ("accuracy>0.9", lambda t: t.value is not None and t.value > 0.9),
        ("onerror=alert(1)> stopped", lambda t: HOSTILE in map(str, [*t.spec.params.values(), t.reason, HOSTILE])
         and t.state == "stopped"),
        ("nothing-like-it", lambda t: False),
        ('"', lambda t: True),
    ],
)  # fmt: skip
def test_search_finds_what_it_says(searched: Opened, query: str, wanted: Any) -> None:
    expected = sorted(trial.spec.number for trial in study(60, 12).trials if wanted(trial))
    searched.page.fill("#search", query)
    searched.page.wait_for_function(
        "n => document.getElementById('count').textContent.startsWith(`${n} of`)", arg=len(expected)
    )
    searched.page.locator("#trials th button", has_text="Trial").click()
    searched.page.locator("#table-scroll").evaluate(
        "area => { area.style.maxHeight = '4000px'; area.dispatchEvent(new Event('scroll')); }"
    )
    assert sorted(shown(searched.page)) == expected


def test_columns_sort_both_ways_with_nothing_last(opened: Opened) -> None:
    trials = study(60, 12).trials
    values = {t.spec.number: t.value for t in trials if t.value is not None}
    page, head = opened.page, opened.page.locator("#trials th", has_text="accuracy")
    assert head.get_attribute("aria-sort") == "descending"
    best_first = sorted(values, key=lambda n: (-float(f"{values[n]:.5g}"), n))
    assert shown(page)[:20] == best_first[:20]
    head.locator("button").click()
    assert page.locator("#trials th", has_text="accuracy").get_attribute("aria-sort") == "ascending"
    worst_first = sorted(values, key=lambda n: (float(f"{values[n]:.5g}"), n))
    assert shown(page)[:20] == worst_first[:20]
    page.locator("#table-scroll").evaluate("area => { area.scrollTop = area.scrollHeight; }")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#trials tbody tr')].some((row) => row.dataset.trial === '7')"
    )
    assert shown(page)[-1] == 7  # it failed and has no value


def test_the_keyboard_walks_marks_and_lets_go(opened: Opened) -> None:
    page = opened.page
    opened.look_at("#curves")
    page.locator("#curves").focus()
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#tip b")
    assert page.inner_text("#said").startswith(first)
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip b") != first
    page.keyboard.press("Enter")
    assert page.inner_text("#unpin") == "Unmark 1"
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.locator("#unpin").click()
    assert page.locator("#unpin").is_hidden()
    page.keyboard.press("Tab")
    page.locator("body").click(position={"x": 2, "y": 2})
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_rows_mark_and_hovering_shows(opened: Opened) -> None:
    page = opened.page
    number = shown(page)[0]
    page.get_by_label(f"Mark trial {number} in the figures").check()
    assert page.inner_text("#unpin") == "Unmark 1"
    opened.look_at("#curves")
    page.get_by_label("Zoom the curves on the best quarter").uncheck()
    page.locator("#curves").hover(position={"x": 400, "y": 60})
    assert page.inner_text("#tip b").startswith("Trial ")
    assert HOSTILE in page.inner_text("#tip")


def test_brushing_an_axis_types_into_the_search(opened: Opened) -> None:
    page = opened.page
    opened.look_at("#parallel")
    box = page.locator("#parallel").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 26, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 26, box["y"] + 160, steps=4)
    page.mouse.up()
    query = page.input_value("#search")
    assert query.startswith("lr>=") and " lr<=" in query
    found = int(page.inner_text("#count").split()[0])
    assert 0 < found < 60


def test_every_choice_of_every_control_draws(opened: Opened) -> None:
    page = opened.page
    opened.to_the_end()
    for select in page.locator("select").all():
        for option in select.locator("option").all():
            select.select_option(value=option.get_attribute("value"))
    for box in page.locator(".switch input").all():
        if box.is_enabled():
            box.check()
    for button in page.locator("#series button").all():
        button.click()
        assert button.get_attribute("aria-pressed") == "true"


def test_controls_and_figures_have_names_for_screen_readers(opened: Opened) -> None:
    opened.to_the_end()
    unnamed: list[str] = opened.page.evaluate("""() => {
        const all = "button, input, select, [tabindex], canvas:not([aria-hidden]), [role=img], [role=region]";
        return [...document.querySelectorAll(all)].filter((one) => !one.hidden && !one.getAttribute("aria-label")
            && !one.textContent.trim()).map((one) => one.outerHTML.slice(0, 100));
    }""")
    assert unnamed == []
    levels = [
        int(tag[1]) for tag in opened.page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((h) => h.tagName)")
    ]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(levels))


# The colours of a text and of what is below it, as luminances; canvases are left to the eye.
CONTRASTS = """() => {
    const ctx = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const light = (r, g, b) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const bytes = (colours) => {
        ctx.clearRect(0, 0, 1, 1);
        for (const colour of colours) { ctx.fillStyle = colour; ctx.fillRect(0, 0, 1, 1); }
        return light(...ctx.getImageData(0, 0, 1, 1).data);
    };
    const below = (one) => (one ? [...below(one.parentElement), getComputedStyle(one).backgroundColor] : []);
    const faint = [];
    for (const one of document.querySelectorAll("main *")) {
        const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !one.checkVisibility() || one.closest(":disabled, .unseen, label:has(:disabled)")) continue;
        const style = getComputedStyle(one), ground = below(one);
        const [a, b] = [bytes(ground), bytes([...ground, style.color])];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) faint.push([one.outerHTML.slice(0, 90), ratio]);
    }
    return faint;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(browser: Browser, file: Path, scheme: Any) -> None:
    """At least that of WCAG 2.2, level AA."""
    one = Opened(browser, file, color_scheme=scheme)
    one.page.locator("#trials tbody tr").nth(1).hover()
    assert one.page.evaluate(CONTRASTS) == []
    one.context.close()


LONG = "encoder.layers.0.attention_dropout_" * 4
SIXTY = [f"category_number_{k}_of_sixty" for k in range(60)]


def awkward(n_trials: int, state: TrialState, value: float) -> StudyRecord:
    """Long names, many choices, a parameter that is never a number, one that some trials lack."""
    space = {LONG: LR, "sixty": json.dumps({"attributes": {"choices": SIXTY}}), "x" * 90: LR, "nan": LR, "some": LR}
    trials = []
    for i in range(n_trials):
        params: dict[str, ParamValue] = {LONG: 10.0 ** -(i % 5), "sixty": SIXTY[-i], "x" * 90: 0.1 * i, "nan": math.nan}
        params |= {"some": i} if i % 2 else {}
        rows = tuple(EpochRow(i, e, value, value * i, {"loss": value, LONG: value}, 0.1 * e) for e in (1, 2, 3))
        final = value * i if state is TrialState.FINISHED else None
        trials.append(TrialRecord(TrialSpec(i, i, params, space), state, final, 3, "why " * 60, rows, 1.0))
    names = [f"class {k} with a rather long name" for k in range(60)]
    classes: dict[str, Json] = {
        "names": list[Json](names), "matrix": [[i == j for i in range(60)] for j in range(60)],
        "hits": [1] * 60, "predicted": [1] * 60, "support": [1] * 60,
    }  # fmt: skip
    meta: dict[str, Json] = {
        "metric": LONG,
        "winner": {"trial": 0, "classes": classes},
        "options": {"a" * 60: "b" * 99},
    }
    return StudyRecord(LONG, "minimize", tuple(trials), (), meta)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(awkward(40, TrialState.FINISHED, 1.0), id="long"),
        pytest.param(awkward(40, TrialState.FINISHED, 1e300), id="huge"),
        pytest.param(awkward(1, TrialState.FINISHED, 1.0), id="one"),
        pytest.param(awkward(6, TrialState.RUNNING, 1.0), id="none-finished"),
        pytest.param(awkward(6, TrialState.STOPPED, math.nan), id="nan"),
    ],
)
def test_awkward_studies_fit_on_a_phone(browser: Browser, tmp_path: Path, record: StudyRecord) -> None:
    width, height = SIZES["phone"]
    one = Opened(browser, write_report(record, tmp_path / "r.html"), viewport={"width": width, "height": height})
    one.to_the_end()
    # What has a width of its own scrolls in itself, and nothing else sticks out.
    outside = """() => [...document.querySelectorAll("main *")]
        .filter((one) => one.checkVisibility() && !one.closest(".scroll *, .unseen, pre"))
        .filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 90))"""
    assert one.page.evaluate(outside) == []
    assert one.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    slices = 0 if record.best() is None else 4 if len(record.trials) > 1 else 3
    assert one.page.locator("#params figure").count() == slices
    one.context.close()
    assert one.said == []


def test_hostile_names_are_only_texts(opened: Opened) -> None:
    opened.to_the_end()
    assert opened.page.locator("img").count() == 0
    assert opened.page.inner_text("h1") == HOSTILE
    assert HOSTILE in opened.page.locator("#trials").inner_text()


def test_it_prints(browser: Browser, file: Path) -> None:
    one = Opened(browser, file, color_scheme="dark")
    assert len(one.page.pdf()) > 20_000
    assert not one.page.evaluate("document.documentElement.classList.contains('printing')")
    one.context.close()
    assert one.said == []


class Growing(LivePage):
    """A study without trials that has some the next time that one looks."""

    def __init__(self, *records: StudyRecord) -> None:
        self.pages = [render_report(record, live=True).encode() for record in records]

    def current(self) -> tuple[bytes, str]:
        page = self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]
        return page, f'"{len(page)}"'


def test_a_live_page_draws_figures_that_had_nothing_to_draw(browser: Browser) -> None:
    server = WatchServer(Growing(StudyRecord("grows", "maximize", (), (), {}), study(12, 4)), port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(server.url)
    assert page.locator("#curves").is_hidden() and page.locator("#moved-section").is_hidden()
    page.wait_for_function("() => document.getElementById('count').textContent === '12 of 12 trials'")
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_function(f"() => {{ {BLANK} return !blank(document.querySelector('#curves canvas')); }}")
    page.close()
    server.shutdown()
    server.server_close()
    thread.join()


def test_ten_thousand_trials_open_and_sort_at_once(browser: Browser, tmp_path: Path) -> None:
    path = write_report(study(10_000, 10), tmp_path / "r.html", {"lr": 1.0})
    assert path.stat().st_size < 20_000_000
    one = Opened(browser, path)
    # Bounds that a busy machine keeps; on an idle one it opens in a second and sorts in a tenth of one.
    opened_ms = one.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert opened_ms < 10_000
    assert one.page.locator("#trials tbody tr").count() < 100
    for column in ("accuracy", "lr", "opt imizer"):
        sorted_ms = one.page.evaluate(
            """(name) => {
                const began = performance.now();
                [...document.querySelectorAll("#trials th button")].find((b) => b.title === name).click();
                return performance.now() - began;
            }""",
            column,
        )
        assert sorted_ms < 2_000, column
    one.context.close()
    assert one.said == []
