// Lanes over time, and the table of trials.

// ---- lanes over time

const lanes = data.lanes;
const bars = lanes.row.map((row, k) => ({ row, trial: lanes.trial[k], start: num(lanes.start[k]), stop: num(lanes.stop[k]) }));
let lanePlot = null;

const rowHeight = () => clamp(Math.floor(440 / Math.max(lanes.group.length, 1)), 3, 22);
const laneChart = new Chart($("lanes"), `Which trial was in which of ${lanes.group.length} lanes, over time`, {
  height: () => (bars.length ? lanes.group.length * rowHeight() + 56 : 0),
  draw(ctx, w, h) {
    if (!bars.length) return;
    const size = rowHeight();
    const box = { left: 84, right: w - 28, top: 6, bottom: h - 44 };
    const x = scale(0, num(lanes.end) || 1, box.left, box.right, false);
    x.format = duration;
    const y = () => 0;
    y.ticks = () => [];
    axes(ctx, box, x, y, "time since the study began", "");
    ctx.textBaseline = "middle";
    const rows = lanes.group.length;
    for (let r = 0; r < rows; r++) {
      const top = box.top + r * size;
      const first = r === 0 || lanes.group[r] !== lanes.group[r - 1];
      if (first) {
        let end = r;
        while (end + 1 < rows && lanes.group[end + 1] === lanes.group[r]) end++;
        ctx.fillStyle = css("ink");
        ctx.textAlign = "left";
        // The last group may write below itself: the corner under it is empty.
        if ((end - r + 1) * size >= 12 || end === rows - 1) ctx.fillText(fit(ctx, lanes.group[r], 54), 0, top + Math.max(size, 14) / 2);
        if (r > 0) { ctx.strokeStyle = css("line"); ctx.beginPath(); ctx.moveTo(0, top + 0.5); ctx.lineTo(box.right, top + 0.5); ctx.stroke(); }
      }
      if (size >= 13) { ctx.fillStyle = css("muted"); ctx.textAlign = "right"; ctx.fillText(String(lanes.lane[r]), box.left - 8, top + size / 2); }
    }
    const colours = Object.fromEntries([...LAYERS, "best"].map((s) => [s, css(s)]));
    lanePlot = { x, box, size };
    for (const bar of bars) {
      ctx.globalAlpha = stateOf[bar.trial] === "stopped" ? 0.55 : 0.92;
      if (bar.trial === data.best) ctx.globalAlpha = 1;
      ctx.fillStyle = bar.trial === data.best ? colours.best : colours[stateOf[bar.trial]];
      ctx.fillRect(...this.rect(bar));
    }
    ctx.globalAlpha = 1;
  },
  rect(bar) {
    const { x, box, size } = lanePlot;
    const [from, to] = [x(bar.start), x(bar.stop)];
    // A gap of one pixel keeps neighbours apart, as long as bars are wide enough to spare it.
    return [from, box.top + bar.row * size + 0.5, Math.max(to - from > 4 ? to - from - 1 : to - from, 0.7), Math.max(size - (size > 4 ? 2 : 1), 1.5)];
  },
  over(ctx) {
    if (selected < 0 || !lanePlot) return;
    for (const bar of bars) {
      if (bar.trial !== selected) continue;
      const [left, top, width, height] = this.rect(bar);
      ctx.fillStyle = css("ink");
      ctx.fillRect(left - 1, top - 1, width + 2, height + 2);
    }
  },
  near(px, py) {
    if (!lanePlot) return null;
    const row = Math.floor((py - lanePlot.box.top) / lanePlot.size);
    const bar = bars.find((b) => b.row === row && px >= lanePlot.x(b.start) - 1 && px <= lanePlot.x(b.stop) + 1);
    return bar && { trial: bar.trial, note: `${lanes.group[row]}, lane ${lanes.lane[row]}, ${duration(bar.start)} to ${duration(bar.stop)}` };
  },
});
if (bars.length) {
  const busy = bars.reduce((sum, bar) => sum + bar.stop - bar.start, 0) / (lanes.group.length * num(lanes.end) || 1);
  $("lanes-note").textContent = `One row per lane, one bar per trial. Bars cover ${Math.round(100 * busy)} % of the lanes' time.`;
} else {
  $("lanes-note").textContent = "The study has recorded no lanes.";
}

// ---- table of trials

const PAGE = 25;
const table = { key: data.best < 0 ? "number" : "value", down: data.best >= 0 && data.direction === "maximize", page: 0, rows: all };
const cells = [
  { key: "number", label: "Trial", get: (i) => number[i], text: (i) => String(number[i]) },
  { key: "state", label: "State", get: (i) => stateOf[i], text: (i) => stateOf[i], left: true },
  { key: "value", label: data.metric, get: (i) => value[i], text: (i) => short(value[i]) },
  { key: "epoch", label: "Epoch", get: (i) => epoch[i], text: (i) => String(epoch[i]) },
  ...columns.map((p, k) => ({
    key: "p" + k, label: p.name, left: Boolean(p.choices), text: (i) => paramText(p, i),
    get: (i) => (p.choices && p.values[i] !== null ? p.choices[p.values[i]] : p.values[i]),
  })),
];
const haystack = all.map((i) => [...cells.map((c) => c.text(i)), ...columns.map((p) => `${p.name}=${paramText(p, i)}`), reasons[reason[i]]].join(" ").toLowerCase());

/** Nothing and NaN come last whichever way the column is sorted; words sort as people count ("2" before "10"). */
function compare(a, b, down) {
  const missing = (v) => v === null || Number.isNaN(v);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const order = typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), "en", { numeric: true }) : a < b ? -1 : a > b ? 1 : 0;
  return down ? -order : order;
}

function arrange() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const cell = cells.find((c) => c.key === table.key);
  table.rows = all.filter((i) => words.every((word) => haystack[i].includes(word)));
  table.rows.sort((a, b) => compare(cell.get(a), cell.get(b), table.down) || number[a] - number[b]);
  table.page = 0;
  fill();
}

function fill() {
  const pages = Math.max(1, Math.ceil(table.rows.length / PAGE));
  table.page = clamp(table.page, 0, pages - 1);
  const head = document.createElement("tr");
  for (const cell of cells) {
    const th = document.createElement("th");
    th.scope = "col";
    if (cell.left) th.className = "text";
    const on = cell.key === table.key;
    if (on) th.setAttribute("aria-sort", table.down ? "descending" : "ascending");
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: cell.label + (on ? (table.down ? " ↓" : " ↑") : "") });
    button.setAttribute("aria-label", "Sort by " + cell.label);
    button.dataset.key = cell.key;
    button.addEventListener("click", () => {
      table.down = on ? !table.down : cell.key === "value" && data.direction === "maximize";
      table.key = cell.key;
      arrange();
      document.querySelectorAll("#trials th button").forEach((b) => { if (b.dataset.key === cell.key) b.focus(); });
    });
    th.append(button);
    head.append(th);
  }
  const body = table.rows.slice(table.page * PAGE, (table.page + 1) * PAGE).map((i) => {
    const row = document.createElement("tr");
    row.dataset.trial = i;
    if (i === data.best) row.className = "best";
    if (reasons[reason[i]]) row.title = reasons[reason[i]];
    for (const cell of cells) {
      const td = document.createElement("td");
      if (cell.left) td.className = "text";
      if (cell.key === "state") td.append(Object.assign(document.createElement("span"), { className: "key s-" + (i === data.best ? "best" : stateOf[i]), textContent: stateOf[i] }));
      else td.textContent = cell.text(i);
      row.append(td);
    }
    row.addEventListener("pointerenter", () => select(i));
    row.addEventListener("pointerleave", () => select(-1));
    return row;
  });
  document.querySelector("#trials thead").replaceChildren(head);
  document.querySelector("#trials tbody").replaceChildren(...body);
  $("count").textContent = `${table.rows.length.toLocaleString("en")} of ${number.length.toLocaleString("en")} trials`;
  $("page").textContent = `${table.page + 1} / ${pages}`;
  $("previous").disabled = table.page === 0;
  $("next").disabled = table.page >= pages - 1;
}
$("search").addEventListener("input", arrange);
$("previous").addEventListener("click", () => { table.page--; fill(); });
$("next").addEventListener("click", () => { table.page++; fill(); });
arrange();

const copy = $("copy");
if (copy) copy.addEventListener("click", () => {
  const done = (text) => { copy.textContent = text; setTimeout(() => { copy.textContent = "Copy"; }, 1500); };
  const selectText = () => { getSelection().selectAllChildren($("snippet")); done("Selected"); };
  // A page opened from a file has no clipboard in some browsers: then the text is selected instead.
  if (navigator.clipboard) navigator.clipboard.writeText($("snippet").textContent).then(() => done("Copied"), selectText);
  else selectText();
});
