// Each trial's value in the order the trials were asked for, and the best of the finished ones so far.

const historyPlot = { now: null };
const judged = () => study.all.filter((i) => Number.isFinite(study.value[i]));
/** Whether a trial may be the best: it has finished and breaks no constraint. */
const eligible = (i) => study.state[i] === "finished" && !study.broken.has(i);

/** Filled: finished. Outline: stopped early or running. A cross: failed. Shape repeats what colour says. */
function dot(ctx, i, x, y, colour, size) {
  ctx.beginPath();
  if (study.state[i] === "failed") { ctx.moveTo(x - 3, y - 3); ctx.lineTo(x + 3, y + 3); ctx.moveTo(x - 3, y + 3); ctx.lineTo(x + 3, y - 3); }
  else ctx.arc(x, y, size, 0, 7);
  if (study.state[i] === "finished") { ctx.fillStyle = colour; ctx.fill(); }
  else { ctx.strokeStyle = colour; ctx.stroke(); }
}

const dotSize = (n) => (n > 2000 ? 1.6 : n > 300 ? 2.4 : 3.2);

/** All dots of a figure: those that the search leaves out are faint, the best, the selected and the marked ringed. */
function dots(ctx, members, at) {
  const size = dotSize(members.length);
  const many = members.length > 2000;
  for (const state of LAYERS) for (const i of members) {
    if (study.state[i] !== state || bestIs(i)) continue;
    ctx.globalAlpha = !passes(i) ? 0.08 : state === "stopped" ? (many ? 0.35 : 0.65) : many ? 0.45 : 0.85;
    dot(ctx, i, ...at(i), passes(i) ? colouring.of(i) : css("stopped"), size);
  }
  ctx.globalAlpha = 1;
  if (study.best >= 0 && members.includes(study.best)) ring(ctx, ...at(study.best), css("best"), css("card"));
}

function nearestDot(members, at, px, py) {
  let [nearest, hit] = [20 * 20, null];
  for (const i of members) {
    if (!passes(i)) continue;
    const [x, y] = at(i);
    const d = (x - px) ** 2 + (y - py) ** 2;
    if (d < nearest) { nearest = d; hit = { trial: i }; }
  }
  return hit;
}

const historyChart = new Chart($("history"), {
  label: () => `Value of each of ${count(study.number.length, "trial")} and the best so far`,
  height: () => (judged().length ? 270 : 0),
  at: (i) => [historyPlot.now.x(study.number[i]), historyPlot.now.y(study.value[i])],
  draw(ctx, w, h) {
    const members = judged();
    const span = range(members.map((i) => study.value[i]), study.best < 0 ? [] : [study.value[study.best]], false);
    const box = { left: 56, right: w - 12, top: 26, bottom: h - 44 };
    const last = study.number[study.number.length - 1];
    const x = scale(study.number[0], last, box.left, box.right, false, 0.02);
    const whole = x.ticks;
    x.ticks = (n) => whole(n).filter((t) => Number.isInteger(t) && t >= 0);
    const y = scale(span.lo, span.hi, box.bottom, box.top, false, 0.04);
    historyPlot.now = { x, y, box };
    axes(ctx, box, x, y, "trial", study.metric);
    clipped(ctx, box, () => {
      dots(ctx, members, this.at);
      ctx.strokeStyle = css("best-ink"); ctx.lineWidth = 2; ctx.beginPath();
      let top = null;
      for (const i of members) {
        if (!eligible(i)) continue;
        if (top !== null && !better(study.value[i], top)) continue;
        if (top === null) ctx.moveTo(x(study.number[i]), y(study.value[i]));
        else { ctx.lineTo(x(study.number[i]), y(top)); ctx.lineTo(x(study.number[i]), y(study.value[i])); }
        top = study.value[i];
      }
      if (top !== null) ctx.lineTo(x(last), y(top));
      ctx.stroke(); ctx.lineWidth = 1;
      if (study.best >= 0) ring(ctx, ...this.at(study.best), css("best"), css("card"));
    });
    $("history-note").textContent = `Line: best finished trial so far${study.broken.size ? " that breaks no constraint" : ""}.` + (study.state.includes("stopped") ? " An outline is a trial that was stopped early, at its last value." : "");
  },
  over(ctx) {
    if (historyPlot.now) for (const i of emphasised()) if (Number.isFinite(study.value[i])) ring(ctx, ...this.at(i), css("ink"), css("card"));
  },
  near: (px, py) => (historyPlot.now ? nearestDot(judged(), historyChart.spec.at, px, py) : null),
});

function refreshHistory() {
  if (!judged().length) $("history-note").textContent = "No trial has a value yet.";
}
