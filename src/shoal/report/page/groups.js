// Median curve of the trials of each choice, with a 95 % confidence band that assumes no distribution.

const grouping = { by: "", series: "", log: false, plot: null, groups: [] };

/** Trials by choice, or by quarter of a number's values. */
function groupsOf(p) {
  if (p.choices) return p.choices.map((label, k) => ({ label, members: study.all.filter((i) => p.values[i] === k) }));
  const sorted = p.values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return [];
  const cuts = [0.25, 0.5, 0.75].map((q) => sorted[Math.floor(q * (sorted.length - 1))]);
  const edges = [sorted[0], ...cuts, sorted[sorted.length - 1]];
  const place = (v) => cuts.filter((cut) => v > cut).length;
  return [0, 1, 2, 3].map((k) => ({ label: `${short(edges[k], 3)} to ${short(edges[k + 1], 3)}`, members: study.all.filter((i) => hasNumber(p, i) && place(p.values[i]) === k) }));
}

/** Ranks (from 0) between which the median lies with 95 % confidence: the binomial's tails, by sums up to 500. */
function medianRanks(n) {
  let low = Math.round(n / 2 - 0.98 * Math.sqrt(n)) - 1;
  if (n <= 500) {
    let [term, tail] = [0.5 ** n, 0.5 ** n];
    for (low = -1; tail <= 0.025; ) { low++; term *= (n - low) / (low + 1); tail += term; }
  }
  return [Math.max(0, low), Math.min(n - 1, n - 1 - low)];
}

/** Per epoch: median, its interval and how many trials it is of. A stopped trial stays with its last value. */
function medianCurve(members, series, last) {
  const rows = [];
  const epochs = study.every === 1 ? Array.from({ length: last }, (_, k) => k + 1) : [1, ...Array.from({ length: Math.ceil(last / study.every) }, (_, k) => Math.min((k + 1) * study.every, last))];
  for (const epoch of epochs) {
    const values = [];
    for (const i of members) {
      const n = lengthOf(i);
      if (!n || epochAt(i, 0) > epoch) continue;
      if (epochAt(i, n - 1) < epoch && study.state[i] === "running") continue; // it has yet to get there
      const v = pointOf(series, i, placeOf(i, epoch));
      // Diverged is worse than any number, whichever way is better.
      values.push(Number.isFinite(v) ? v : series.loss || !study.up ? Infinity : -Infinity);
    }
    if (!values.length) continue;
    values.sort((a, b) => a - b);
    const [lo, hi] = medianRanks(values.length);
    rows.push({ epoch, n: values.length, mid: values[values.length >> 1], lo: values[lo], hi: values[hi] });
  }
  return rows;
}

const groupChart = new Chart($("groups"), {
  label: () => `Median ${grouping.series} by ${grouping.by}, with 95 % confidence bands`,
  height: (w) => (grouping.groups.length ? clamp(w * 0.36, 250, 380) : 0),
  draw(ctx, w, h) {
    const series = study.series.find((s) => s.name === grouping.series) || study.series[0];
    const log = grouping.log && series.loss;
    const last = lastEpoch();
    const drawn = grouping.groups.map((g) => ({ ...g, rows: medianCurve(g.members.filter(passes), series, last) })).filter((g) => g.rows.length);
    const span = range(drawn.flatMap((g) => g.rows.flatMap((r) => (g.members.length > 5 ? [r.lo, r.mid, r.hi] : [r.mid]))), [], log);
    const box = { left: 58, right: w - 12, top: 26, bottom: h - 44 };
    const x = wholeEpochs(scale(Math.min(1, last - 1), last, box.left, box.right, false));
    const y = scale(span.lo, span.hi, box.bottom, box.top, log, 0.04);
    grouping.plot = { x, y, box, drawn };
    axes(ctx, box, x, y, "epoch", `median ${series.name}`);
    const inside = (v) => clamp(y(!Number.isFinite(v) ? (v > 0 ? span.hi : span.lo) : log && v <= 0 ? span.lo : v), box.top - 40, box.bottom + 40);
    clipped(ctx, box, () => {
      for (const g of drawn) {
        ctx.fillStyle = g.colour;
        ctx.globalAlpha = 0.16;
        ctx.beginPath();
        g.rows.forEach((r, k) => (k ? ctx.lineTo(x(r.epoch), inside(r.hi)) : ctx.moveTo(x(r.epoch), inside(r.hi))));
        for (const r of [...g.rows].reverse()) ctx.lineTo(x(r.epoch), inside(r.lo));
        ctx.fill();
      }
      ctx.globalAlpha = 1;
      drawn.forEach((g) => {
        ctx.strokeStyle = g.colour; ctx.lineWidth = 2.2; ctx.setLineDash(g.dash); ctx.beginPath();
        g.rows.forEach((r, k) => (k ? ctx.lineTo(x(r.epoch), inside(r.mid)) : ctx.moveTo(x(r.epoch), inside(r.mid))));
        if (g.rows.length === 1) { ctx.moveTo(x(g.rows[0].epoch) - 4, inside(g.rows[0].mid)); ctx.lineTo(x(g.rows[0].epoch) + 4, inside(g.rows[0].mid)); }
        ctx.stroke();
      });
      ctx.setLineDash([]); ctx.lineWidth = 1;
    });
  },
  near(px, py) {
    let [nearest, hit] = [22, null];
    for (const g of grouping.plot ? grouping.plot.drawn : []) for (const r of g.rows) {
      const d = Math.abs(grouping.plot.x(r.epoch) - px) < 20 ? Math.abs(grouping.plot.y(r.mid) - py) + Math.abs(grouping.plot.x(r.epoch) - px) / 3 : Infinity;
      if (d < nearest) { nearest = d; hit = { trial: -1, title: `${grouping.by}: ${g.label}`, note: `epoch ${r.epoch}: median ${short(r.mid)}, 95 % between ${short(r.lo)} and ${short(r.hi)}, of ${count(r.n, "trial")}` }; }
    }
    return hit;
  },
});

const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];

function regroup() {
  const p = study.params.find((one) => one.name === $("groups-by").value);
  grouping.by = p ? p.name : "";
  grouping.series = $("groups-series").value;
  const series = study.series.find((s) => s.name === grouping.series);
  $("groups-log").disabled = !series || !series.loss;
  const all = p && series && drawable(series) ? groupsOf(p) : [];
  const named = all.filter((g) => g.members.some(lengthOf)).slice(0, PALETTE.length);
  // Numbers have an order, so their colours have one; choices have none. Dashes repeat what colours say.
  grouping.groups = named.map((g, k) => ({ ...g, dash: DASHES[k % 4], colour: p.choices ? css(PALETTE[k]) : viridis(k / 3.4) }));
  $("groups-legend").replaceChildren(...grouping.groups.map((g) => swatch(`${g.label} (${g.members.length.toLocaleString("en")})`, g.colour)));
  const rest = all.filter((g) => g.members.some(lengthOf)).length - named.length;
  $("groups-note").textContent = !study.params.length ? "No trial has a hyperparameter." : !p ? "No hyperparameter varied." : !grouping.groups.length ? nothingFinite : "Band: 95 % confidence interval of the median, from order statistics. A trial that was stopped stays with its last value, so that every epoch compares the same trials." + (rest > 0 ? ` ${count(rest, "further choice is", "further choices are")} not drawn.` : "");
  groupChart.redraw();
}

for (const id of ["groups-by", "groups-series"]) $(id).addEventListener("change", regroup);
$("groups-log").addEventListener("change", (event) => { grouping.log = event.target.checked; groupChart.redraw(); });

function refreshGroups() {
  const used = study.params.filter((p) => new Set(p.values.filter((v) => v !== null)).size > 1);
  const ordered = [...used.filter((p) => p.choices), ...used.filter((p) => !p.choices)];
  const first = ordered.find((p) => p.choices && /optim/i.test(p.name)) || ordered[0];
  fillSelect($("groups-by"), ordered.map((p) => [p.name, p.name]), grouping.by || (first ? first.name : ""));
  const loss = study.series.find((s) => s.name === "validation loss") || study.series[0];
  fillSelect($("groups-series"), study.series.map((s) => [s.name, s.name]), grouping.series || loss.name);
  $("groups-controls").hidden = !ordered.length || !trained();
  regroup();
}
