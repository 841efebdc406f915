// Lanes over time: one row per lane, one bar per trial.

const lanePlot = { now: null, bars: [], rows: 0, from: 0 };
// Three pixels or more to a row, unless the figure would get taller than a screen.
const rowHeight = () => clamp(Math.floor(440 / Math.max(lanePlot.rows, 1)), Math.min(3, 900 / Math.max(lanePlot.rows, 1)), 22);

const laneChart = new Chart($("lanes"), {
  label: () => `Which trial was in which of ${count(lanePlot.rows, "lane")}, over time`,
  height: () => (lanePlot.bars.length ? lanePlot.rows * rowHeight() + 56 : 0),
  draw(ctx, w, h) {
    const { lanes } = study.data;
    const size = rowHeight();
    const box = { left: 84, right: w - 28, top: 6, bottom: h - 44 };
    const x = scale(lanePlot.from, num(lanes.end) || 1, box.left, box.right, false);
    x.format = duration;
    const y = Object.assign(() => 0, { ticks: () => [] });
    axes(ctx, box, x, y, "time since the study began", "");
    ctx.textBaseline = "middle";
    let named = -Infinity; // where the last group's name stands
    for (let r = 0; r < lanePlot.rows; r++) {
      const top = box.top + r * size;
      if (r === 0 || lanes.group[r] !== lanes.group[r - 1]) {
        ctx.fillStyle = css("ink");
        ctx.textAlign = "left";
        const middle = top + Math.max(size, 14) / 2;
        const shown = middle - named >= 14;
        if (shown) { ctx.fillText(fit(ctx, lanes.group[r], 54), 0, middle); named = middle; }
        // A group without room for its name has its line beside the names.
        if (r > 0) { ctx.strokeStyle = css("line"); ctx.beginPath(); ctx.moveTo(shown ? 0 : box.left, top + 0.5); ctx.lineTo(box.right, top + 0.5); ctx.stroke(); }
      }
      if (size >= 13) { ctx.fillStyle = css("muted"); ctx.textAlign = "right"; ctx.fillText(String(lanes.lane[r]), box.left - 8, top + size / 2); }
    }
    lanePlot.now = { x, box, size };
    for (const bar of lanePlot.bars) {
      ctx.globalAlpha = !passes(bar.trial) ? 0.12 : study.state[bar.trial] === "stopped" && colouring.byState ? 0.55 : 0.92;
      ctx.fillStyle = bestIs(bar.trial) ? css("best") : colouring.of(bar.trial);
      ctx.fillRect(...this.rect(bar));
    }
    ctx.globalAlpha = 1;
  },
  rect(bar) {
    const { x, box, size } = lanePlot.now;
    const [from, to] = [x(bar.start), x(bar.stop)];
    // A gap of one pixel keeps neighbours apart, as long as bars are wide enough to spare it.
    return [from, box.top + bar.row * size + 0.5, Math.max(to - from > 4 ? to - from - 1 : to - from, 0.7), Math.max(size - (size > 4 ? 2 : 1), 1.5)];
  },
  over(ctx) {
    if (!lanePlot.now) return;
    const marked = new Set(emphasised());
    ctx.fillStyle = css("ink");
    for (const bar of marked.size ? lanePlot.bars : []) {
      if (!marked.has(bar.trial)) continue;
      const [left, top, width, height] = this.rect(bar);
      ctx.fillRect(left - 1, top - 1, width + 2, height + 2);
    }
  },
  near(px, py) {
    if (!lanePlot.now) return null;
    const { box, size, x } = lanePlot.now;
    const row = Math.floor((py - box.top) / size);
    const bar = lanePlot.bars.find((b) => b.row === row && px >= x(b.start) - 1 && px <= x(b.stop) + 1);
    return bar && { trial: bar.trial, note: `${study.data.lanes.group[row]}, lane ${study.data.lanes.lane[row]}, ${duration(bar.start)} to ${duration(bar.stop)}` };
  },
});

/** "4.1 times as fast as one by one", from what the engine measured when it opened its fleets. */
function gained() {
  const measured = study.data.speedups;
  if (!measured.length) return "";
  const ratios = measured.map((m) => (m.solo_step_s * m.lanes) / m.tick_s).sort((a, b) => a - b);
  const text = ratios.length === 1 ? short(ratios[0], 2) : `${short(ratios[0], 2)} to ${short(ratios[ratios.length - 1], 2)}`;
  return ` When ${ratios.length === 1 ? "the fleet" : "its fleets"} opened, a training step of all lanes together took ${text} times less time than as many plain steps one by one, timed on this machine while the study set up.`;
}

function refreshLanes() {
  const { lanes } = study.data;
  lanePlot.bars = lanes.row.map((row, k) => ({ row, trial: lanes.trial[k], start: num(lanes.start[k]), stop: num(lanes.stop[k]) }));
  lanePlot.rows = lanes.group.length;
  const opened = lanePlot.bars.reduce((least, bar) => Math.min(least, bar.start), Infinity);
  // Data may take long to load, and first trials to trace: then the figure begins with the first bar.
  lanePlot.from = opened > 0.2 * num(lanes.end) && opened < num(lanes.end) ? opened : 0;
  const busy = lanePlot.bars.reduce((sum, bar) => sum + bar.stop - bar.start, 0) / (num(lanes.end) - opened || 1);
  $("lanes-note").textContent = lanePlot.bars.length
    ? `One row per lane, one bar per trial. From the first to the last, ${short(busy, 2)} lanes were busy at the same time on average.${gained()}${lanePlot.from ? ` The axis begins with the first of them, ${duration(lanePlot.from)} after the study.` : ""}`
    : "The study has recorded no lanes.";
}
