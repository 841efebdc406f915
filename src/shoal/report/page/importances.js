// Bars of plain elements: they read aloud and print as they are.

function refreshImportances() {
  const shares = Object.entries(study.data.importances);
  const largest = Math.max(...shares.map(([, share]) => share), 1e-9);
  $("importances").replaceChildren(...shares.slice(0, 20).map(([name, share]) => {
    const bar = element("span", { className: "bar" }, element("i"));
    bar.firstChild.style.width = `${(100 * share) / largest}%`;
    return element("div", { className: "row" }, element("span", { className: "name", textContent: name }), bar, element("span", { className: "share", textContent: `${Math.round(100 * share)} %` }));
  }));
  $("importances-note").textContent = shares.length
    ? "Share of each hyperparameter in being among the best tenth (PED-ANOVA). Stopped trials count with their last value. Of few trials, a rough guide."
    : "Too few trials have a value to say which hyperparameter mattered; it takes 20.";
}
