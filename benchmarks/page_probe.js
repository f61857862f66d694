// Runs inside a page under test: works its table as a reader would and tells what happened.
{
  const place = document.querySelector(".explorer");
  const body = place.querySelector("tbody"), heads = [...place.querySelectorAll("thead th")];
  const said = place.querySelector(".shown"), search = place.querySelector("input");
  const shown = () => [...body.rows].filter(row => !row.classList.contains("detail"));
  const texts = column => shown().map(row => row.cells[column].textContent);
  const column = title => heads.findIndex(head => head.textContent === title);

  // Ascending, descending, unknown ones last both ways.
  const isSorted = title => {
    const at = column(title), button = heads[at].querySelector("button");
    const order = [];
    for (const way of [-1, 1]) {
      button.click();
      const aria = heads[at].getAttribute("aria-sort");
      const known = texts(at).filter(text => text !== "-")
        .map(text => text === "inf" ? Infinity : Number(text));
      const unknown = texts(at).lastIndexOf("-") < 0
        || texts(at).indexOf("-") + texts(at).filter(text => text === "-").length === texts(at).length;
      order.push(unknown && known.length > 0 && known.every((x, i) => !i || way * (x - known[i - 1]) >= 0)
        && aria === (way < 0 ? "descending" : "ascending"));
    }
    return order.every(Boolean);
  };
  // Wholly inside what holds it, or in a part that scrolls.
  const overflowing = () => [...document.querySelectorAll("main *")].filter(one => {
    if (one.closest(".scroll,svg,caption,option,select") || one.tagName === "WBR") return false;
    const box = one.getBoundingClientRect();
    if (!box.width || one.parentElement.closest(".drawing")) return false;
    return box.right > document.documentElement.clientWidth + 1 || box.left < -1;
  }).map(one => `${one.tagName}.${one.className}: ${one.textContent.slice(0, 40)}`);
  // Texts of drawings that leave their drawing.
  const cut = () => [...document.querySelectorAll("svg text")].filter(text => {
    const inner = text.getBoundingClientRect(), outer = text.closest("svg").getBoundingClientRect();
    return inner.width && (inner.left < outer.left - 6 || inner.right > outer.right + 6
      || inner.bottom > outer.bottom + 4);
  }).map(text => `svg: ${text.textContent}`);

  const result = {inner_width: innerWidth};
  result.page_overflows = document.documentElement.scrollWidth > innerWidth;
  result.overflowing = [...new Set([...overflowing(), ...cut()])].slice(0, 8);
  result.resources = performance.getEntriesByType("resource").length
    + document.querySelectorAll("[src],link,[href]:not([href^='#'])").length;
  result.rows = JSON.parse(place.querySelector("script").textContent).rows.length;
  result.milliseconds = Math.round(performance.now());
  const begun = performance.now();
  result.sorted = ["#", "Distance", "R", "M", "Loss", "In all, u"]
    .every(title => column(title) < 0 || isSorted(title));
  heads[column("#")].querySelector("button").click();
  result.milliseconds_for_sorts = Math.round(performance.now() - begun);

  const whole = said.textContent;
  search.value = "gelu#0 forward";
  search.dispatchEvent(new Event("input"));
  const names = texts(0);
  result.filtered = names.length > 0 && said.textContent !== whole
    && names.every(name => name.includes("gelu#0") && name.includes("forward"));
  search.value = "no such words anywhere";
  search.dispatchEvent(new Event("input"));
  result.filtered = result.filtered && shown().length === 0;
  search.value = "";
  const choice = place.querySelector("select");
  choice.value = choice.options[1].value;
  choice.dispatchEvent(new Event("change"));
  result.filtered = result.filtered && shown().length > 0
    && texts(column(choice.parentElement.firstChild.textContent.trim()))
      .every(text => text === choice.value);
  choice.value = "";
  choice.dispatchEvent(new Event("change"));
  result.filtered = result.filtered && said.textContent === whole;

  const button = body.querySelector("button.open");
  button.click();
  const detail = button.closest("tr").nextSibling;
  result.opened = button.getAttribute("aria-expanded") === "true"
    && detail.classList.contains("detail") && detail.textContent.includes("source line");
  const [inner, outer] = [detail.querySelector("dl"), place.querySelector(".scroll")]
    .map(one => one.getBoundingClientRect());
  result.detail_fits = inner.width > 0 && inner.left >= outer.left && inner.right <= outer.right;
  button.click();
  result.opened = result.opened && button.getAttribute("aria-expanded") === "false"
    && !body.querySelector("tr.detail");

  const more = place.querySelector(".more"), before = shown().length;
  result.grew = before === result.rows || !more.hidden;
  if (!more.hidden) {
    more.click();
    result.grew = shown().length > before;
  }
  result.unlabelled = [...document.querySelectorAll("svg,table,input,select,button")].filter(one =>
    one.tagName === "svg" ? !(one.getAttribute("role") === "img" && one.getAttribute("aria-label"))
      : one.tagName === "TABLE" ? !one.caption
        : !(one.textContent || one.getAttribute("aria-label") || one.labels?.length))
    .map(one => one.outerHTML.slice(0, 80));

  // A link to the last row shows and opens it.
  const last = result.rows - 1;
  location.hash = `#${place.id}-${last}`;
  setTimeout(() => {
    const row = document.getElementById(`${place.id}-${last}`);
    result.linked = row?.nextSibling?.classList.contains("detail") === true;
    result.hacked = typeof hacked !== "undefined";
    result.failures = failures;
    parent.postMessage(JSON.stringify(result), "*");
  }, 500);
}
