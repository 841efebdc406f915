// Ranges, scales and ticks: plain arithmetic on numbers, no page.

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
  map.back = (at) => { const v = a + ((at - from) / (to - from)) * (b - a); return log ? 10 ** v : v; };
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
