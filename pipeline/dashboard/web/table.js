// Watchlist and tape: tables updated in place. Rows keep their elements, so scrolling and sorting survive an update;
// new rows, and cells with new text, are highlighted for a moment.
//
// data: {table, rows}; a row is a list of values, in the order of the columns below.

const inWhole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const inCents = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const inSigned = new Intl.NumberFormat("en-US", { ...inCents.resolvedOptions(), signDisplay: "exceptZero" }); // no -0.00
const signed = (value) => inSigned.format(value).replace("-", "−");
const arrow = (change) => (change > 0 ? "▲" : change < 0 ? "▼" : "="); // so that colour is not the only sign
const direction = (row) => Math.sign(row[2]);

// Per column: name, how to write a value, whether it is a number, what colours the cell, and what is drawn in it.
const TABLES = {
  watchlist: {
    label: "Watchlist: a row per ticker",
    key: 0,
    columns: [
      { name: "Ticker" },
      { name: "Last", write: (value, row) => `${arrow(row[2])} ${inCents.format(value)}`, number: true, tone: direction },
      { name: "Chg", write: signed, number: true, tone: direction },
      { name: "Chg %", write: signed, number: true, tone: direction },
      { name: "VWAP", write: inCents.format, number: true },
      { name: "High", write: inCents.format, number: true },
      { name: "Low", write: inCents.format, number: true },
      { name: "Volume", write: inWhole.format, number: true },
      { name: "Buy %", write: (share) => `${inWhole.format(100 * share)}%`, number: true, bar: true },
      { name: "Window", write: () => "", draw: sparkline, tone: direction },
    ],
  },
  tape: {
    label: "Most recent trades, newest first",
    key: 5,
    columns: [
      { name: "timestamp (UTC)" },
      { name: "ticker" },
      { name: "side", tone: (row) => ({ buy: 1, sell: -1 })[row[2]] ?? 0 },
      { name: "price", write: inCents.format, number: true },
      { name: "volume", write: inWhole.format, number: true },
      { name: "trade_id" },
    ],
  },
};
const MANY = 50; // new rows in one update; beyond that, none is highlighted
const NEXT_ORDER = { none: "ascending", ascending: "descending", descending: "none" };

export default function ({ data, parentElement }) {
  const { table: name, rows } = JSON.parse(new TextDecoder().decode(data));
  const table = parentElement.querySelector("table");
  table.current = rows;
  table.kind = TABLES[name];
  if (!table.tHead.rows.length) drawHead(table);
  drawBody(table, true);
}

function drawHead(table) {
  const { label, columns } = table.kind;
  table.parentElement.ariaLabel = label;
  const heads = columns.map(({ name, number, draw }) =>
    `<th scope="col" aria-sort="none" class="${number ? "number" : ""}">${draw ? name : `<button>${name}</button>`}</th>`);
  table.tHead.innerHTML = `<tr>${heads.join("")}</tr>`;
  table.tHead.onclick = ({ target }) => {
    const head = target.closest("button")?.parentElement;
    if (!head) return;
    const order = NEXT_ORDER[head.ariaSort];
    for (const other of head.parentElement.cells) other.ariaSort = "none";
    head.ariaSort = order;
    drawBody(table, false);
  };
}

function drawBody(table, marks) {
  const { key, columns } = table.kind;
  const body = table.tBodies[0];
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const fresh = table.current.filter((values) => !known.has(values[key])).length;
  const news = marks && known.size > 0 && fresh <= MANY;
  let place = body.firstChild;
  for (const values of inOrder(table.current, [...table.tHead.rows[0].cells])) {
    const old = known.get(values[key]);
    known.delete(values[key]);
    const row = old ?? document.createElement("tr");
    row.dataset.key = values[key];
    columns.forEach((column, index) => {
      const cell = row.cells[index] ?? row.insertCell();
      if (fill(cell, column, values[index], values) && old) mark(cell, "0 -2px 0");
    });
    if (news && !old) mark(row.firstChild, "3px 0 0");
    if (row === place) place = place.nextSibling;
    else body.insertBefore(row, place);
  }
  for (const row of known.values()) row.remove();
}

// Updates a cell; returns whether its text changed.
function fill(cell, { write, number, tone, bar, draw }, value, row) {
  const text = write ? write(value, row) : value;
  cell.classList.toggle("number", Boolean(number));
  if (tone) cell.dataset.tone = tone(row);
  if (bar) cell.style.setProperty("--bar", value);
  if (draw) cell.innerHTML = draw(value);
  if (cell.textContent === text) return false;
  cell.textContent = text;
  return true;
}

function sparkline(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const points = values.map((value, index) => {
    const x = values.length > 1 ? (86 * index) / (values.length - 1) + 2 : 45;
    return `${x.toFixed(1)},${(high > low ? 18 - (16 * (value - low)) / (high - low) : 10).toFixed(1)}`;
  });
  return `<svg width="90" height="20" aria-hidden="true"><polyline points="${points.join(" ")}"/></svg>`;
}

// Shows a bar at an edge of the cell: a shape, not a colour. It fades in a few steps, because drawing every frame would
// double what the page costs the browser; with reduced motion, it disappears in one.
function mark(cell, edge) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  cell.animate(
    { boxShadow: [`inset ${edge} currentColor`, `inset ${edge} transparent`] },
    { duration: 1500, easing: calm ? "step-end" : "steps(8)" },
  );
}

function inOrder(rows, heads) {
  const index = heads.findIndex((head) => head.ariaSort !== "none");
  if (index < 0) return rows;
  const sign = heads[index].ariaSort === "ascending" ? 1 : -1;
  const compare = (one, other) => (one > other) - (one < other);
  return [...rows].sort((one, other) => sign * compare(one[index], other[index]));
}
