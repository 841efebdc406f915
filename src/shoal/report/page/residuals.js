// The winner's residuals, as the study binned them: predictions against the truth, and how far they are off.

let residualCharts = [];

function truthChart(found) {
  const host = element("div", { className: "chart" });
  $("residuals").append(element("figure", {}, element("figcaption", { textContent: "Predicted against true" }), host));
  const n = found.grid.length;
  const [lo, hi] = found.range;
  const most = Math.max(...found.grid.flat(), 1);
  let plot = null;
  return new Chart(host, {
    label: () => "Predicted values against true ones, as counts; the line is where they agree",
    height: (w) => Math.min(w, 340),
    draw(ctx, w, h) {
      const box = { left: 58, right: w - 10, top: 26, bottom: h - 44 };
      const x = scale(lo, hi, box.left, box.right, false);
      const y = scale(lo, hi, box.bottom, box.top, false);
      plot = { box };
      axes(ctx, box, x, y, "true", "predicted");
      const [dx, dy] = [(box.right - box.left) / n, (box.bottom - box.top) / n];
      found.grid.forEach((row, r) => row.forEach((many, c) => {
        if (!many) return;
        ctx.fillStyle = viridis(Math.log(1 + many) / Math.log(1 + most));
        ctx.fillRect(box.left + c * dx, box.bottom - (r + 1) * dy, dx + 0.4, dy + 0.4);
      }));
      ctx.strokeStyle = css("ink"); ctx.lineWidth = 1.2; ctx.setLineDash([5, 4]);
      ctx.beginPath(); ctx.moveTo(box.left, box.bottom); ctx.lineTo(box.right, box.top); ctx.stroke();
      ctx.setLineDash([]);
    },
    near(px, py) {
      if (!plot) return null;
      const { box } = plot;
      const c = Math.floor(((px - box.left) / (box.right - box.left)) * n);
      const r = Math.floor(((box.bottom - py) / (box.bottom - box.top)) * n);
      const many = found.grid[r] && found.grid[r][c];
      const edge = (k) => short(lo + (k / n) * (hi - lo), 3);
      return many ? { trial: -1, title: count(many, "value"), note: `true ${edge(c)} to ${edge(c + 1)}, predicted ${edge(r)} to ${edge(r + 1)}` } : null;
    },
  });
}

function errorChart(found) {
  const host = element("div", { className: "chart" });
  $("residuals").append(element("figure", {}, element("figcaption", { textContent: "Predicted minus true" }), host));
  const [lo, hi] = found.span;
  const most = Math.max(...found.counts, 1);
  let plot = null;
  return new Chart(host, {
    label: () => `Histogram of ${count(found.n, "residual")}: mean ${short(found.mean)}, standard deviation ${short(found.std)}`,
    height: (w) => Math.min(w, 340),
    draw(ctx, w, h) {
      const box = { left: 58, right: w - 10, top: 26, bottom: h - 44 };
      const x = scale(lo, hi, box.left, box.right, false);
      const y = scale(0, most, box.bottom, box.top, false);
      plot = { box };
      axes(ctx, box, x, y, "predicted minus true", "values");
      const width = (box.right - box.left) / found.counts.length;
      ctx.fillStyle = css("finished");
      found.counts.forEach((many, k) => ctx.fillRect(box.left + k * width, y(many), Math.max(width - 1, 1), box.bottom - y(many)));
      if (lo < 0 && hi > 0) { ctx.strokeStyle = css("ink"); ctx.setLineDash([5, 4]); ctx.beginPath(); ctx.moveTo(x(0), box.top); ctx.lineTo(x(0), box.bottom); ctx.stroke(); ctx.setLineDash([]); }
    },
    near(px) {
      if (!plot) return null;
      const n = found.counts.length;
      const k = Math.floor(((px - plot.box.left) / (plot.box.right - plot.box.left)) * n);
      const edge = (j) => short(lo + (j / n) * (hi - lo), 3);
      return k >= 0 && k < n ? { trial: -1, title: count(found.counts[k], "value"), note: `${edge(k)} to ${edge(k + 1)}` } : null;
    },
  });
}

function refreshResiduals() {
  residualCharts.forEach((chart) => chart.remove());
  $("residuals").replaceChildren();
  const found = study.data.residuals;
  residualCharts = found ? [truthChart(found), errorChart(found)] : [];
  const q = found ? found.quantiles : null;
  $("residuals-note").textContent = found ? `${count(found.n, "value")}: half of the residuals lie between ${short(q["0.25"], 3)} and ${short(q["0.75"], 3)}, nine tenths between ${short(q["0.05"], 3)} and ${short(q["0.95"], 3)}. On the left, brighter is more values; the outermost bins hold what lies beyond.` : "";
  $("predictions-section").hidden = !found && !$("predictions").children.length;
}
