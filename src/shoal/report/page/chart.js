// A figure of two canvases: the base layer holds every trial and is drawn rarely, the layer above holds only what the
// pointer or the keyboard is on, so that hovering stays quick with 10,000 trials. Nothing is drawn before it is nearly
// on the screen, so that a page of ten figures opens at once.

const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const charts = [];
let held = false; // while the page is being filled, figures wait and are drawn together

function fit(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  while (text.length > 1 && ctx.measureText(text + "…").width > width) text = text.slice(0, -1);
  return text + "…";
}

const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
  const chart = charts.find((one) => one.host === entry.target);
  if (!chart) return;
  chart.near = entry.isIntersecting;
  if (chart.near && chart.stale) chart.redraw();
}), { rootMargin: "400px" });

/** `draw(ctx, w, h)` paints the base layer, `over(ctx, w, h)` the layer above, `near(x, y)` finds what is there. */
class Chart {
  constructor(host, spec) {
    this.host = host;
    this.spec = spec;
    this.base = element("canvas", { role: "img" });
    this.top = element("canvas", { className: "top", "aria-hidden": "true" });
    host.replaceChildren(this.base, this.top);
    host.tabIndex = 0;
    host.setAttribute("role", "group");
    host.addEventListener("pointermove", (event) => this.point(event));
    host.addEventListener("pointerdown", (event) => this.point(event));
    host.addEventListener("pointerleave", () => select(-1));
    host.addEventListener("click", (event) => { const hit = this.hit(event); if (hit && hit.trial >= 0 && !this.dragged) pin(hit.trial); });
    host.addEventListener("keydown", (event) => this.key(event));
    host.addEventListener("blur", () => select(-1));
    charts.push(this);
    this.width = 0;
    this.near = false;
    this.stale = true;
    // Drawing changes the host's height, which an observer may not do while it is being told of a size.
    this.sizes = new ResizeObserver(() => requestAnimationFrame(() => { if (host.clientWidth && host.clientWidth !== this.width) this.redraw(); }));
    this.sizes.observe(host);
    watcher.observe(host);
  }

  remove() {
    this.sizes.disconnect();
    watcher.unobserve(this.host);
    charts.splice(charts.indexOf(this), 1);
  }

  hit(event) {
    const box = this.host.getBoundingClientRect();
    return this.spec.near && !this.stale ? this.spec.near(event.clientX - box.left, event.clientY - box.top) : null;
  }

  point(event) {
    const hit = this.hit(event);
    select(hit ? hit.trial : -1, hit && hit.note, event, hit && hit.title);
  }

  /** Left and right walk through the trials in the order of the table, Enter marks one: what a pointer can do. */
  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" && chosen.selected >= 0) pin(chosen.selected);
    else if (event.key === "Escape") select(-1);
    else if (step && table.rows.length) {
      const at = table.rows.indexOf(chosen.selected);
      const next = table.rows[clamp(at < 0 ? 0 : at + step, 0, table.rows.length - 1)];
      const box = this.host.getBoundingClientRect();
      select(next, "", { clientX: box.left + 60, clientY: clamp(box.top, 0, innerHeight - 80), spoken: true });
    } else return;
    event.preventDefault();
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

  /** `width` of the host, if it is known: to ask for it after another figure was given its height costs a layout. */
  redraw(anyway, width) {
    if (held) return;
    if (width === undefined) this.host.hidden = false; // what is hidden has no width
    this.width = width === undefined ? this.host.clientWidth : width;
    if (!this.width) return;
    this.height = this.spec.height(this.width);
    this.host.style.height = this.height + "px";
    this.host.hidden = !this.height;
    this.host.setAttribute("aria-label", this.spec.label());
    this.base.setAttribute("aria-label", this.spec.label());
    this.stale = !this.near && !anyway;
    if (this.stale || !this.height) return;
    this.spec.draw(this.layer(this.base), this.width, this.height);
    this.overlay();
  }

  overlay() {
    if (this.width && this.height && !this.stale && this.spec.over) this.spec.over(this.layer(this.top), this.width, this.height);
  }
}

function clipped(ctx, box, paint) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(box.left - 2, box.top - 4, box.right - box.left + 4, box.bottom - box.top + 8);
  ctx.clip();
  paint();
  ctx.restore();
}

/** Frame of a plot: grid lines, tick labels, axis titles. */
function axes(ctx, box, x, y, xTitle, yTitle, gridless) {
  const [grid, muted] = [gridless ? "transparent" : css("grid"), css("muted")];
  ctx.lineWidth = 1;
  ctx.strokeStyle = grid;
  ctx.fillStyle = muted;
  ctx.textBaseline = "middle";
  ctx.textAlign = "right";
  if (y.labels) {
    y.labels.forEach((label, i) => ctx.fillText(fit(ctx, label, box.left - 10), box.left - 8, y(i)));
  } else for (const tick of y.ticks(Math.max(3, Math.floor((box.bottom - box.top) / 34)))) {
    const at = Math.round(y(tick)) + 0.5;
    ctx.beginPath(); ctx.moveTo(box.left, at); ctx.lineTo(box.right, at); ctx.stroke();
    ctx.fillText(short(tick), box.left - 8, at);
  }
  ctx.textBaseline = "top";
  ctx.textAlign = "center";
  if (x.labels) {
    const room = (box.right - box.left) / x.labels.length;
    // Where there is no room for all, some in words say more than each as a letter.
    const longest = x.labels.reduce((most, label) => Math.max(most, ctx.measureText(label).width), 0);
    const every = room < 26 ? Math.ceil(clamp(longest + 8, 26, 78) / room) : 1;
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
  if (xTitle) { ctx.textAlign = "right"; ctx.textBaseline = "bottom"; ctx.fillText(fit(ctx, xTitle, box.right - box.left), box.right, box.bottom + 42); }
  if (yTitle) { ctx.textAlign = "left"; ctx.textBaseline = "top"; ctx.fillText(fit(ctx, yTitle, box.right), 0, 0); }
}

/** A filled ring around a point: the best trial, the selected one, the marked ones. */
function ring(ctx, x, y, colour, rim, size) {
  ctx.beginPath(); ctx.arc(x, y, size || 6, 0, 7);
  ctx.fillStyle = colour; ctx.fill(); ctx.strokeStyle = rim; ctx.lineWidth = 2; ctx.stroke(); ctx.lineWidth = 1;
}

/** A trial's number beside its mark, legible on anything. */
function tag(ctx, text, x, y) {
  ctx.textBaseline = "middle";
  ctx.textAlign = "left";
  ctx.lineWidth = 4; ctx.strokeStyle = css("card"); ctx.strokeText(text, x, y);
  ctx.fillStyle = css("ink"); ctx.fillText(text, x, y);
  ctx.lineWidth = 1;
}

const emphasised = () => [...chosen.pins, ...(chosen.selected >= 0 && !chosen.pins.includes(chosen.selected) ? [chosen.selected] : [])];
function redrawAll(anyway) {
  charts.forEach((chart) => { chart.host.hidden = false; });
  const widths = charts.map((chart) => chart.host.clientWidth);
  charts.forEach((chart, k) => chart.redraw(anyway === true, widths[k]));
}
