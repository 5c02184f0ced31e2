"use strict";
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => {
        const cell = row.cells[column];
        if (head.dataset.kind === "text") return row.dataset.name;
        const text = cell.dataset.value ?? cell.textContent;
        return text === "" || isNaN(text) ? null : Number(text);
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);  // empty cells stay last
        return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
      });
      body.append(...rows.map(([, row]) => row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}

const text = document.getElementById("filter-text");
const controls = document.getElementById("filter-controls");
const filter = () => all("#main-table tbody tr").forEach(row => {
  const named = row.dataset.name.toLowerCase().includes(text.value.toLowerCase());
  row.hidden = !named || (!controls.checked && row.classList.contains("control"));
});
text.addEventListener("input", filter);
controls.addEventListener("change", filter);
all("input[data-group]").forEach(box => box.addEventListener("change", () =>
  all("#main-table .g-" + box.dataset.group).forEach(cell => { cell.hidden = !box.checked; })));

const metric = document.getElementById("class-metric");
const classText = document.getElementById("class-text");
metric.addEventListener("change", () => all("#class-table td[data-values]").forEach(cell => {
  const pair = cell.dataset.values.split(" ").find(item => item.startsWith(metric.value + ":"));
  cell.textContent = pair ? pair.slice(metric.value.length + 1) : "";
}));
classText.addEventListener("input", () => all("#class-table tbody tr").forEach(row => {
  row.hidden = !row.dataset.name.toLowerCase().includes(classText.value.toLowerCase());
}));

all(".legend li").forEach(item => {
  const mine = "s" + item.dataset.colour;
  const dim = on => all("#curves .curve").forEach(line => line.classList.toggle("dim", on && !line.classList.contains(mine)));
  item.addEventListener("mouseenter", () => dim(true));
  item.addEventListener("mouseleave", () => dim(false));
});
