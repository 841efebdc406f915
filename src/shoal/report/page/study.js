// The study's data, unpacked once: columns by trial index, and curves as typed arrays.

const LAYERS = ["stopped", "failed", "running", "finished"];
let study = null;

/** Little-endian float32 in base64 to numbers. */
function unpack(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) bytes[k] = raw.charCodeAt(k);
  const points = new Float32Array(bytes.buffer);
  const swapped = new Uint8Array(Float32Array.of(1).buffer)[0] !== 0;
  if (swapped) for (let k = 0, view = new DataView(bytes.buffer); k < points.length; k++) points[k] = view.getFloat32(4 * k, true);
  return points;
}

/** A series of curves; its points are unpacked when they are first drawn. */
const openSeries = ({ name, loss, data, errors }) => ({
  name, loss,
  errors: errors ? unpack(errors) : null,
  get points() { const points = unpack(data); Object.defineProperty(this, "points", { value: points }); return points; },
});

function openStudy(text) {
  const data = JSON.parse(text);
  const { number, epoch, reason, reasons } = data.trials;
  const start = new Uint32Array(number.length + 1);
  data.curves.lengths.forEach((length, i) => { start[i + 1] = start[i] + length; });
  return {
    data, number, epoch, start,
    metric: data.metric,
    best: data.best,
    broken: new Set(data.broken),
    objectives: data.objectives && { ...data.objectives, values: data.objectives.values.map((own) => own.map(num)) },
    up: data.direction === "maximize",
    all: number.map((_, i) => i),
    state: data.trials.state.map((i) => data.states[i]),
    value: data.trials.value.map(num),
    reason: reason.map((i) => reasons[i]),
    params: data.params.map((p) => ({ ...p, values: p.choices ? p.values : p.values.map(num) })),
    series: data.curves.series.map(openSeries),
    odd: data.curves.epochs,
    every: data.curves.every,
    ends: data.curves.ends,
  };
}

const lengthOf = (i) => study.start[i + 1] - study.start[i];
/** Very many epochs are thinned to 1, n, 2 n, 3 n, ... and each trial's last, with n = `study.every`. */
const epochAt = (i, k) => (study.odd[i] ? study.odd[i][k] : study.every === 1 ? k + 1 : k ? Math.min(k * study.every, study.ends[i]) : 1);
/** The place of the last point at or before an epoch, in a trial that has one. */
function placeOf(i, epoch) {
  if (study.odd[i]) return study.odd[i].findLastIndex((e) => e <= epoch);
  if (study.every === 1) return Math.min(epoch, lengthOf(i)) - 1;
  return epoch >= study.ends[i] ? lengthOf(i) - 1 : Math.floor(epoch / study.every);
}
const pointOf = (series, i, k) => series.points[study.start[i] + k];
/** The standard error of a point over the trial's folds or seeds; NaN where there is none. */
const errorOf = (series, i, k) => (series.errors ? series.errors[study.start[i] + k] : NaN);
const bestIs = (i) => i === study.best;
const better = (a, b) => (study.up ? a > b : a < b);
const paramText = (p, i) => (p.values[i] === null ? "–" : p.choices ? p.choices[p.values[i]] : short(p.values[i]));
const hasNumber = (p, i) => p.values[i] !== null && Number.isFinite(p.values[i]);

/** Where a parameter's values lie on an axis of a figure: its scale from one end to the other. */
function paramScale(p, members, from, to, pad) {
  if (p.choices) return Object.assign(scale(-0.5, p.choices.length - 0.5, from, to, false), { labels: p.choices });
  let [lo, hi] = [Infinity, -Infinity];
  for (const i of members) { lo = Math.min(lo, p.values[i]); hi = Math.max(hi, p.values[i]); }
  if (!(lo <= hi)) [lo, hi] = [1, 10];
  return scale(lo, hi, from, to, p.log && lo > 0, pad);
}

// ---- what the colours of trials mean: their state, a hyperparameter, or their value

const PALETTE = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"];
// Viridis (Smith and van der Walt 2015): even steps of lightness, so it also reads in grey.
const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];

/** A colour for t in 0..1. The end that would vanish on the page is left out. */
function viridis(t) {
  const dark = css("dark") === "1";
  const at = (dark ? 0.18 + 0.82 * clamp(t, 0, 1) : 0.94 * clamp(t, 0, 1)) * (VIRIDIS.length - 1);
  const k = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[k].map((c, j) => Math.round(c + (VIRIDIS[k + 1][j] - c) * (at - k))).join(" ")})`;
}

/** Values between their 2nd and 98th percentile on a scale of 0..1, so that outliers do not take all the colours. */
function shades(values, log) {
  const span = range(values.filter((v) => v !== null), [], log);
  const to = scale(span.lo, span.hi, 0, 1, log);
  return Object.assign((v) => clamp(to(v), 0, 1), { lo: span.lo, hi: span.hi });
}

let colouring = null;

/** `of(i)`: a trial's colour; `key`: entries of the legend; `ramp`: a gradient's ends. Made anew for each theme. */
function makeColouring(by) {
  const dim = css("stopped");
  const [kind, at] = by.split(":");
  if (kind === "param" && study.params[at]) {
    const p = study.params[at];
    if (p.choices) {
      const colours = PALETTE.map(css);
      const used = p.choices.slice(0, colours.length);
      const key = used.map((label, k) => [label, colours[k]]);
      if (p.choices.length > used.length) key.push(["others", dim]);
      return { of: (i) => (p.values[i] === null ? dim : colours[p.values[i]] || dim), key, name: p.name };
    }
    const of = shades(p.values.filter(Number.isFinite), p.log && p.values.every((v) => v === null || v > 0));
    return { of: (i) => (hasNumber(p, i) ? viridis(of(p.values[i])) : dim), ramp: [of.lo, of.hi], name: p.name };
  }
  if (kind === "value") {
    const of = shades(study.value.filter(Number.isFinite), false);
    return { of: (i) => (Number.isFinite(study.value[i]) ? viridis(study.up ? of(study.value[i]) : 1 - of(study.value[i])) : dim), ramp: study.up ? [of.lo, of.hi] : [of.hi, of.lo], name: study.metric };
  }
  const colours = Object.fromEntries([...LAYERS, "best"].map((s) => [s, css(s)]));
  const key = ["finished", "stopped", "running", "failed"].filter((s) => study.state.includes(s)).map((s) => [s, colours[s]]);
  return { of: (i) => colours[study.state[i]], key, byState: true, name: "state" };
}

function recolour() {
  styles.clear();
  colouring = makeColouring($("colour").value);
  const of = colouring.of;
  const cache = new Map();
  colouring.of = (i) => { if (!cache.has(i)) cache.set(i, of(i)); return cache.get(i); };
  document.querySelectorAll("ul.legend:not([id])").forEach((host) => host.replaceChildren(...legendItems(colouring, study.best >= 0)));
}

function legendItems({ key, ramp, name }, withBest) {
  const items = withBest ? [swatch("best", css("best"))] : [];
  if (ramp) {
    const bar = element("span", { className: "ramp" });
    bar.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(viridis).join(", ")})`;
    items.push(element("li", {}, `${name}: ${short(ramp[0], 3)} `, bar, ` ${short(ramp[1], 3)}`));
  }
  for (const [label, colour] of key || []) items.push(swatch(label, colour));
  return items;
}

function swatch(label, colour) {
  const dot = element("i", { className: "swatch" });
  dot.style.background = colour;
  return element("li", {}, dot, label);
}
