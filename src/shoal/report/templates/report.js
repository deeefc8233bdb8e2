"use strict";
// Adds sorting and filtering to the tables; without it they are plain tables.
(function () {
  function valueOf(row, index, numeric) {
    const cell = row.cells[index];
    const text = cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value;
    if (!numeric) return text;
    return text === "" || Number.isNaN(Number(text)) ? null : Number(text);
  }

  function compare(a, b) {
    return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  }

  function sort(table, header, index) {
    const down = header.getAttribute("aria-sort") === "ascending";
    const numeric = header.dataset.kind === "number";
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row, at) => ({ row, at, value: valueOf(row, index, numeric) }));
    rows.sort((a, b) => {
      // Missing values stay at the end in both directions.
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.at - b.at;
      return (down ? -1 : 1) * compare(a.value, b.value) || a.at - b.at;
    });
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.map((entry) => entry.row));
  }

  function makeSortable(table) {
    Array.from(table.tHead.rows[0].cells).forEach((header, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, header, index));
    });
  }

  function makeFilter(table) {
    const box = document.createElement("div");
    box.className = "filter";
    const label = document.createElement("label");
    const input = document.createElement("input");
    const shown = document.createElement("output");
    input.type = "search";
    input.id = table.id + "-filter";
    label.htmlFor = input.id;
    label.textContent = table.dataset.filter;
    input.placeholder = table.dataset.hint;
    shown.setAttribute("aria-live", "polite");
    const rows = Array.from(table.tBodies[0].rows);
    const texts = rows.map((row) => Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase());
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      let count = 0;
      rows.forEach((row, at) => {
        row.hidden = !words.every((word) => texts[at].includes(word));
        if (!row.hidden) count += 1;
      });
      shown.textContent = count === rows.length ? "" : count + " of " + rows.length + " shown";
    });
    box.append(label, input, shown);
    table.parentElement.before(box);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    makeSortable(table);
    makeFilter(table);
  }

  // Marks the point of the plan that is shown: the page shows plans without a script, but cannot mark their points.
  function markOpen() {
    for (const link of document.querySelectorAll("svg a")) {
      if (link.getAttribute("href") === window.location.hash) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
  window.addEventListener("hashchange", markOpen);
  markOpen();

  // What the page shows as files: the record as JSON, each table as CSV.
  function download(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function asCsv(table) {
    const quote = (text) => '"' + text.trim().replace(/\s+/g, " ").replace(/"/g, '""') + '"';
    const rows = Array.from(table.rows).filter((row) => !row.hidden);
    return rows.map((row) => Array.from(row.cells, (cell) => quote(cell.textContent)).join(",")).join("\r\n") + "\r\n";
  }

  function addDownload(place, label, act) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "download";
    button.textContent = label;
    button.addEventListener("click", act);
    place.append(" ", button);
  }

  for (const table of document.querySelectorAll("table")) {
    if (!table.caption) continue;
    const name = table.caption.textContent.trim();
    const file = name.toLowerCase().replace(/[^a-z0-9]+/g, "-") + ".csv";
    addDownload(table.caption, "CSV", () => download(file, "text/csv", asCsv(table)));
    table.caption.lastChild.setAttribute("aria-label", name + " as CSV");
  }
  for (const place of document.querySelectorAll(".downloads")) {
    const record = document.getElementById("record").textContent;
    addDownload(place, "Download it as JSON", () => download("record.json", "application/json", record));
  }

  // Print what is folded, too.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
