// Parallel coordinates: one axis per hyperparameter, one line per trial, coloured by value. Dragging along an axis, or
// clicking a choice, types a comparison into the search field.

const parallel = { axes: [], members: [], down: null, sorted: [] };
const MAX_AXES = 12;
const MAX_LINES = 2500;
// Below an axis on which some trials have no value, as conditional hyperparameters have it, is a place for these.
const NONE_BELOW = 24;
const lacks = (axis, i) => { const v = axis.get(i); return v === null || !Number.isFinite(v); };
const heightOn = (axis, i) => (lacks(axis, i) ? parallel.box.bottom : axis.y(axis.get(i)));

const parallelChart = new Chart($("parallel"), {
  label: () => `Parallel coordinates of ${count(parallel.members.length, "trial")} over ${parallel.axes.length} axes; brighter is better`,
  height: () => (parallel.axes.length > 1 ? 386 : 0),
  draw(ctx, w, h) {
    const box = { left: 26, right: w - 26, top: 40, bottom: h - 16 };
    const step = (box.right - box.left) / (parallel.axes.length - 1);
    parallel.axes.forEach((axis, k) => {
      axis.at = box.left + k * step;
      axis.bottom = parallel.members.some((i) => lacks(axis, i)) ? box.bottom - NONE_BELOW : box.bottom;
      axis.y = axis.p ? paramScale(axis.p, parallel.members.filter((i) => hasNumber(axis.p, i)), axis.bottom, box.top, 0.02) : axis.own(axis.bottom, box.top);
    });
    parallel.box = box;
    const of = shades(parallel.members.map((i) => study.value[i]), false);
    const tint = (i) => { const t = of(study.value[i]); return viridis(study.up ? t : 1 - t); };
    ctx.lineWidth = 1;
    const loud = thinned(parallel.sorted.filter(passes), MAX_LINES);
    if (searching()) {
      ctx.globalAlpha = 0.06; ctx.strokeStyle = css("stopped");
      for (const i of thinned(parallel.sorted.filter((i) => !passes(i)), 600)) this.line(ctx, i);
    }
    ctx.globalAlpha = clamp(90 / Math.max(loud.length, 1), 0.1, 0.8);
    for (const i of loud) { ctx.strokeStyle = tint(i); this.line(ctx, i); } // the best come last, on top
    ctx.globalAlpha = 1;
    if (study.best >= 0 && parallel.members.includes(study.best)) {
      ctx.strokeStyle = css("card"); ctx.lineWidth = 5; this.line(ctx, study.best);
      ctx.strokeStyle = css("best"); ctx.lineWidth = 2.6; this.line(ctx, study.best);
    }
    parallel.axes.forEach((axis, k) => this.axis(ctx, axis, k, step));
  },
  line(ctx, i) {
    ctx.beginPath();
    for (const axis of parallel.axes) ctx.lineTo(axis.at, heightOn(axis, i));
    ctx.stroke();
  },
  axis(ctx, axis, k, step) {
    const { top } = parallel.box;
    const { bottom } = axis;
    const last = k === parallel.axes.length - 1;
    ctx.strokeStyle = css("muted"); ctx.lineWidth = 1.2;
    ctx.beginPath(); ctx.moveTo(axis.at, top - 2); ctx.lineTo(axis.at, bottom + 2); ctx.stroke();
    const label = (text, x, y, align, colour) => {
      ctx.textAlign = align; ctx.textBaseline = "middle"; ctx.lineWidth = 4;
      ctx.strokeStyle = css("card"); ctx.strokeText(text, x, y);
      ctx.fillStyle = css(colour); ctx.fillText(text, x, y);
    };
    // Names on two levels, so that long ones next to each other have room.
    label(fit(ctx, axis.name, k === 0 || last ? step + 20 : 1.7 * step), axis.at, k % 2 ? 24 : 8, k === 0 ? "left" : last ? "right" : "center", "ink");
    ctx.font = "11px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
    const ticks = axis.y.labels ? axis.y.labels.map((text, j) => [text, j]).filter(([, j]) => j % Math.ceil((13 * axis.y.labels.length) / (bottom - top)) === 0) : axis.y.ticks(6).map((t) => [short(t, 3), t]);
    for (const [text, at] of ticks) label(fit(ctx, text, step * 0.62), axis.at + (last ? -6 : 6), axis.y(at), last ? "right" : "left", "muted");
    if (bottom < parallel.box.bottom) label("none", axis.at + (last ? -6 : 6), parallel.box.bottom, last ? "right" : "left", "muted");
    ctx.font = FONT;
  },
  over(ctx) {
    for (const i of emphasised()) {
      ctx.strokeStyle = css("card"); ctx.lineWidth = 5; this.line(ctx, i);
      ctx.strokeStyle = bestIs(i) ? css("best") : css("ink"); ctx.lineWidth = 2; this.line(ctx, i);
    }
    const { down } = parallel;
    if (down && Math.abs(down.to - down.from) > 4) {
      ctx.fillStyle = css("finished"); ctx.globalAlpha = 0.3;
      ctx.fillRect(down.axis.at - 9, Math.min(down.from, down.to), 18, Math.abs(down.to - down.from));
      ctx.globalAlpha = 1;
    }
  },
  near(px, py) {
    if (!parallel.box || parallel.down) return null;
    let [nearest, hit] = [10, null];
    for (const i of parallel.members) {
      if (!passes(i)) continue;
      for (let k = 0; k + 1 < parallel.axes.length; k++) {
        const [a, b] = [parallel.axes[k], parallel.axes[k + 1]];
        if (px < a.at - 3 || px > b.at + 3) continue;
        const t = clamp((px - a.at) / (b.at - a.at), 0, 1);
        const d = Math.abs(heightOn(a, i) + (heightOn(b, i) - heightOn(a, i)) * t - py);
        if (d < nearest) { nearest = d; hit = { trial: i }; }
      }
    }
    return hit;
  },
});

$("parallel").addEventListener("pointerdown", (event) => {
  const box = $("parallel").getBoundingClientRect();
  const [px, py] = [event.clientX - box.left, event.clientY - box.top];
  const axis = parallel.axes.find((one) => Math.abs(one.at - px) < 14);
  parallelChart.dragged = false;
  if (!axis || event.pointerType === "touch") return;
  parallel.down = { axis, from: py, to: py };
  $("parallel").setPointerCapture(event.pointerId);
});
$("parallel").addEventListener("pointermove", (event) => {
  if (!parallel.down) return;
  parallel.down.to = event.clientY - $("parallel").getBoundingClientRect().top;
  parallelChart.dragged = parallelChart.dragged || Math.abs(parallel.down.to - parallel.down.from) > 4;
  parallelChart.overlay();
});
$("parallel").addEventListener("pointerup", () => {
  const { down } = parallel;
  parallel.down = null;
  if (!down || !parallelChart.dragged) return;
  const [top, bottom] = [Math.min(down.from, down.to), Math.max(down.from, down.to)];
  const { axis } = down;
  if (axis.y.labels) {
    const kept = axis.y.labels.filter((_, k) => axis.y(k) >= top && axis.y(k) <= bottom);
    if (kept.length === 1) compareInSearch(axis.name, ["=" + (/\s/.test(kept[0]) ? `"${kept[0]}"` : kept[0])]);
    else compareInSearch(axis.name, axis.y.labels.filter((label) => !kept.includes(label)).map((label) => "!=" + (/\s/.test(label) ? `"${label}"` : label)));
  } else {
    const typed = (at) => String(Number(axis.y.back(at).toPrecision(3)));
    compareInSearch(axis.name, [">=" + typed(bottom), "<=" + typed(top)]);
  }
});

function refreshParallel() {
  const varied = study.params.filter((p) => new Set(p.values.filter((v) => v !== null)).size > 1);
  parallel.members = judged();
  parallel.sorted = [...parallel.members].sort((a, b) => (study.up ? 1 : -1) * (study.value[a] - study.value[b]));
  const span = range(parallel.members.map((i) => study.value[i]), study.best < 0 ? [] : [study.value[study.best]], false);
  const own = (from, to) => { const y = scale(span.lo, span.hi, from, to, false, 0.02); const map = (v) => clamp(y(v), Math.min(from, to), Math.max(from, to)); return Object.assign(map, { ticks: y.ticks, back: y.back }); };
  const ranked = Object.keys(study.data.importances);
  const place = (p) => (ranked.includes(p.name) ? ranked.indexOf(p.name) : 1000);
  const kept = varied.map((p, k) => [place(p), k, p]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, MAX_AXES - 1).map(([, , p]) => p);
  parallel.axes = parallel.members.length ? [...kept.map((p) => ({ name: p.name, p, get: (i) => p.values[i] })), { name: study.metric, own, get: (i) => study.value[i] }] : [];
  parallelChart.redraw();
  const left = varied.length - kept.length;
  $("parallel-note").textContent = parallel.axes.length < 2 ? "This figure needs a hyperparameter that varied and a trial with a value."
    : `Brighter is better. Drag along an axis to choose a range: it is typed into the search field.${left ? ` ${count(left, "less important hyperparameter")} left out.` : ""}`;
}
