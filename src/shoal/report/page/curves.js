// Learning curves of all trials.

const view = { series: 0, log: false, zoom: null, plot: null };
const MAX_QUIET_CURVES = 2000;
// More bands than this hide each other; those of the best trial and of the one under the pointer are always drawn.
const MAX_BANDS = 8;

const wholeEpochs = (x) => { const all = x.ticks; x.ticks = (n) => all(n).filter((t) => Number.isInteger(t) && t >= 1); return x; };

function lastEpoch() {
  let last = 1;
  for (const i of study.all) if (lengthOf(i)) last = Math.max(last, epochAt(i, lengthOf(i) - 1));
  return last;
}

/** The values of a series that decide its axis: all of them, or a fair share of very many. */
function sampled(points) {
  const stride = Math.max(1, Math.floor(points.length / 60000));
  return stride === 1 ? Array.from(points) : Array.from({ length: Math.floor(points.length / stride) }, (_, k) => points[k * stride]);
}

function trace(ctx, i, series, plot) {
  const n = lengthOf(i);
  const usable = (v) => Number.isFinite(v) && (!plot.y.log || v > 0);
  const at = (k) => pointOf(series, i, k);
  // More points than pixels: each pixel column keeps its lowest and highest, which looks the same.
  const stride = Math.max(1, Math.floor(n / (plot.box.right - plot.box.left)));
  ctx.beginPath();
  let pen = false;
  for (let k = 0; k < n; k += stride) {
    let picks = [k];
    if (stride > 1) {
      let [lo, hi] = [k, k];
      for (let j = k; j < Math.min(k + stride, n); j++) { if (at(j) < at(lo)) lo = j; if (at(j) > at(hi)) hi = j; }
      picks = lo < hi ? [lo, hi] : [hi, lo];
    }
    for (const j of picks) {
      const v = at(j);
      if (!usable(v)) { pen = false; continue; }
      const [px, py] = [plot.x(epochAt(i, j)), plot.y(v)];
      if (pen) ctx.lineTo(px, py); else ctx.moveTo(px, py);
      // A point with no neighbour to draw a line to would be invisible.
      if (!pen && !(j + 1 < n && usable(at(j + 1)))) { ctx.moveTo(px - 1.5, py); ctx.lineTo(px + 1.5, py); }
      pen = true;
    }
  }
  ctx.stroke();
}

/** The mean of a trial's folds or seeds, plus and minus its standard error, where it has one. */
function band(ctx, i, series, plot) {
  if (!series.errors) return;
  const [low, high] = [plot.box.bottom + 40, plot.box.top - 40];
  const inside = (v) => clamp(plot.y.log && v <= 0 ? low : plot.y(v), high, low);
  let run = [];
  const fill = () => {
    if (run.length === 1) run = [-3, 3].map((dx) => ({ ...run[0], x: run[0].x + dx }));
    ctx.beginPath();
    run.forEach((p, k) => (k ? ctx.lineTo(p.x, p.up) : ctx.moveTo(p.x, p.up)));
    for (const p of [...run].reverse()) ctx.lineTo(p.x, p.down);
    ctx.fill();
    run = [];
  };
  for (let k = 0; k < lengthOf(i); k++) {
    const [v, e] = [pointOf(series, i, k), errorOf(series, i, k)];
    if (Number.isFinite(v) && Number.isFinite(e)) run.push({ x: plot.x(epochAt(i, k)), up: inside(v + e), down: inside(v - e) });
    else if (run.length) fill();
  }
  if (run.length) fill();
}

/** Values that the axis has to show whatever else it does: the best trial's, with its band. */
function bestValues(series) {
  if (study.best < 0) return [];
  return Array.from({ length: lengthOf(study.best) }, (_, k) => k).flatMap((k) => {
    const [v, e] = [pointOf(series, study.best, k), errorOf(series, study.best, k)];
    return Number.isFinite(e) ? [v - e, v, v + e] : [v];
  });
}

/** The later half of the curves of the best quarter of the trials: where the decision falls. */
function zoomed(series) {
  const ranked = judged().sort((a, b) => (better(study.value[a], study.value[b]) ? -1 : 1));
  return ranked.slice(0, Math.max(1, Math.ceil(ranked.length / 4))).flatMap((i) => Array.from(series.points.subarray(study.start[i] + (lengthOf(i) >> 1), study.start[i + 1])));
}

/** Whether those among which the decision falls would get less than a quarter of the axis. */
function crowded(series) {
  const size = ({ lo, hi }) => hi - lo;
  return judged().length > 3 && size(range(zoomed(series), [], false)) < size(range(sampled(series.points), [], false)) / 4;
}

/** Every k-th of too many, so that what is drawn is spread over all. */
const thinned = (members, most) => (members.length <= most ? members : members.filter((_, k) => Math.floor((k * most) / members.length) !== Math.floor(((k - 1) * most) / members.length)));

const trained = () => study.start[study.number.length] > 0;
/** Whether a series has anything to draw. */
const drawable = (series) => series.points.some(Number.isFinite);
const nothingFinite = "All of its values are NaN or infinite.";

const curveChart = new Chart($("curves"), {
  label: () => `Learning curves, ${study.series[view.series].name}, of ${count(study.number.length, "trial")}. Arrow keys walk through the trials; the table below holds the same values.`,
  height(w) {
    const some = drawable(study.series[view.series]);
    if (!some) $("curves-note").textContent = trained() ? nothingFinite : "No trial has trained an epoch yet.";
    return some ? clamp(w * 0.42, 280, 440) : 0;
  },
  draw(ctx, w, h) {
    const series = study.series[view.series];
    const log = view.log && series.loss;
    const keep = bestValues(series).filter((v) => !log || v > 0);
    const span = view.zoom ? { ...range(zoomed(series), [], log), cut: 0 } : range(sampled(series.points), keep, log);
    const last = lastEpoch();
    // The best trial's number stands behind its curve's end.
    const digits = study.best < 0 ? 0 : String(study.number[study.best]).length;
    const box = { left: 58, right: w - Math.max(34, 14 + 7 * digits), top: 26, bottom: h - 44 };
    const x = wholeEpochs(scale(Math.min(1, last - 1), last, box.left, box.right, false));
    const y = scale(span.lo, span.hi, box.bottom, box.top, log, 0.03);
    view.plot = { x, y, box };
    axes(ctx, box, x, y, "epoch", series.name);
    const here = study.all.filter((i) => lengthOf(i) && !bestIs(i));
    const loud = here.filter(passes);
    const strong = searching() || !colouring.byState;
    let drawn = 0;
    clipped(ctx, box, () => {
      if (searching()) this.lines(ctx, series, thinned(here.filter((i) => !passes(i)), 800), 0.10, css("stopped"));
      if (series.errors && loud.length <= MAX_BANDS) {
        ctx.globalAlpha = 0.12;
        for (const i of loud) { ctx.fillStyle = colouring.of(i); band(ctx, i, series, view.plot); }
      }
      for (const state of LAYERS) {
        const members = thinned(loud.filter((i) => study.state[i] === state), MAX_QUIET_CURVES);
        const faint = state === "stopped" && !strong ? (loud.length > 400 ? 0.6 : loud.length > 60 ? 1.8 : 2) * Number(css("dim")) : 1;
        drawn += members.length;
        this.lines(ctx, series, members, Math.min(0.85, faint * clamp(70 / Math.max(members.length, 1), state === "stopped" ? 0.6 : 0.06, 0.75)));
      }
      if (study.best >= 0) {
        ctx.globalAlpha = 0.22; ctx.fillStyle = css("best"); band(ctx, study.best, series, view.plot);
        ctx.globalAlpha = 1;
        ctx.strokeStyle = css("card"); ctx.lineWidth = 5.5; trace(ctx, study.best, series, view.plot);
        ctx.strokeStyle = css("best"); ctx.lineWidth = 3; trace(ctx, study.best, series, view.plot);
      }
    });
    ctx.globalAlpha = 1;
    if (study.best >= 0) this.mark(ctx, study.best, series);
    const notes = series.errors ? ["Band: a trial's mean over its folds or seeds, plus and minus the standard error; of the best trial and of the one that is pointed at" + (loud.length <= MAX_BANDS ? ", and fainter of the others." : ".")] : [];
    if (view.zoom) notes.push("Zoomed on the later half of the best quarter of the trials.");
    if (span.cut) notes.push("The axis covers the middle of the values; a few points lie outside it.");
    if (study.every > 1) notes.push(`Of each ${study.every} epochs one is drawn, and each trial's last.`);
    if (drawn < loud.length) notes.push(`${count(loud.length - drawn, "curve")} of so many not drawn, but the pointer finds them.`);
    const odd = study.all.filter((i) => { for (let k = 0; k < lengthOf(i); k++) if (!Number.isFinite(pointOf(series, i, k))) return true; return false; }).length;
    if (odd) notes.push(`${count(odd, "trial")} reached NaN or infinity; the curve breaks there.`);
    $("curves-note").textContent = notes.join(" ");
  },
  lines(ctx, series, members, alpha, colour) {
    ctx.globalAlpha = alpha;
    for (const i of members) {
      ctx.strokeStyle = colour || colouring.of(i);
      ctx.lineWidth = study.state[i] === "stopped" ? 1 : 1.4;
      trace(ctx, i, series, view.plot);
    }
  },
  mark(ctx, i, series) {
    const k = lengthOf(i) - 1;
    const { x, y, box } = view.plot;
    const v = k < 0 ? NaN : pointOf(series, i, k);
    if (Number.isFinite(v) && (!y.log || v > 0)) tag(ctx, String(study.number[i]), x(epochAt(i, k)) + 6, clamp(y(v), box.top, box.bottom));
  },
  over(ctx) {
    if (!view.plot) return;
    const series = study.series[view.series];
    for (const i of emphasised()) {
      clipped(ctx, view.plot.box, () => {
        ctx.globalAlpha = 0.25; ctx.fillStyle = bestIs(i) ? css("best") : css("ink"); band(ctx, i, series, view.plot);
        ctx.globalAlpha = 1;
        ctx.strokeStyle = css("card"); ctx.lineWidth = 6; trace(ctx, i, series, view.plot);
        ctx.strokeStyle = bestIs(i) ? css("best") : css("ink"); ctx.lineWidth = 2.2; trace(ctx, i, series, view.plot);
      });
      this.mark(ctx, i, series);
    }
  },
  near(px, py) {
    if (!view.plot) return null;
    const series = study.series[view.series];
    let [nearest, hit] = [28 * 28, null];
    for (const i of study.all) {
      if (!passes(i)) continue;
      for (let k = 0; k < lengthOf(i); k++) {
        const dx = view.plot.x(epochAt(i, k)) - px;
        if (dx > 28 || dx < -28) continue;
        const v = pointOf(series, i, k);
        const dy = view.plot.y(v) - py;
        const d = dx * dx + dy * dy;
        const e = errorOf(series, i, k);
        if (d < nearest) { nearest = d; hit = { trial: i, note: `${series.name} ${short(v)}${Number.isFinite(e) ? ` ± ${short(e, 2)}` : ""} at epoch ${epochAt(i, k)}` }; }
      }
    }
    return hit;
  },
});

$("curves-log").addEventListener("change", (event) => { view.log = event.target.checked; curveChart.redraw(); });
$("curves-zoom").addEventListener("change", (event) => { view.zoom = event.target.checked; curveChart.redraw(); });

function refreshCurves() {
  view.series = Math.min(view.series, study.series.length - 1);
  const press = () => {
    [...$("series").children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === view.series)));
    $("curves-log").disabled = !study.series[view.series].loss;
  };
  $("series").replaceChildren(...study.series.map((series, k) => {
    const button = element("button", { type: "button", textContent: series.name, title: series.name });
    button.addEventListener("click", () => { view.series = k; press(); curveChart.redraw(); });
    return button;
  }));
  press();
  if (view.zoom === null && trained()) $("curves-zoom").checked = view.zoom = crowded(study.series[view.series]);
  $("curves-controls").hidden = !trained();
}
