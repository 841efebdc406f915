// Several objectives: every finished trial by two of them, and the front that no trial is better than.

const front = { now: null, on: new Set() };
const wanted = () => study.objectives;
const pareto = () => [$("pareto-x").value, $("pareto-y").value].map(Number);
const paretoMembers = (across, up) => study.all.filter((i) => study.state[i] === "finished" && Number.isFinite(wanted().values[across][i]) && Number.isFinite(wanted().values[up][i]));

/** A cross: small beside the dots, and told from them without colour. */
function cross(ctx, x, y, colour) {
  ctx.strokeStyle = colour; ctx.lineWidth = 1.6; ctx.beginPath();
  ctx.moveTo(x - 3.5, y - 3.5); ctx.lineTo(x + 3.5, y + 3.5); ctx.moveTo(x - 3.5, y + 3.5); ctx.lineTo(x + 3.5, y - 3.5); ctx.stroke(); ctx.lineWidth = 1;
}

/** The edge of what was reached: from one trial of the front to the next, along what the better of the two allows. */
function staircase(ctx, across, up, at) {
  const { values, directions } = wanted();
  const order = [...front.on].filter((i) => Number.isFinite(values[across][i]) && Number.isFinite(values[up][i])).sort((a, b) => values[across][a] - values[across][b]);
  ctx.strokeStyle = css("best-ink"); ctx.lineWidth = 2; ctx.beginPath();
  order.forEach((i, k) => {
    const [x, y] = at(i);
    if (!k) { ctx.moveTo(x, y); return; }
    const [x0, y0] = at(order[k - 1]);
    if (directions[across] === "minimize") ctx.lineTo(x, y0); else ctx.lineTo(x0, y);
    ctx.lineTo(x, y);
  });
  ctx.stroke(); ctx.lineWidth = 1;
}

const paretoChart = $("pareto") && new Chart($("pareto"), {
  label: () => `${wanted().names[pareto()[1]]} against ${wanted().names[pareto()[0]]} of finished trials; ${count(front.on.size, "trial")} on the Pareto front`,
  height: () => (front.drawn ? 320 : 0),
  at: (i) => [front.now.x(wanted().values[front.now.across][i]), front.now.y(wanted().values[front.now.up][i])],
  draw(ctx, w, h) {
    $("pareto-legend").replaceChildren(swatch("Pareto front", css("best")), ...(colouring.byState ? [swatch("finished", css("finished"))] : legendItems(colouring, false)), ...(study.broken.size ? [element("li", {}, element("span", { textContent: "×", "aria-hidden": "true" }), "breaks a constraint")] : []));
    const [across, up] = pareto();
    const { values, names } = wanted();
    const members = paretoMembers(across, up);
    const kept = [...front.on].filter((i) => members.includes(i));
    const wide = (k) => { const own = members.map((i) => values[k][i]); return Math.min(...own) > 0 && Math.max(...own) > 30 * Math.min(...own); };
    const span = (k) => range(members.map((i) => values[k][i]), kept.map((i) => values[k][i]), wide(k));
    const [sx, sy] = [span(across), span(up)];
    const box = { left: 64, right: w - 14, top: 28, bottom: h - 44 };
    const x = scale(sx.lo, sx.hi, box.left, box.right, wide(across), 0.04);
    const y = scale(sy.lo, sy.hi, box.bottom, box.top, wide(up), 0.05);
    front.now = { x, y, across, up, members };
    axes(ctx, box, x, y, names[across], names[up]);
    clipped(ctx, box, () => {
      for (const i of members) {
        if (front.on.has(i)) continue;
        ctx.globalAlpha = passes(i) ? 0.8 : 0.08;
        if (study.broken.has(i)) cross(ctx, ...this.at(i), css("muted"));
        else dot(ctx, i, ...this.at(i), colouring.of(i), dotSize(members.length));
      }
      ctx.globalAlpha = 1;
      if (names.length === 2) staircase(ctx, across, up, this.at);
      for (const i of kept) { ctx.globalAlpha = passes(i) ? 1 : 0.2; ring(ctx, ...this.at(i), css("best"), css("card")); }
      ctx.globalAlpha = 1;
    });
  },
  over(ctx) {
    if (front.now) for (const i of emphasised()) if (front.now.members.includes(i)) ring(ctx, ...this.at(i), css("ink"), css("card"));
  },
  near: (px, py) => (front.now ? nearestDot(front.now.members, paretoChart.spec.at, px, py) : null),
});

/** Columns of the table of trials: where each stands, and its values of the further objectives. */
function frontCells() {
  if (!wanted()) return [];
  const words = ["front", "", "breaks a constraint"];
  const rank = (i) => (front.on.has(i) ? 0 : study.broken.has(i) ? 2 : 1);
  const cells = [{ key: "front", label: "Front", left: true, words, text: (i) => words[rank(i)], get: rank }];
  wanted().names.forEach((name, k) => {
    if (k) cells.push({ key: "objective" + k, label: name, get: (i) => wanted().values[k][i], text: (i) => { const v = wanted().values[k][i]; return Number.isInteger(v) ? String(v) : short(v); } });
  });
  return cells;
}

function refreshPareto() {
  if (!wanted() || !paretoChart) return;
  const { names } = wanted();
  front.on = new Set(wanted().front);
  const options = names.map((name, k) => [String(k), name]);
  fillSelect($("pareto-x"), options, $("pareto-x").value || "1");
  fillSelect($("pareto-y"), options, $("pareto-y").value || "0");
  for (const id of ["pareto-x-field", "pareto-y-field"]) $(id).hidden = names.length < 3;
  front.drawn = paretoMembers(...pareto()).length;
  const note = names.length === 2 ? "Line: the edge of what was reached." : "With more than two objectives a trial of the front may look beaten in two of them.";
  $("pareto-note").textContent = front.drawn ? note + (study.broken.size ? " Crosses break a constraint." : "") : "No trial has finished yet.";
}

if (paretoChart) for (const id of ["pareto-x", "pareto-y"]) $(id).addEventListener("change", () => { refreshPareto(); paretoChart.redraw(true); });
