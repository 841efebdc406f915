// What the figures and the table show. Names and values come from users: they reach the page through textContent and
// fillText only, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const { number, epoch, reason, reasons } = data.trials;
const stateOf = data.trials.state.map((i) => data.states[i]);
const value = data.trials.value.map(num);
const columns = data.params.map((p) => ({ ...p, values: p.choices ? p.values : p.values.map(num) }));
const curves = Object.fromEntries(["value", "loss", "train"].map((key) => [key, data.curves[key].map((c) => c.map(num))]));
const all = number.map((_, i) => i);
const $ = (id) => document.getElementById(id);
const paramText = (p, i) => (p.values[i] === null ? "–" : p.choices ? p.choices[p.values[i]] : short(p.values[i]));
const epochAt = (i, k) => (data.curves.epochs[i] ? data.curves.epochs[i][k] : k + 1);
const LAYERS = ["stopped", "failed", "running", "finished"];
const MAX_DIM_CURVES = 1500;

// ---- one selected trial, shown in every figure and in the table

let selected = -1;
function select(trial, note, event) {
  if (trial !== selected) {
    selected = trial;
    charts.forEach((chart) => chart.overlay());
    document.querySelectorAll("#trials tbody tr").forEach((row) => row.classList.toggle("on", Number(row.dataset.trial) === trial));
  }
  const tip = $("tip");
  tip.hidden = trial < 0 || !event;
  if (tip.hidden) return;
  const title = document.createElement("b");
  title.textContent = `Trial ${number[trial]}, ${stateOf[trial]}`;
  const line = document.createElement("div");
  line.textContent = note || `${data.metric} ${short(value[trial])} at epoch ${epoch[trial]}`;
  const list = document.createElement("dl");
  for (const p of columns) {
    if (p.values[trial] === null) continue;
    list.append(Object.assign(document.createElement("dt"), { textContent: p.name }));
    list.append(Object.assign(document.createElement("dd"), { textContent: paramText(p, trial) }));
  }
  tip.replaceChildren(title, line, list);
  const box = tip.getBoundingClientRect();
  tip.style.left = clamp(event.clientX + 16, 8, Math.max(8, innerWidth - box.width - 8)) + "px";
  const below = event.clientY + 16;
  tip.style.top = (below + box.height > innerHeight - 8 ? Math.max(8, event.clientY - box.height - 12) : below) + "px";
}

// ---- learning curves

const SERIES = { value: data.metric, loss: "validation loss", train: "train loss" };
const view = { series: "value", log: false, plot: null };
const trained = curves.value.some((ys) => ys.length);
const isLoss = () => view.series !== "value" || /loss/i.test(data.metric);

function trace(ctx, i, plot) {
  const ys = curves[view.series][i];
  const usable = (v) => Number.isFinite(v) && (!plot.y.log || v > 0);
  // More points than pixels: each pixel column keeps its lowest and highest, which looks the same.
  const stride = Math.max(1, Math.floor(ys.length / (plot.box.right - plot.box.left)));
  ctx.beginPath();
  let pen = false;
  for (let k = 0; k < ys.length; k += stride) {
    let picks = [k];
    if (stride > 1) {
      let [lo, hi] = [k, k];
      for (let j = k; j < Math.min(k + stride, ys.length); j++) { if (ys[j] < ys[lo]) lo = j; if (ys[j] > ys[hi]) hi = j; }
      picks = lo < hi ? [lo, hi] : [hi, lo];
    }
    for (const j of picks) {
      if (!usable(ys[j])) { pen = false; continue; }
      const [px, py] = [plot.x(epochAt(i, j)), plot.y(ys[j])];
      if (pen) ctx.lineTo(px, py); else ctx.moveTo(px, py);
      // A point with no neighbour to draw a line to would be invisible.
      if (!pen && !usable(ys[j + 1])) { ctx.moveTo(px - 1.5, py); ctx.lineTo(px + 1.5, py); }
      pen = true;
    }
  }
  ctx.stroke();
}

function clipped(ctx, box, paint) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(box.left - 2, box.top - 4, box.right - box.left + 4, box.bottom - box.top + 4);
  ctx.clip();
  paint();
  ctx.restore();
}

const curveChart = new Chart($("curves"), `Learning curves of ${number.length} trials; the table of trials holds the same values`, {
  height: (w) => (trained ? clamp(w * 0.44, 280, 440) : 0),
  draw(ctx, w, h) {
    if (!trained) return;
    const series = curves[view.series];
    const log = view.log && isLoss();
    const span = range(series.flat(), data.best < 0 ? [] : series[data.best], log);
    let last = 1;
    for (const i of all) if (series[i].length) last = Math.max(last, epochAt(i, series[i].length - 1));
    const box = { left: 58, right: w - 12, top: 26, bottom: h - 44 };
    const x = scale(Math.min(1, last - 1), last, box.left, box.right, false);
    const y = scale(span.lo, span.hi, box.bottom, box.top, log, 0.03);
    const whole = x.ticks;
    x.ticks = (count) => whole(count).filter((t) => Number.isInteger(t) && t >= 1);
    view.plot = { x, y, box };
    axes(ctx, box, x, y, "epoch", SERIES[view.series]);
    const few = number.length <= 60;
    let left = 0;
    clipped(ctx, box, () => {
      for (const state of LAYERS) {
        let members = all.filter((i) => stateOf[i] === state && i !== data.best && series[i].length);
        if (state === "stopped" && members.length > MAX_DIM_CURVES) {
          const total = members.length;
          members = members.filter((_, k) => Math.floor((k * MAX_DIM_CURVES) / total) !== Math.floor(((k - 1) * MAX_DIM_CURVES) / total));
          left = total - members.length;
        }
        ctx.strokeStyle = css(state);
        ctx.lineWidth = state === "stopped" ? 1 : 1.4;
        ctx.globalAlpha = state === "stopped" ? (members.length > 400 ? 0.5 : 1) * css("dim") * (few ? 2 : 1.4) : few ? 0.75 : clamp(60 / members.length, 0.05, 0.42);
        for (const i of members) trace(ctx, i, view.plot);
      }
      if (data.best >= 0) {
        ctx.globalAlpha = 1;
        ctx.strokeStyle = css("card"); ctx.lineWidth = 5.5; trace(ctx, data.best, view.plot);
        ctx.strokeStyle = css("best"); ctx.lineWidth = 3; trace(ctx, data.best, view.plot);
      }
    });
    ctx.globalAlpha = 1;
    const notes = [];
    if (span.cut) notes.push(`The axis covers the middle of the values: ${span.cut.toLocaleString("en")} points lie outside it.`);
    if (left) notes.push(`${left.toLocaleString("en")} of the stopped trials are not drawn, but the pointer finds them.`);
    const odd = series.reduce((n, ys) => n + (ys.some((v) => v !== null && !Number.isFinite(v)) ? 1 : 0), 0);
    if (odd) notes.push(`${odd.toLocaleString("en")} ${odd === 1 ? "trial" : "trials"} reached NaN or infinity; the curve breaks there.`);
    $("curves-note").textContent = notes.join(" ");
  },
  over(ctx, w, h) {
    if (selected < 0 || !view.plot) return;
    clipped(ctx, view.plot.box, () => {
      ctx.strokeStyle = css("card"); ctx.lineWidth = 6; trace(ctx, selected, view.plot);
      ctx.strokeStyle = css("ink"); ctx.lineWidth = 2.2; trace(ctx, selected, view.plot);
    });
  },
  near(px, py) {
    if (!view.plot) return null;
    let [best, hit] = [28 * 28, null];
    for (const i of all) {
      const ys = curves[view.series][i];
      for (let k = 0; k < ys.length; k++) {
        const dx = view.plot.x(epochAt(i, k)) - px;
        if (dx > 28 || dx < -28) continue;
        const dy = view.plot.y(ys[k]) - py;
        const d = dx * dx + dy * dy;
        if (d < best) { best = d; hit = { trial: i, note: `${SERIES[view.series]} ${short(ys[k])} at epoch ${epochAt(i, k)}` }; }
      }
    }
    return hit;
  },
});

for (const [key, label] of Object.entries(SERIES)) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
  button.addEventListener("click", () => { view.series = key; controls(); curveChart.redraw(); });
  button.dataset.key = key;
  $("series").append(button);
}
function controls() {
  for (const button of $("series").children) button.setAttribute("aria-pressed", String(button.dataset.key === view.series));
  $("curves-log").disabled = !isLoss();
}
$("curves-log").addEventListener("change", (event) => { view.log = event.target.checked; curveChart.redraw(); });
controls();
$("curves").previousElementSibling.hidden = !trained;
if (!trained) $("curves-note").textContent = "No trial has trained an epoch yet.";
for (const state of [...(data.best < 0 ? [] : ["best"]), "finished", "stopped", "running", "failed"]) {
  if (state !== "best" && !stateOf.includes(state)) continue;
  $("legend").append(Object.assign(document.createElement("li"), { className: "key s-" + state, textContent: state }));
}

// ---- value against each hyperparameter

const valued = all.filter((i) => Number.isFinite(value[i]));
let finishedOnly = false;

function dot(ctx, i, x, y, colours, size) {
  ctx.beginPath();
  if (stateOf[i] === "failed") { ctx.moveTo(x - 3, y - 3); ctx.lineTo(x + 3, y + 3); ctx.moveTo(x - 3, y + 3); ctx.lineTo(x + 3, y - 3); }
  else ctx.arc(x, y, size, 0, 7);
  // Shape repeats what colour says: finished is filled, everything else is an outline.
  if (stateOf[i] === "finished") { ctx.fillStyle = colours.finished; ctx.fill(); }
  else { ctx.strokeStyle = colours[stateOf[i]]; ctx.stroke(); }
}

function paramChart(p) {
  const figure = document.createElement("figure");
  const caption = Object.assign(document.createElement("figcaption"), { textContent: p.name });
  if (p.log) caption.append(Object.assign(document.createElement("span"), { textContent: ", log scale" }));
  const host = Object.assign(document.createElement("div"), { className: "chart" });
  figure.append(caption, host);
  $("params").append(figure);
  let plot = null;
  // Choices are spread sideways by a fixed rule, so that a dot stays where it is from one drawing to the next.
  const spread = (i) => (p.choices ? (((number[i] * 0.618034) % 1) - 0.5) * 0.62 : 0);
  const at = (i) => [plot.x(p.values[i] + spread(i)), plot.y(value[i])];
  const shown = () => valued.filter((i) => p.values[i] !== null && Number.isFinite(p.values[i]) && (!finishedOnly || stateOf[i] === "finished"));
  return new Chart(host, `${data.metric} against ${p.name}`, {
    height: () => 216,
    draw(ctx, w, h) {
      const members = shown();
      const span = range(members.map((i) => value[i]), data.best < 0 ? [] : [value[data.best]], false);
      const box = { left: 52, right: w - 8, top: 12, bottom: h - 30 };
      const xs = members.map((i) => p.values[i]);
      const log = p.log && xs.every((v) => v > 0);
      const [lo, hi] = xs.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
      const x = p.choices ? scale(-0.5, p.choices.length - 0.5, box.left, box.right, false) : scale(xs.length ? lo : 1, xs.length ? hi : 10, box.left, box.right, log, 0.04);
      if (p.choices) x.labels = p.choices;
      const y = scale(span.lo, span.hi, box.bottom, box.top, false, 0.05);
      plot = { x, y, box };
      axes(ctx, box, x, y, "", "");
      const colours = Object.fromEntries(LAYERS.map((s) => [s, css(s)]));
      const size = members.length > 2000 ? 1.6 : members.length > 300 ? 2.4 : 3.2;
      clipped(ctx, box, () => {
        for (const state of LAYERS) {
          ctx.globalAlpha = state === "stopped" ? (members.length > 2000 ? 0.3 : 0.6) : members.length > 2000 ? 0.35 : 0.75;
          for (const i of members) if (stateOf[i] === state && i !== data.best) dot(ctx, i, ...at(i), colours, size);
        }
        ctx.globalAlpha = 1;
        if (data.best >= 0 && members.includes(data.best)) this.ring(ctx, data.best, css("best"), css("card"));
      });
    },
    ring(ctx, i, colour, rim) {
      ctx.beginPath(); ctx.arc(...at(i), 6, 0, 7);
      ctx.fillStyle = colour; ctx.fill(); ctx.strokeStyle = rim; ctx.lineWidth = 2; ctx.stroke(); ctx.lineWidth = 1;
    },
    over(ctx) {
      if (selected >= 0 && plot && shown().includes(selected)) this.ring(ctx, selected, css("ink"), css("card"));
    },
    near(px, py) {
      let [best, hit] = [20 * 20, null];
      for (const i of plot ? shown() : []) {
        const [x, y] = at(i);
        const d = (x - px) ** 2 + (y - py) ** 2;
        if (d < best) { best = d; hit = { trial: i }; }
      }
      return hit;
    },
  });
}
const paramCharts = columns.map(paramChart);
$("finished-only").addEventListener("change", (event) => { finishedOnly = event.target.checked; paramCharts.forEach((c) => c.redraw()); });
$("params").previousElementSibling.hidden = !columns.length;
$("params-note").textContent = !columns.length ? "No trial has a hyperparameter."
  : stateOf.includes("stopped") ? "A stopped trial (outline) shows its value at the epoch where it stopped." : "";
