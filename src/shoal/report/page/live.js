// Only in pages that `shoal watch` serves: ask for news, and take over what has changed without losing one's place.

async function news() {
  news.data = news.data || $("data").textContent;
  let wait = 2000;
  try {
    const asked = performance.now();
    const answer = await fetch("/", { cache: "no-cache" });
    const text = await answer.text();
    if (!answer.ok) throw new Error(text);
    const page = new DOMParser().parseFromString(text, "text/html");
    const data = page.getElementById("data").textContent;
    if (data !== news.data) {
      news.data = data;
      for (const id of ["summary", "tiles", "best", "predictions", "facts"]) $(id).replaceChildren(...page.getElementById(id).childNodes);
      const marked = chosen.pins.map((i) => study.number[i]);
      study = openStudy(data);
      chosen.pins = marked.map((n) => study.number.indexOf(n)).filter((i) => i >= 0);
      chosen.selected = -1;
      const at = $("table-scroll").scrollTop;
      refresh();
      $("table-scroll").scrollTop = at;
    }
    $("live").textContent = "· up to date";
    // A large study takes a while to write: the more it takes, the less often it is asked for.
    wait = Math.max(wait, 10 * (performance.now() - asked));
  } catch (error) {
    $("live").textContent = `· no news, the page shows its last state (${String(error.message).trim().slice(0, 200)})`;
    wait = 5000;
  }
  setTimeout(news, document.hidden ? 10 * wait : wait);
}
setTimeout(news, 1000);
