// Scales, axes and a two-layer canvas: the base layer holds every trial and is drawn rarely, the layer above holds
// only what the pointer is on, so that hovering stays quick with 10,000 trials.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const clamp = (x, lo, hi) => Math.min(Math.max(x, lo), hi);

/** A number that JSON could not hold comes as a string: "NaN", "Infinity", "-Infinity". */
const num = (x) => (typeof x === "string" ? Number(x) : x);

function short(x) {
  if (x === null || x === undefined) return "–";
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return x.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e").replace(/-/g, "−");
  return String(Number(x.toPrecision(5))).replace("-", "−");
}

function duration(s) {
  if (s < 60) return Number(s.toPrecision(3)) + " s";
  const whole = Math.round(s);
  if (whole < 3600) return Math.floor(whole / 60) + " min" + (whole % 60 ? " " + (whole % 60) + " s" : "");
  return Math.floor(whole / 3600) + " h" + (whole % 3600 >= 60 ? " " + Math.floor((whole % 3600) / 60) + " min" : "");
}

/** The range to draw: everything, unless a few wild values would flatten the rest; `keep` is always inside. */
function range(values, keep, log) {
  const usable = (x) => Number.isFinite(x) && (!log || x > 0);
  const sorted = Float64Array.from(values.filter(usable)).sort();
  if (!sorted.length) return { lo: log ? 0.1 : 0, hi: 1, cut: 0 };
  const at = (q) => sorted[Math.round(q * (sorted.length - 1))];
  const to = log ? Math.log : (x) => x;
  let [lo, hi] = [sorted[0], sorted[sorted.length - 1]];
  const [low, high] = [at(0.02), at(0.98)];
  const middle = to(high) - to(low);
  if (middle > 0 && to(hi) - to(lo) > 2.5 * middle) {
    const inside = keep.filter(usable);
    lo = Math.min(low, ...inside);
    hi = Math.max(high, ...inside);
  }
  let cut = 0;
  for (const x of sorted) if (x < lo || x > hi) cut++;
  return { lo, hi, cut };
}

function scale(lo, hi, from, to, log, pad) {
  const f = log ? Math.log10 : (x) => x;
  let [a, b] = [f(lo), f(hi)];
  if (a === b) { const half = log ? 0.5 : Math.abs(a) * 0.1 || 0.5; a -= half; b += half; }
  const margin = (b - a) * (pad || 0);
  a -= margin; b += margin;
  const map = (x) => from + ((f(x) - a) / (b - a)) * (to - from);
  map.log = log;
  map.ticks = (count) => (log ? logTicks(a, b, count) : ticks(a, b, count));
  return map;
}

function ticks(lo, hi, count) {
  const raw = (hi - lo) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((k) => k * power >= raw * 0.999) * power;
  const out = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + step * 1e-9; k++) out.push(Number((k * step).toPrecision(12)));
  return out;
}

function logTicks(a, b, count) {
  const out = [];
  for (const digits of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    out.length = 0;
    for (let e = Math.floor(a); e <= b; e++) for (const d of digits) {
      const v = d * 10 ** e;
      if (Math.log10(v) >= a - 1e-9 && Math.log10(v) <= b + 1e-9) out.push(Number(v.toPrecision(6)));
    }
    if (out.length >= Math.min(count, 3)) break;
  }
  const stride = Math.ceil(out.length / Math.max(count, 1));
  return stride > 1 ? out.filter((_, i) => i % stride === 0) : out;
}

const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

function fit(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  while (text.length > 1 && ctx.measureText(text + "…").width > width) text = text.slice(0, -1);
  return text + "…";
}

const charts = [];

/** One figure. `draw(ctx, w, h)` paints the base layer, `over(ctx, w, h)` the layer above, `near(x, y)` finds a trial. */
class Chart {
  constructor(host, label, spec) {
    this.host = host;
    this.spec = spec;
    this.base = document.createElement("canvas");
    this.top = document.createElement("canvas");
    this.base.setAttribute("role", "img");
    this.base.setAttribute("aria-label", label);
    this.top.setAttribute("aria-hidden", "true");
    this.top.className = "top";
    host.replaceChildren(this.base, this.top);
    host.addEventListener("pointermove", (event) => this.point(event));
    host.addEventListener("pointerdown", (event) => this.point(event));
    host.addEventListener("pointerleave", () => select(-1));
    charts.push(this);
    this.width = 0;
    // Drawing changes the host's height, which an observer may not do while it is being told of a size.
    new ResizeObserver(() => requestAnimationFrame(() => { if (host.clientWidth !== this.width) this.redraw(); })).observe(host);
  }

  point(event) {
    const box = this.host.getBoundingClientRect();
    const hit = this.spec.near(event.clientX - box.left, event.clientY - box.top);
    select(hit ? hit.trial : -1, hit && hit.note, event);
  }

  layer(canvas) {
    const ratio = Math.max(window.devicePixelRatio || 1, document.documentElement.classList.contains("printing") ? 2 : 1);
    canvas.width = Math.round(this.width * ratio);
    canvas.height = Math.round(this.height * ratio);
    const ctx = canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    ctx.font = FONT;
    ctx.lineJoin = "round";
    return ctx;
  }

  redraw() {
    this.width = this.host.clientWidth;
    if (!this.width) return;
    this.height = this.spec.height(this.width);
    this.host.style.height = this.height + "px";
    this.spec.draw(this.layer(this.base), this.width, this.height);
    this.overlay();
  }

  overlay() {
    if (this.width) this.spec.over(this.layer(this.top), this.width, this.height);
  }
}

/** Frame of a plot: grid lines, tick labels, axis titles. Returns the plot's box. */
function axes(ctx, box, x, y, xTitle, yTitle) {
  const [grid, muted] = [css("grid"), css("muted")];
  ctx.lineWidth = 1;
  ctx.strokeStyle = grid;
  ctx.fillStyle = muted;
  ctx.textBaseline = "middle";
  ctx.textAlign = "right";
  for (const tick of y.ticks(Math.max(3, Math.floor((box.bottom - box.top) / 34)))) {
    const at = Math.round(y(tick)) + 0.5;
    ctx.beginPath(); ctx.moveTo(box.left, at); ctx.lineTo(box.right, at); ctx.stroke();
    ctx.fillText(short(tick), box.left - 8, at);
  }
  ctx.textBaseline = "top";
  ctx.textAlign = "center";
  if (x.labels) {
    const room = (box.right - box.left) / x.labels.length;
    const every = Math.ceil(26 / room);
    x.labels.forEach((label, i) => { if (i % every === 0) ctx.fillText(fit(ctx, label, room * every - 6), x(i), box.bottom + 8); });
  } else {
    ctx.strokeStyle = css("line");
    for (const tick of x.ticks(Math.max(2, Math.floor((box.right - box.left) / (x.format ? 84 : 58))))) {
      const at = x(tick);
      ctx.beginPath(); ctx.moveTo(at, box.bottom); ctx.lineTo(at, box.bottom + 4); ctx.stroke();
      ctx.fillText(x.format ? x.format(tick) : short(tick), at, box.bottom + 8);
    }
  }
  ctx.strokeStyle = css("line");
  ctx.beginPath(); ctx.moveTo(box.left, box.bottom + 0.5); ctx.lineTo(box.right, box.bottom + 0.5); ctx.stroke();
  if (xTitle) { ctx.textAlign = "right"; ctx.textBaseline = "bottom"; ctx.fillText(xTitle, box.right, box.bottom + 42); }
  if (yTitle) { ctx.textAlign = "left"; ctx.textBaseline = "top"; ctx.fillText(yTitle, 0, 0); }
}

const redrawAll = () => charts.forEach((chart) => chart.redraw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
// Paper is white whatever the screen is, so figures are drawn again in light colours before they are printed.
addEventListener("beforeprint", () => { document.documentElement.classList.add("printing"); redrawAll(); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("printing"); redrawAll(); });
