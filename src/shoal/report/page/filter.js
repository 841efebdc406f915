// One choice of trials for the whole page. The search field is the only place it is written down: brushing an axis
// types into it, so everything that a pointer can choose can be typed, and seen, and undone.

const chosen = { selected: -1, pins: [], matches: null, query: "" };
const listeners = [];
const MAX_PINS = 12;

/** Whether a trial passes the search; without a search, all do. */
const passes = (i) => chosen.matches === null || chosen.matches[i] === 1;
const searching = () => chosen.matches !== null;

const NUMBERS = { trial: (i) => study.number[i], number: (i) => study.number[i], value: (i) => study.value[i], epoch: (i) => study.epoch[i] };
let haystacks = null;

function haystack(i) {
  haystacks = haystacks || new Array(study.number.length);
  if (haystacks[i] === undefined) {
    const words = [study.number[i], study.state[i], short(study.value[i]), study.reason[i]];
    for (const p of study.params) if (p.values[i] !== null) words.push(`${p.name}=${paramText(p, i)}`);
    haystacks[i] = words.join(" ").toLowerCase();
  }
  return haystacks[i];
}

/** `name<3` as a test of a trial, or null when the word compares nothing that the study has. */
function comparison(word) {
  const parts = /^("[^"]*"|[^<>=!"]+)(<=|>=|!=|=|<|>)(.*)$/.exec(word);
  if (!parts) return null;
  const [name, operator, text] = [parts[1].replace(/"/g, "").toLowerCase(), parts[2], parts[3].replace(/"/g, "").toLowerCase()];
  const p = study.params.find((one) => one.name.toLowerCase() === name);
  let get = p ? (i) => p.values[i] : name === study.metric.toLowerCase() ? NUMBERS.value : NUMBERS[name];
  if (p && p.choices) get = (i) => (p.values[i] === null ? null : p.choices[p.values[i]].toLowerCase());
  if (!p && name === "state") get = (i) => study.state[i];
  if (!get) return null;
  const wanted = Number(text);
  if (operator === "=" || operator === "!=") {
    // 0.01 finds what is shown as 0.01, however many digits it has.
    const same = (v) => v !== null && (typeof v === "string" ? v === text : text !== "" && (v === wanted || short(v).replace("−", "-") === text));
    return (i) => same(get(i)) === (operator === "=");
  }
  if (text === "" || Number.isNaN(wanted)) return null;
  const tests = { "<": (v) => v < wanted, ">": (v) => v > wanted, "<=": (v) => v <= wanted, ">=": (v) => v >= wanted };
  return (i) => { const v = get(i); return v !== null && v !== undefined && tests[operator](Number(v)); };
}

function search(query) {
  chosen.query = query;
  const words = query.match(/(?:"[^"]*"|[^\s"]|"(?![^"]*"))+/g) || [];
  const tests = words.map((word) => comparison(word) || ((needle) => (i) => haystack(i).includes(needle))(word.replace(/"/g, "").toLowerCase()));
  chosen.matches = tests.length ? Uint8Array.from(study.all, (i) => (tests.every((test) => test(i)) ? 1 : 0)) : null;
  const found = chosen.matches ? chosen.matches.reduce((sum, one) => sum + one, 0) : study.number.length;
  $("count").textContent = `${found.toLocaleString("en")} of ${count(study.number.length, "trial")}`;
  listeners.forEach((listener) => listener());
}

/** Put comparisons of one name into the search field in place of those that are there. */
function compareInSearch(name, terms) {
  const quoted = /[\s<>=!"]/.test(name) ? `"${name.replace(/"/g, "")}"` : name;
  const words = ($("search").value.match(/(?:"[^"]*"|[^\s"]|"(?![^"]*"))+/g) || []).filter((word) => !/^[<>=!]/.test(word.slice(quoted.length)) || !word.startsWith(quoted));
  $("search").value = [...words, ...terms.map((term) => quoted + term)].join(" ");
  search($("search").value);
}

function pin(i) {
  const at = chosen.pins.indexOf(i);
  if (at >= 0) chosen.pins.splice(at, 1);
  else chosen.pins = [...chosen.pins, i].slice(-MAX_PINS);
  $("unpin").hidden = !chosen.pins.length;
  $("unpin").textContent = `Unmark ${chosen.pins.length}`;
  charts.forEach((chart) => chart.overlay());
  document.querySelectorAll("#trials tbody input").forEach((box) => { box.checked = chosen.pins.includes(Number(box.dataset.trial)); });
}

// ---- the trial under the pointer, shown in every figure and in the table

function select(trial, note, event, title) {
  if (trial !== chosen.selected) {
    chosen.selected = trial;
    charts.forEach((chart) => chart.overlay());
    document.querySelectorAll("#trials tbody tr").forEach((row) => row.classList.toggle("on", Number(row.dataset.trial) === trial));
  }
  const tip = $("tip");
  tip.hidden = !event || (trial < 0 && !title);
  if (tip.hidden) return;
  const head = element("b", { textContent: title || `Trial ${study.number[trial]}, ${study.state[trial]}` });
  const line = element("div", { textContent: note || `${study.metric} ${short(study.value[trial])} at epoch ${study.epoch[trial]}` });
  const list = element("dl");
  if (trial >= 0) for (const p of study.params.slice(0, 16)) {
    if (p.values[trial] !== null) list.append(element("dt", { textContent: p.name }), element("dd", { textContent: paramText(p, trial) }));
  }
  tip.replaceChildren(head, line, list);
  const box = tip.getBoundingClientRect();
  tip.style.left = clamp(event.clientX + 16, 8, Math.max(8, innerWidth - box.width - 8)) + "px";
  const below = event.clientY + 16;
  tip.style.top = (below + box.height > innerHeight - 8 ? Math.max(8, event.clientY - box.height - 12) : below) + "px";
  if (event.spoken) $("said").textContent = [head, line, ...list.children].map((part) => part.textContent).join(", ");
}
