// The value over two hyperparameters: a smooth average of the trials near each point, in steps of colour.

const CELLS = 48;
const contour = { x: "", y: "", plot: null };

/** Sums and weights on a grid, blurred along one axis by a bell of `sigma` cells; choices are not neighbours. */
function blur(grid, nx, ny, sigma, alongX) {
  if (!sigma) return grid;
  const reach = Math.ceil(3 * sigma);
  const bell = Array.from({ length: 2 * reach + 1 }, (_, k) => Math.exp(-(((k - reach) / sigma) ** 2) / 2));
  const out = new Float64Array(grid.length);
  for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++) {
    let sum = 0;
    for (let k = -reach; k <= reach; k++) {
      const [u, v] = alongX ? [x + k, y] : [x, y + k];
      if (u >= 0 && v >= 0 && u < nx && v < ny) sum += bell[k + reach] * grid[v * nx + u];
    }
    out[y * nx + x] = sum;
  }
  return out;
}

const contourChart = new Chart($("contour"), {
  label: () => `${study.metric} over ${contour.x} and ${contour.y}; brighter is ${study.up ? "higher" : "lower"}, which is better`,
  height: () => (contour.members && contour.members.length ? 340 : 0),
  draw(ctx, w, h) {
    const { px, py, members } = contour;
    const box = { left: 64, right: w - 10, top: 26, bottom: h - 44 };
    const x = paramScale(px, members, box.left, box.right, 0.02);
    const y = paramScale(py, members, box.bottom, box.top, 0.02);
    const [nx, ny] = [px.choices ? px.choices.length : CELLS, py.choices ? py.choices.length : CELLS];
    const [width, height] = [(box.right - box.left) / nx, (box.bottom - box.top) / ny];
    let [sums, weights] = [new Float64Array(nx * ny), new Float64Array(nx * ny)];
    for (const i of members) {
      const cell = clamp(Math.floor((y(py.values[i]) - box.top) / height), 0, ny - 1) * nx + clamp(Math.floor((x(px.values[i]) - box.left) / width), 0, nx - 1);
      sums[cell] += study.value[i]; weights[cell] += 1;
    }
    // Wider with few trials, so that their islands meet; narrower with many, so that detail stays.
    const sigma = clamp((CELLS * 0.42) / Math.sqrt(members.length) + 1, 1.4, 5.5);
    for (const [log, alongX] of [[px.choices, true], [py.choices, false]]) {
      sums = blur(sums, nx, ny, log ? 0 : sigma, alongX);
      weights = blur(weights, nx, ny, log ? 0 : sigma, alongX);
    }
    const of = shades(members.map((i) => study.value[i]), false);
    const band = Array.from({ length: 10 }, (_, k) => viridis((k + 0.5) / 10));
    // Between cells of a number's axis the field is interpolated; a choice has its own stripe.
    const place = (at, n, choices) => { const f = choices ? Math.floor(at * n) : clamp(at * n - 0.5, 0, n - 1); const k = Math.min(Math.floor(f), n - 1); return [k, Math.min(k + 1, n - 1), f - k]; };
    const [columns, rows] = [Math.ceil((box.right - box.left) / 2), Math.ceil((box.bottom - box.top) / 2)];
    const acrossOf = Array.from({ length: columns }, (_, c) => place((c + 0.5) / columns, nx, px.choices));
    for (let r = 0; r < rows; r++) {
      const [v0, v1, b] = place((r + 0.5) / rows, ny, py.choices);
      for (let c = 0; c < columns; c++) {
        const [u0, u1, a] = acrossOf[c];
        const mix = (grid) => (grid[v0 * nx + u0] * (1 - a) + grid[v0 * nx + u1] * a) * (1 - b) + (grid[v1 * nx + u0] * (1 - a) + grid[v1 * nx + u1] * a) * b;
        const weight = mix(weights);
        if (weight < 0.06) continue;
        const t = of(mix(sums) / weight);
        ctx.globalAlpha = clamp(weight / 0.4, 0, 0.92);
        ctx.fillStyle = band[Math.min(Math.floor((study.up ? t : 1 - t) * 10), 9)];
        ctx.fillRect(box.left + c * 2, box.top + r * 2, Math.min(2, box.right - box.left - c * 2), Math.min(2, box.bottom - box.top - r * 2));
      }
    }
    ctx.globalAlpha = 1;
    axes(ctx, box, x, y, px.name + (px.log ? ", log scale" : ""), py.name + (py.log ? ", log scale" : ""), true);
    contour.plot = { x, y, box };
    ctx.lineWidth = 1;
    for (const i of members) {
      if (bestIs(i)) continue;
      const [cx, cy] = this.at(i);
      ctx.globalAlpha = passes(i) ? 0.85 : 0.12;
      ctx.beginPath(); ctx.arc(cx, cy, members.length > 1000 ? 1.2 : 2.4, 0, 7);
      ctx.fillStyle = css("card"); ctx.fill(); ctx.strokeStyle = css("ink"); ctx.lineWidth = 0.8; ctx.stroke();
    }
    ctx.globalAlpha = 1;
    if (members.includes(study.best)) ring(ctx, ...this.at(study.best), css("best"), css("card"));
  },
  at(i) {
    const { x, y } = contour.plot;
    const shift = (p, k) => (p.choices ? (((study.number[i] * k) % 1) - 0.5) * 0.6 : 0);
    return [x(contour.px.values[i] + shift(contour.px, 0.618034)), y(contour.py.values[i] + shift(contour.py, 0.754878))];
  },
  over(ctx) {
    if (contour.plot) for (const i of emphasised()) if (contour.members.includes(i)) ring(ctx, ...this.at(i), css("ink"), css("card"));
  },
  near: (px, py) => (contour.plot ? nearestDot(contour.members, (i) => contourChart.spec.at(i), px, py) : null),
});

function recontour() {
  const find = (id) => study.params.find((p) => p.name === $(id).value);
  const [px, py] = [find("contour-x"), find("contour-y")];
  const members = px && py && px !== py ? judged().filter((i) => hasNumber(px, i) && hasNumber(py, i)) : [];
  Object.assign(contour, { px, py, members, x: $("contour-x").value, y: $("contour-y").value, plot: null });
  $("contour-note").textContent = !px || !py ? "This figure needs two hyperparameters that varied."
    : px === py ? "Choose two different hyperparameters." : !members.length ? "No trial has a value for both."
    : `Colour: average ${study.metric} of the trials nearby, brighter is better; blank where there is none. A dot is a trial.`;
  contourChart.redraw();
}

for (const id of ["contour-x", "contour-y"]) $(id).addEventListener("change", recontour);

function refreshContour() {
  const varied = study.params.filter((p) => new Set(p.values.filter((v) => v !== null)).size > 1);
  const ranked = Object.keys(study.data.importances).filter((name) => varied.some((p) => p.name === name));
  const order = [...ranked, ...varied.map((p) => p.name).filter((name) => !ranked.includes(name))];
  // Two numbers make the better first picture than two lists of choices.
  const numeric = order.filter((name) => !varied.find((p) => p.name === name).choices);
  const first = [...numeric, ...order.filter((name) => !numeric.includes(name))];
  fillSelect($("contour-x"), order.map((name) => [name, name]), contour.x || first[0]);
  fillSelect($("contour-y"), order.map((name) => [name, name]), contour.y || first[1]);
  $("contour-controls").hidden = order.length < 2;
  recontour();
}
