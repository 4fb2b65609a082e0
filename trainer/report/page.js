// A click on a header sorts its table: first rising, then falling. Rows without a number come last.
"use strict";
for (const table of document.querySelectorAll("table.data")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const falling = header.getAttribute("aria-sort") === "ascending";
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const numeric = [...table.tBodies[0].rows].some((row) => row.cells[column].dataset.v !== undefined);
    const key = (row) => {
      const cell = row.cells[column];
      if (!numeric) return cell.textContent;
      return cell.dataset.v === undefined ? NaN : Number(cell.dataset.v);
    };
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if (!numeric) return (falling ? -1 : 1) * x.localeCompare(y, undefined, { numeric: true });
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return falling ? y - x : x - y;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}
