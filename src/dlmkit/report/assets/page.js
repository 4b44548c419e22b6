
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const tip = document.querySelector(".tip");
const REACH = 40; // pixels of the viewBox within which a point is found

// Legend: hide on click, highlight on hover.
const parts = all("[data-run]").filter((part) => !part.closest(".legend"));
for (const button of all(".legend button")) {
  const run = button.dataset.run;
  button.onclick = () => {
    const gone = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", gone);
    for (const part of parts) if (part.dataset.run === run) part.classList.toggle("gone", gone);
    const left = all('.legend button[aria-pressed="false"]').length;
    for (const grid of all(".samples")) grid.style.setProperty("--runs", Math.max(left, 1));
  };
  hover(button, run);
}
for (const row of all("tr[data-run]")) hover(row, row.dataset.run);

function hover(element, run) {
  const dim = (on) => {
    for (const part of all(".series")) part.classList.toggle("dim", on && part.dataset.run !== run);
  };
  element.onpointerenter = () => dim(true);
  element.onpointerleave = () => dim(false);
}

// Choices: which curves, and on which axis.
for (const button of all("[data-choice]")) button.onclick = () => {
  button.closest(".curves").dataset[button.dataset.choice] = button.dataset.value;
  for (const other of all("button", button.parentElement)) other.setAttribute("aria-pressed", other === button);
};

// Tooltips: the point nearest to the pointer.
for (const title of all(".series title")) title.remove(); // they serve where no script runs
for (const chart of all("figure svg")) {
  const cursor = document.createElementNS(chart.namespaceURI, "circle");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("r", 8);
  cursor.setAttribute("visibility", "hidden");
  chart.append(cursor);
  const names = all("text.name", chart).map((name) => name.textContent);
  const lines = all(".series polyline", chart).map((line) => ({
    group: line.parentElement,
    places: line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)),
    x: line.dataset.x.split("|"),
    y: line.dataset.y.split("|"),
  }));
  chart.onpointermove = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    let best = null;
    for (const line of lines) {
      if (line.group.classList.contains("gone")) continue;
      line.places.forEach(([x, y], index) => {
        const away = Math.hypot(x - at.x, y - at.y);
        if (away < REACH && (!best || away < best.away)) best = { away, x, y, line, index };
      });
    }
    cursor.setAttribute("visibility", best ? "visible" : "hidden");
    tip.hidden = !best;
    if (!best) return;
    cursor.setAttribute("cx", best.x);
    cursor.setAttribute("cy", best.y);
    const { group, x, y } = best.line;
    const where = x[best.index] && `\n${x[best.index]}${chart.closest(".spots") ? "" : " " + names[0]}`;
    tip.textContent = `${group.dataset.run}\n${y[best.index]}${where}`;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX + 16, innerWidth - width - 8)}px`;
    tip.style.top = `${Math.max(event.clientY - height - 14, 8)}px`;
  };
  chart.onpointerleave = () => {
    cursor.setAttribute("visibility", "hidden");
    tip.hidden = true;
  };
}

// Tables: sort by a column.
for (const table of all("table.sortable")) all("thead th", table).forEach((head, column) => {
  head.tabIndex = 0;
  head.onkeydown = (event) => event.key === "Enter" && head.click();
  head.onclick = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      if (left === undefined && right === undefined)
        return a.cells[column].textContent.localeCompare(b.cells[column].textContent) * (down ? -1 : 1);
      if (left === undefined || right === undefined) return left === undefined ? 1 : -1; // no value: last
      return (left - right) * (down ? -1 : 1);
    });
    for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  };
});
