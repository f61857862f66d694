// Tables of many rows: sorted, filtered, shown in parts, each row with a part that opens.
for (const place of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(place.querySelector("script").textContent);
  const table = place.querySelector("table"), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells], said = place.querySelector(".shown");
  const search = place.querySelector("input"), choices = [...place.querySelectorAll("select")];
  const more = place.querySelector(".more"), open = new Set(), marked = new Set(data.marked);
  let order = data.rows.map((_, i) => i), matching = order, shown = data.first;

  const value = cell => typeof cell === "object" && cell !== null ? cell.sort : cell;
  // Three digits, as on the rest of the page.
  const number = x => {
    if (Number.isInteger(x)) return String(x);
    const [digits, power] = x.toExponential(2).split("e");
    if (power >= -4 && power < 3) return String(Number(x.toPrecision(3)));
    const sign = power < 0 ? "-" : "+", size = String(Math.abs(power)).padStart(2, "0");
    return `${Number(digits)}e${sign}${size}`;
  };
  const infinite = new Map([["inf", Infinity], ["-inf", -Infinity]]);
  // Numbers before texts, NaN and what is unknown last, whichever way they are sorted.
  const compare = (a, b, way) => {
    const last = x => x === null || x === undefined || x === "nan";
    if (last(a) || last(b)) return last(a) - last(b);
    const [x, y] = [a, b].map(v => infinite.get(v) ?? v);
    if (typeof x === "number" && typeof y === "number") return way * (x - y || 0);
    return way * String(x).localeCompare(String(y), undefined, {numeric: true});
  };
  const make = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  // A name may be broken after its separators.
  const broken = (into, text) => text.split(/(?<=[/._:])(?=[^/._:])/).forEach((part, i) => {
    if (i) into.append(document.createElement("wbr"));
    into.append(part);
  });
  const cell = (content, column) => {
    const kind = data.columns[column].kind;
    const made = make(column === 0 ? "th" : "td", undefined, kind);
    if (column === 0) made.scope = "row";
    if (content === null) made.textContent = "-";
    else if (kind === "label") made.append(make("span", content.sort, "badge " + content.tone));
    else if (kind === "code") broken(made, String(content));
    else made.textContent = typeof content === "number" ? number(content) : content;
    return made;
  };
  const toggle = (row, i, button) => {
    if (open.delete(i)) {
      button.setAttribute("aria-expanded", "false");
      row.nextSibling.remove();
      return;
    }
    open.add(i);
    opened(row, i, button);
  };
  const opened = (row, i, button) => {
    button.setAttribute("aria-expanded", "true");
    const detail = make("tr", undefined, "detail"), wide = make("td"), inside = make("div");
    wide.colSpan = heads.length;
    inside.innerHTML = data.details[i]; // escaped where the page was made
    wide.append(inside);
    detail.append(wide);
    row.after(detail);
  };
  const drawn = i => {
    const row = make("tr", undefined, marked.has(i) ? "bad" : ""), cells = data.rows[i];
    row.id = place.id + "-" + i;
    data.columns.forEach((column, c) => column.hidden || row.append(cell(cells[c], c)));
    if (data.details[i]) {
      const head = row.cells[0], button = make("button", undefined, "open");
      button.type = "button";
      button.append(...head.childNodes);
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => toggle(row, i, button));
      head.replaceChildren(button);
      if (open.has(i)) queueMicrotask(() => opened(row, i, button));
    }
    return row;
  };
  const draw = () => {
    body.replaceChildren(...matching.slice(0, shown).map(drawn));
    const count = Math.min(shown, matching.length);
    said.textContent = `${count.toLocaleString()} of ${matching.length.toLocaleString()} shown`
      + (matching.length < data.rows.length
        ? `, ${data.rows.length.toLocaleString()} in all` : "");
    more.hidden = matching.length <= shown;
  };
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    matching = order.filter(i => words.every(word => texts[i].includes(word))
      && choices.every(choice => !choice.value
        || String(value(data.rows[i][choice.dataset.column])) === choice.value));
    shown = data.first;
    draw();
  };
  const texts = data.rows.map(row => row.map(value).filter(v => typeof v === "string")
    .join(" ").toLowerCase());
  const visible = data.columns.map((_, c) => c).filter(c => !data.columns[c].hidden);
  heads.forEach((head, position) => {
    const column = visible[position], is_number = data.columns[column].kind === "number";
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      // Numbers are looked at from the largest.
      const up = now ? now !== "ascending" : !is_number;
      heads.forEach(one => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const at = i => value(data.rows[i][column]);
      order.sort((i, j) => compare(at(i), at(j), up ? 1 : -1) || i - j);
      filter();
    });
  });
  search.addEventListener("input", filter);
  choices.forEach(choice => choice.addEventListener("change", filter));
  place.querySelector("form").addEventListener("submit", event => event.preventDefault());
  place.querySelector("form").addEventListener("reset", () => setTimeout(filter));
  more.addEventListener("click", () => {
    const from = shown;
    shown += 500;
    draw();
    body.querySelectorAll("tr:not(.detail)")[from]?.querySelector("button")?.focus();
  });
  // A link to a row shows it, whatever is filtered.
  const follow = () => {
    const found = location.hash.match(/^#(.+)-(\d+)$/);
    if (!found || found[1] !== place.id || !(found[2] in data.rows)) return;
    const i = Number(found[2]);
    place.querySelector("form").reset();
    open.add(i);
    matching = order;
    shown = Math.max(shown, matching.indexOf(i) + 1);
    draw();
    setTimeout(() => document.getElementById(place.id + "-" + i).scrollIntoView());
  };
  addEventListener("hashchange", follow);
  place.classList.add("live");
  filter();
  follow();
}
