// Updates one Plotly chart in place, so that zoom, pan, legend choices and hover survive.
// Streamlit calls this once per tick with the new figure; `parentElement` lives as long as the chart is on the page.

const LIBRARY = new URL("component/pipeline.dashboard.web.plotly/plotly.min.js", document.baseURI); // 4.8 MB
const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]], // without the one that uploads charts to a cloud
  plotlyServerURL: "",
};

const TEXT = "#D6DEE8", FAINT = "#93A1B2", GRID = "#1B2530", GROUND = "#0B0F14", BUY = "#2DD4BF", SELL = "#FB923C";
const FONT = { family: "system-ui, sans-serif", size: 11, color: FAINT };
const LINES = { showgrid: true, gridcolor: GRID, zeroline: true, zerolinecolor: FAINT, showline: true, linecolor: GRID };
const AXIS = { ...LINES, automargin: true };
const LAYOUT = {
  paper_bgcolor: GROUND,
  plot_bgcolor: GROUND,
  font: FONT,
  margin: { l: 8, r: 8, t: 26, b: 8 },
  legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { color: TEXT } },
  hoverlabel: { bgcolor: "#121922", bordercolor: "#263241", font: { color: TEXT } },
  hovermode: "x unified",
  modebar: { bgcolor: "rgba(0,0,0,0)", color: FAINT, activecolor: TEXT },
  title: { font: { size: 12, color: TEXT }, x: 0, xref: "paper", y: 1, yref: "paper", yanchor: "bottom", pad: { b: 6 } },
  xaxis: AXIS,
  yaxis: AXIS,
  shapedefaults: { line: { color: FAINT, width: 1, dash: "dot" } }, // where a long pause was left out
  annotationdefaults: { showarrow: false, bgcolor: GROUND },
};
// Distinguished by shape as well as colour: sold is hatched, rising candles are hollow.
const RISING = { line: { color: BUY, width: 1 }, fillcolor: GROUND };
const FALLING = { line: { color: SELL, width: 1 }, fillcolor: SELL };
const TEMPLATE = {
  layout: LAYOUT,
  data: { scatter: [{ line: { color: TEXT, width: 1 } }], candlestick: [{ increasing: RISING, decreasing: FALLING }] },
};
const HATCHING = { shape: "/", fillmode: "overlay", fgcolor: GROUND, size: 5, solidity: 0.25 };
const BARS = {
  buy: { marker: { color: BUY }, hovertemplate: "%{y:,d}" },
  sell: { marker: { color: SELL, pattern: HATCHING }, hovertemplate: "%{y:,d}" },
  volume: { marker: { color: "#3B4A5C" } },
};
const NO_TRADES = {
  xaxis: { visible: false },
  yaxis: { visible: false },
  annotations: [{ text: "no trades here", xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
};

const pen = document.createElement("canvas").getContext("2d"); // measures text
let pointer; // the latest mouse movement

// All charts share this module, and so these listeners.
document.addEventListener("mousemove", (event) => { pointer = event; });
document.addEventListener("click", savePicture);

export default function ({ data, parentElement }) {
  const { data: traces, layout, summary } = JSON.parse(new TextDecoder().decode(data));
  parentElement.querySelector("figcaption").textContent = summary;
  Object.assign(layout, { template: TEMPLATE, height: parentElement.clientHeight });
  if (!traces.length) Object.assign(layout, NO_TRADES);
  else if (traces[0].customdata) labelEnds(layout, traces, parentElement);
  draw(parentElement.querySelector("figure > div"), traces, layout);
}

async function draw(chart, traces, layout) {
  await import(LIBRARY); // once: the browser keeps modules
  const dressed = traces.map((trace) => (trace.type === "bar" ? { ...trace, ...BARS[trace.name] } : trace));
  await Plotly.react(chart, dressed, layout, CONFIG);
  hoverAgain(chart);
}

// Handles the buttons of the "Save" menu: saves a chart as it is on the screen, with zoom and legend choices.
function savePicture({ target }) {
  const filename = target.dataset?.chart;
  const chart = filename && document.querySelector(`.st-key-${filename} .js-plotly-plot`);
  if (!chart) return;
  const { clientWidth: width, clientHeight: height } = chart;
  Plotly.downloadImage(chart, { format: "png", scale: 2, width, height, filename });
}

// Labels the end of each line with its ticker, last price and, where there is room, change, without overlaps.
function labelEnds(layout, lines, { clientWidth: width, clientHeight: height }) {
  const values = lines.flatMap(({ y }) => y);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const room = Math.max((most - least) / 20, layout.yaxis.ticksuffix ? 0.02 : most / 5000); // even if no price moved
  const [low, high] = [least - room, most + room];
  const line = (16 * (high - low)) / (height - 60);
  const told = (text) => (width < 500 ? text.split(" ")[0] : text);
  const labels = lines
    .map(({ name, y, customdata, line: { color } }) => ({ y: y.at(-1), text: `<b>${name}</b> ${told(customdata.at(-1))}`, color }))
    .sort((one, other) => one.y - other.y);
  labels.forEach((label, index) => { if (index) label.y = Math.max(label.y, labels[index - 1].y + line); });
  labels.reverse().forEach((label, index) => { label.y = Math.min(label.y, index ? labels[index - 1].y - line : high); });
  layout.yaxis.autorangeoptions = { minallowed: low, maxallowed: high }; // a `range` would undo the viewer's zoom
  layout.showlegend = false;
  pen.font = `bold 12px ${FONT.family}`;
  const widths = labels.map(({ text }) => pen.measureText(text.slice(3).replace("</b>", "")).width);
  layout.margin = { r: 12 + Math.max(...widths) };
  const place = { xref: "paper", x: 1, xanchor: "left", xshift: 4, yanchor: "middle", bgcolor: "transparent" };
  layout.annotations.push(...labels.map(({ y, text, color }) => ({ ...place, y, text, font: { size: 12, color } })));
}

// Plotly drops the hover label when the data changes; repeating the last mouse movement brings it back.
function hoverAgain(chart) {
  if (!pointer || pointer.buttons || !chart.matches(":hover")) return;
  const { clientX, clientY } = pointer;
  const moved = new MouseEvent("mousemove", { clientX, clientY, bubbles: true });
  document.elementFromPoint(clientX, clientY)?.dispatchEvent(moved);
}
