// Value against each hyperparameter, one small figure each.

let sliceCharts = [];
let finishedOnly = false;

function sliceChart(p) {
  const caption = element("figcaption", { textContent: p.name });
  if (p.log) caption.append(element("span", { textContent: ", log scale" }));
  const host = element("div", { className: "chart" });
  $("params").append(element("figure", {}, caption, host));
  let plot = null;
  // Choices are spread sideways by a fixed rule, so that a dot stays where it is from one drawing to the next.
  const spread = (i) => (p.choices ? (((study.number[i] * 0.618034) % 1) - 0.5) * 0.62 : 0);
  const at = (i) => [plot.x(p.values[i] + spread(i)), plot.y(study.value[i])];
  const shown = () => judged().filter((i) => hasNumber(p, i) && (!finishedOnly || study.state[i] === "finished"));
  return new Chart(host, {
    label: () => `${study.metric} against ${p.name}`,
    height: () => 216,
    draw(ctx, w, h) {
      const members = shown();
      const span = range(members.map((i) => study.value[i]), study.best < 0 ? [] : [study.value[study.best]], false);
      const box = { left: 52, right: w - 8, top: 12, bottom: h - 30 };
      const x = paramScale(p, members, box.left, box.right, 0.04);
      const y = scale(span.lo, span.hi, box.bottom, box.top, false, 0.05);
      plot = { x, y, box };
      axes(ctx, box, x, y, "", "");
      clipped(ctx, box, () => dots(ctx, members, at));
    },
    over(ctx) {
      if (!plot) return;
      const members = shown();
      for (const i of emphasised()) if (members.includes(i)) ring(ctx, ...at(i), css("ink"), css("card"));
    },
    near: (px, py) => (plot ? nearestDot(shown(), at, px, py) : null),
  });
}

$("finished-only").addEventListener("change", (event) => { finishedOnly = event.target.checked; sliceCharts.forEach((c) => c.redraw()); });

function refreshSlices() {
  sliceCharts.forEach((chart) => chart.remove());
  $("params").replaceChildren();
  const drawn = study.params.filter((p) => judged().some((i) => hasNumber(p, i)));
  sliceCharts = drawn.map(sliceChart);
  $("params").previousElementSibling.hidden = !drawn.length;
  $("params-note").textContent = !study.params.length ? "No trial has a hyperparameter." : !drawn.length ? "No trial has a value yet."
    : study.state.includes("stopped") ? "A stopped trial (outline) shows its value at the epoch where it stopped." : "";
}
