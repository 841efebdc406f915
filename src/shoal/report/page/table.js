// The table of trials. Only the rows in view exist, between two spacers, so that 10,000 trials scroll like ten.

const ROW = 33;
const PRINTED = 60;
const table = { key: "", down: false, rows: [], cells: [], from: -1, to: -1 };
const collator = new Intl.Collator("en", { numeric: true }); // words sort as people count: "2" before "10"

/** Columns, each with a rank per trial that sorts like its text or number. */
function makeCells() {
  const named = (texts) => { const order = [...new Set(texts)].sort(collator.compare); return new Map(order.map((t, k) => [t, k])); };
  const states = named(study.state);
  const cells = [
    { key: "number", label: "Trial", get: (i) => study.number[i], text: (i) => String(study.number[i]) },
    { key: "state", label: "State", get: (i) => states.get(study.state[i]), text: (i) => study.state[i], words: study.data.states, left: true },
    { key: "value", label: study.metric, get: (i) => study.value[i], text: (i) => short(study.value[i]) },
    { key: "epoch", label: "Epoch", get: (i) => study.epoch[i], text: (i) => String(study.epoch[i]) },
  ];
  cells.push(...frontCells());
  study.params.forEach((p, k) => {
    const ranks = p.choices ? named(p.choices) : null;
    cells.push({ key: "p" + k, label: p.name, left: Boolean(p.choices), words: p.choices, text: (i) => paramText(p, i), get: (i) => (p.values[i] === null ? null : ranks ? ranks.get(p.choices[p.values[i]]) : p.values[i]) });
  });
  if (study.reason.some(Boolean)) {
    const ranks = named(study.reason);
    cells.push({ key: "reason", label: "Why it ended", left: true, words: study.data.trials.reasons, text: (i) => study.reason[i], get: (i) => (study.reason[i] ? ranks.get(study.reason[i]) : null) });
  }
  return cells;
}

/** Nothing and NaN come last whichever way the column is sorted. */
function arrange() {
  const cell = table.cells.find((c) => c.key === table.key) || table.cells[0];
  const keys = study.all.map((i) => { const v = cell.get(i); return v === null || v === undefined ? NaN : v; });
  const sign = table.down ? -1 : 1;
  table.rows = study.all.filter(passes).sort((a, b) => {
    const [x, y] = [keys[a], keys[b]];
    if (x !== x || y !== y) return (x !== x) - (y !== y) || a - b;
    return x === y ? a - b : x < y ? -sign : sign;
  });
  fillHead();
  table.from = -1;
  $("table-scroll").scrollTop = 0;
  fillRows();
}

function fillHead() {
  const head = element("tr", {}, element("th", { scope: "col" }, element("span", { className: "unseen", textContent: "Mark" })));
  for (const cell of table.cells) {
    const on = cell.key === table.key;
    const button = element("button", { type: "button", textContent: cell.label + (on ? (table.down ? " ↓" : " ↑") : ""), title: cell.label, "aria-label": "Sort by " + cell.label });
    button.dataset.key = cell.key;
    button.addEventListener("click", () => {
      table.down = on ? !table.down : cell.key === "value" && study.up;
      table.key = cell.key;
      arrange();
      document.querySelectorAll("#trials th button").forEach((b) => { if (b.dataset.key === cell.key) b.focus(); });
    });
    const th = element("th", { scope: "col", className: cell.left ? "text" : "" }, button);
    if (on) th.setAttribute("aria-sort", table.down ? "descending" : "ascending");
    head.append(th);
  }
  document.querySelector("#trials thead").replaceChildren(head);
}

function rowOf(i, at) {
  const box = element("input", { type: "checkbox", checked: chosen.pins.includes(i), "aria-label": `Mark trial ${study.number[i]} in the figures` });
  box.dataset.trial = i;
  box.addEventListener("change", () => pin(i));
  const row = element("tr", { className: (bestIs(i) ? "best" : "") + (i === chosen.selected ? " on" : ""), "aria-rowindex": String(at + 2) }, element("td", {}, box));
  row.dataset.trial = i;
  for (const cell of table.cells) {
    const td = element("td", { className: cell.left ? "text" : "" });
    if (cell.key === "state") td.append(element("span", { className: "key s-" + (bestIs(i) ? "best" : study.state[i]), textContent: study.state[i] }));
    else { td.textContent = cell.text(i); td.title = td.textContent; }
    row.append(td);
  }
  row.addEventListener("pointerenter", () => select(i));
  row.addEventListener("pointerleave", () => select(-1));
  return row;
}

function fillRows() {
  const printing = document.documentElement.classList.contains("printing");
  const area = $("table-scroll");
  const inView = Math.ceil(area.clientHeight / ROW);
  const from = printing ? 0 : clamp(Math.floor(area.scrollTop / ROW) - 10, 0, Math.max(0, table.rows.length - 1));
  const to = printing ? Math.min(PRINTED, table.rows.length) : Math.min(table.rows.length, from + inView + 24);
  if (from === table.from && to === table.to) return;
  Object.assign(table, { from, to });
  const spacer = (n) => { const td = element("td", { colSpan: table.cells.length + 1 }); td.style.height = `${n * ROW}px`; return element("tr", { className: "spacer", "aria-hidden": "true" }, td); };
  const body = table.rows.slice(from, to).map((i, k) => rowOf(i, from + k));
  if (from) body.unshift(spacer(from));
  if (to < table.rows.length && !printing) body.push(spacer(table.rows.length - to));
  document.querySelector("#trials tbody").replaceChildren(...body);
  $("trials").setAttribute("aria-rowcount", String(table.rows.length + 1));
  $("trials-note").textContent = printing && to < table.rows.length ? `The first ${to} of ${count(table.rows.length, "trial")}.` : "";
}

function refreshTable() {
  table.cells = makeCells();
  if (!table.cells.some((cell) => cell.key === table.key)) {
    table.key = study.best < 0 ? "number" : study.objectives ? "front" : "value";
    table.down = table.key === "value" && study.up;
  }
  // Widths from the longest texts: with only the rows in view to go by, columns would jump while scrolling.
  const ctx = element("canvas").getContext("2d");
  const widths = table.cells.map((cell) => {
    // Of many numbers a share will do: one that is longer yet is cut, and its title has all of it.
    const texts = cell.words || thinned(study.all, 500).map(cell.text);
    const longest = texts.reduce((most, text) => (text.length > most.length ? text : most), "");
    ctx.font = FONT.replace("12px", "600 14px");
    const widest = Math.max(ctx.measureText(longest.replace(/[0-9]/g, "0")).width + (cell.key === "state" ? 14 : 0), ctx.measureText(cell.label).width * 0.93 + 16);
    return Math.ceil(clamp(widest, 34, cell.key === "reason" ? 300 : 150)) + (cell.left ? 24 : 18);
  });
  const columns = [38, ...widths];
  columns[columns.length - 1] += 20;
  document.querySelector("#trials colgroup").replaceChildren(...columns.map((w) => { const col = element("col"); col.style.width = `${w}px`; return col; }));
  $("trials").style.minWidth = `${columns.reduce((a, b) => a + b, 0)}px`;
}

$("table-scroll").addEventListener("scroll", fillRows);
