// Everything together: open the study, fill the controls, draw; again when the colours, the search or the study change.

function refresh() {
  held = true;
  haystacks = null;
  const options = [["state", "State"], ["value", study.metric], ...study.params.map((p, k) => [`param:${k}`, p.name])];
  fillSelect($("colour"), options, $("colour").value);
  recolour();
  refreshCurves(); refreshHistory(); refreshImportances(); refreshGroups(); refreshMoved(); refreshSlices();
  refreshContour(); refreshParallel(); refreshResiduals(); refreshLanes(); refreshPareto();
  refreshTable();
  held = false;
  search($("search").value);
}

listeners.push(() => { arrange(); redrawAll(); });
let typing = 0;
$("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => search($("search").value), study.number.length > 1000 ? 150 : 0); });
$("colour").addEventListener("change", () => { recolour(); redrawAll(); });
$("unpin").addEventListener("click", () => { [...chosen.pins].forEach(pin); $("search").focus(); });
addEventListener("keydown", (event) => {
  const typed = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !typed && !event.ctrlKey && !event.metaKey) { event.preventDefault(); $("search").focus(); }
});

const recolourAll = (anyway) => { recolour(); regroup(); redrawAll(anyway); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolourAll());
// Paper is white whatever the screen is, so figures are drawn again in light colours before they are printed.
addEventListener("beforeprint", () => { document.documentElement.classList.add("printing"); recolourAll(true); table.from = -1; fillRows(); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("printing"); recolourAll(); table.from = -1; fillRows(); });

document.addEventListener("click", (event) => {
  if (event.target.id !== "copy") return;
  const copy = event.target;
  const done = (text) => { copy.textContent = text; setTimeout(() => { copy.textContent = "Copy"; }, 1500); };
  const selectText = () => { getSelection().selectAllChildren($("snippet")); done("Selected"); };
  // A page opened from a file has no clipboard in some browsers: then the text is selected instead.
  if (navigator.clipboard) navigator.clipboard.writeText($("snippet").textContent).then(() => done("Copied"), selectText);
  else selectText();
});

study = openStudy($("data").textContent);
refresh();
