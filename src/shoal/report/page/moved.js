// What extensions moved while trials trained: one line per trial (and per fold or seed), from its base value on.

const moving = { name: "", now: null, all: [] };

/** Lines of each hyperparameter that moved; a line's points are unpacked when it is first shown. */
function openMoved() {
  const { per_epoch: many, moved } = study.data.trajectories;
  return moved.map((one) => {
    let from = 0;
    const lines = one.trials.map((trial, k) => {
      const line = { trial, first: num(one.first[k]), from, n: lengthOf(trial) * many };
      from += line.n;
      return line;
    });
    return { name: one.name, lines, many, points: unpack(one.data) };
  });
}

const movedAt = (found, line, k) => ({
  x: epochAt(line.trial, Math.floor(k / found.many)) - 1 + ((k % found.many) + 1) / found.many,
  y: found.points[line.from + k],
});

function traceMoved(ctx, found, line, { x, y }) {
  const usable = (v) => Number.isFinite(v) && (!y.log || v > 0);
  ctx.beginPath();
  let pen = found.many > 1 && usable(line.first);
  if (pen) ctx.moveTo(x(movedAt(found, line, 0).x - 1 / found.many), y(line.first));
  for (let k = 0; k < line.n; k++) {
    const at = movedAt(found, line, k);
    if (!usable(at.y)) { pen = false; continue; }
    if (pen) ctx.lineTo(x(at.x), y(at.y)); else { ctx.moveTo(x(at.x) - 1.5, y(at.y)); ctx.lineTo(x(at.x), y(at.y)); }
    pen = true;
  }
  ctx.stroke();
}

const movedChart = new Chart($("moved"), {
  label: () => (moving.now ? `${moving.now.name} over epochs, as extensions moved it, of ${count(moving.now.lines.length, "line")}` : "Nothing moved"),
  height: (w) => (moving.now ? clamp(w * 0.36, 250, 380) : 0),
  draw(ctx, w, h) {
    const found = moving.now;
    const log = $("moved-log").checked;
    const best = found.lines.filter((line) => bestIs(line.trial));
    const keep = best.flatMap((line) => Array.from(found.points.subarray(line.from, line.from + line.n)));
    const span = range([...sampled(found.points), ...found.lines.map((line) => line.first)], keep, log);
    const box = { left: 58, right: w - 34, top: 26, bottom: h - 44 };
    const x = scale(0, lastEpoch(), box.left, box.right, false);
    const y = scale(span.lo, span.hi, box.bottom, box.top, log, 0.04);
    found.plot = { x, y, box };
    axes(ctx, box, x, y, "epoch", found.name + (log ? ", log scale" : ""));
    const quiet = found.lines.filter((line) => !bestIs(line.trial));
    clipped(ctx, box, () => {
      ctx.lineWidth = 1.2;
      ctx.strokeStyle = css("stopped"); ctx.globalAlpha = 0.1;
      for (const line of thinned(quiet.filter((one) => !passes(one.trial)), 600)) traceMoved(ctx, found, line, found.plot);
      const loud = thinned(quiet.filter((line) => passes(line.trial)), MAX_QUIET_CURVES);
      ctx.globalAlpha = clamp(60 / Math.max(loud.length, 1), 0.12, 0.75);
      for (const line of loud) { ctx.strokeStyle = colouring.of(line.trial); traceMoved(ctx, found, line, found.plot); }
      ctx.globalAlpha = 1;
      for (const [colour, width] of [["card", 5.5], ["best", 3]]) for (const line of best) { ctx.strokeStyle = css(colour); ctx.lineWidth = width; traceMoved(ctx, found, line, found.plot); }
    });
    $("moved-note").textContent = `Each line is a trial's own ${found.name}, from the value that its search space gave it. An extension moved it while the model trained; trials without one are not shown.${span.cut ? " A few values lie outside the axis." : ""}`;
  },
  over(ctx) {
    const found = moving.now;
    if (!found || !found.plot) return;
    const marked = new Set(emphasised());
    clipped(ctx, found.plot.box, () => {
      for (const line of marked.size ? found.lines : []) if (marked.has(line.trial)) {
        ctx.strokeStyle = css("card"); ctx.lineWidth = 5; traceMoved(ctx, found, line, found.plot);
        ctx.strokeStyle = bestIs(line.trial) ? css("best") : css("ink"); ctx.lineWidth = 2; traceMoved(ctx, found, line, found.plot);
      }
    });
  },
  near(px, py) {
    const found = moving.now;
    if (!found || !found.plot) return null;
    const { x, y } = found.plot;
    let [nearest, hit] = [24 * 24, null];
    for (const line of found.lines) {
      if (!passes(line.trial) || !line.n) continue;
      // Points are evenly spaced, so the one below the pointer needs no search.
      const guess = study.every === 1 ? Math.round((x.back(px) + 1 - epochAt(line.trial, 0)) * found.many) - 1 : placeOf(line.trial, Math.ceil(x.back(px))) * found.many;
      const k = clamp(guess, 0, line.n - 1);
      const at = movedAt(found, line, k);
      const d = (x(at.x) - px) ** 2 + (y(at.y) - py) ** 2;
      if (d < nearest) { nearest = d; hit = { trial: line.trial, note: `${found.name} ${short(at.y)} in epoch ${Math.ceil(at.x)}, from ${short(line.first)}` }; }
    }
    return hit;
  },
});

/** Logarithmic at first where values span more than a decade. */
function chooseMoved() {
  moving.now = moving.all.find((one) => one.name === $("moved-name").value) || null;
  if (moving.now) {
    const { points, lines } = moving.now;
    const span = range([...sampled(points), ...lines.map((line) => line.first)], [], false);
    $("moved-log").disabled = !(span.lo > 0);
    if (moving.name !== moving.now.name) $("moved-log").checked = span.lo > 0 && span.hi > 10 * span.lo;
    moving.name = moving.now.name;
  }
  movedChart.redraw();
}

$("moved-name").addEventListener("change", chooseMoved);
$("moved-log").addEventListener("change", () => movedChart.redraw());

function refreshMoved() {
  moving.all = openMoved();
  fillSelect($("moved-name"), moving.all.map((one) => [one.name, one.name]), moving.name);
  $("moved-section").hidden = !moving.all.length;
  chooseMoved();
}
