// How numbers read, and small helpers for elements. Names and values come from users: they reach the page through
// textContent and fillText only, never as HTML.

const $ = (id) => document.getElementById(id);
// A computed style costs microseconds, and a figure of 10,000 trials asks for one per dot; `recolour` forgets them.
const styles = new Map();
function css(name) {
  if (!styles.has(name)) styles.set(name, getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim());
  return styles.get(name);
}
const clamp = (x, lo, hi) => Math.min(Math.max(x, lo), hi);
const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many || one + "s"}`;

/** A number that JSON could not hold comes as a string: "NaN", "Infinity", "-Infinity". */
const num = (x) => (typeof x === "string" ? Number(x) : x);

function short(x, digits = 5) {
  if (x === null || x === undefined) return "–";
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return x.toExponential(Math.min(digits - 1, 3)).replace(/\.?0+e/, "e").replace("e+", "e").replace(/-/g, "−");
  return String(Number(x.toPrecision(digits))).replace("-", "−");
}

function duration(s) {
  if (s < 60) return Number(s.toPrecision(3)) + " s";
  const whole = Math.round(s);
  if (whole < 3600) return Math.floor(whole / 60) + " min" + (whole % 60 ? " " + (whole % 60) + " s" : "");
  return Math.floor(whole / 3600) + " h" + (whole % 3600 >= 60 ? " " + Math.floor((whole % 3600) / 60) + " min" : "");
}

/** An element with properties, attributes (keys with a dash, and role) and children. */
function element(tag, settings, ...children) {
  const made = document.createElement(tag);
  for (const [key, setting] of Object.entries(settings || {})) {
    if (key.includes("-") || key === "role") made.setAttribute(key, setting);
    else made[key] = setting;
  }
  made.append(...children);
  return made;
}

/** Fill a select with [value, label] pairs; keeps the wanted choice when it is still there. Returns what is chosen. */
function fillSelect(select, options, wanted) {
  select.replaceChildren(...options.map(([value, label]) => element("option", { value, textContent: label })));
  select.value = options.some(([value]) => value === wanted) ? wanted : options.length ? options[0][0] : "";
  return select.value;
}
