// Keeps one Plotly chart and brings it up to date in place: zoom, pan, legend choices and hover stay as they are.
// Streamlit calls this once a tick with the new figure; `parentElement` lives as long as the chart is on the page.

const LIBRARY = "component/pipeline.dashboard.charts.plotly/plotly.min.js"; // 4.8 MB, loaded once and shared by all charts
const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]], // not the one that sends charts to a cloud
  plotlyServerURL: "",
};

const TEXT = "#D6DEE8", FAINT = "#93A1B2", GRID = "#1B2530", GROUND = "#0B0F14", BUY = "#2DD4BF", SELL = "#FB923C";
const FONT = { family: "system-ui, sans-serif", size: 11, color: FAINT };
const AXIS = { gridcolor: GRID, zerolinecolor: FAINT, linecolor: GRID, automargin: true };
const LAYOUT = {
  paper_bgcolor: GROUND,
  plot_bgcolor: GROUND,
  font: FONT,
  margin: { l: 8, r: 8, t: 26, b: 8 },
  legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { color: TEXT } },
  hoverlabel: { bgcolor: "#121922", bordercolor: "#263241", font: { color: TEXT } },
  hovermode: "x unified",
  modebar: { bgcolor: "rgba(0,0,0,0)", color: FAINT, activecolor: TEXT },
};
const TITLE = { font: { size: 12, color: TEXT }, x: 0, xref: "paper", y: 1, yref: "paper", yanchor: "bottom", pad: { b: 6 } };
const CUT = { line: { color: FAINT, width: 1, dash: "dot" } }; // where a long pause was left out
const CUT_LABEL = { showarrow: false, yanchor: "bottom", bgcolor: GROUND };

// Told apart by shape as well as by colour: sold is hatched, rising candles are hollow.
const HATCHING = { shape: "/", fillmode: "overlay", fgcolor: GROUND, size: 5, solidity: 0.25 };
const LOOKS = {
  buy: { marker: { color: BUY }, hovertemplate: "%{y:,d}" },
  sell: { marker: { color: SELL, pattern: HATCHING }, hovertemplate: "%{y:,d}" },
  volume: { marker: { color: "#3B4A5C" } },
  VWAP: { line: { color: TEXT, width: 1 } },
};
const CANDLES = {
  increasing: { line: { color: BUY, width: 1 }, fillcolor: GROUND },
  decreasing: { line: { color: SELL, width: 1 }, fillcolor: SELL },
};

const pen = document.createElement("canvas").getContext("2d"); // measures texts

export default function ({ data, parentElement }) {
  const { data: traces, layout, summary } = JSON.parse(new TextDecoder().decode(data));
  const frame = parentElement.querySelector("figure");
  const chart = frame.querySelector("div");
  frame.querySelector("figcaption").textContent = summary;
  library().then(async (Plotly) => {
    await Plotly.react(chart, traces.map(dressTrace), dressed(layout, traces, parentElement), CONFIG);
    hoverAgain(chart);
  });
}

function library() {
  window.plotlyLoaded ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL(LIBRARY, document.baseURI);
    script.onload = () => {
      document.addEventListener("click", savePicture);
      resolve(window.Plotly);
    };
    script.onerror = reject;
    document.head.append(script);
  });
  return window.plotlyLoaded;
}

// The buttons of the menu "Save": a chart as it is on the screen, zoom and legend choices included.
function savePicture({ target }) {
  const filename = target.dataset?.chart;
  const chart = filename && document.querySelector(`.st-key-${filename} .js-plotly-plot`);
  if (!chart) return;
  const { clientWidth: width, clientHeight: height } = chart;
  window.Plotly.downloadImage(chart, { format: "png", scale: 2, width, height, filename });
}

function dressTrace(trace) {
  if (trace.type === "candlestick") return { ...trace, ...CANDLES };
  return trace.customdata ? trace : { ...trace, ...LOOKS[trace.name] };
}

function dressed(layout, traces, { clientWidth: width, clientHeight: height }) {
  const whole = { ...LAYOUT, ...layout, height };
  for (const axis of ["xaxis", "yaxis", ...(layout.yaxis2 ? ["yaxis2"] : [])]) whole[axis] = { ...AXIS, ...layout[axis] };
  if (layout.title) whole.title = { ...TITLE, ...layout.title };
  whole.shapes = layout.shapes?.map((shape) => ({ ...shape, ...CUT }));
  whole.annotations = (layout.annotations ?? []).map((note) => ({ ...note, ...CUT_LABEL }));
  if (!traces.length) {
    whole.xaxis.visible = whole.yaxis.visible = false;
    whole.annotations.push({ text: "no trades here", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 });
  } else if (traces[0].customdata) labelEnds(whole, traces, width, height);
  return whole;
}

// Writes at the end of each line its ticker, last price and, where there is room, change, none on top of another.
function labelEnds(layout, traces, width, height) {
  const values = traces.flatMap(({ y }) => y);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const room = Math.max((most - least) / 20, layout.yaxis.ticksuffix ? 0.02 : most / 5000); // a price may never have moved
  const [low, high] = [least - room, most + room];
  const line = (16 * (high - low)) / (height - 60);
  const told = (text) => (width < 500 ? text.split(" ")[0] : text);
  const labels = traces
    .map(({ name, y, customdata, line: { color } }) => ({ y: y.at(-1), text: `<b>${name}</b> ${told(customdata.at(-1))}`, color }))
    .sort((one, other) => one.y - other.y);
  labels.forEach((label, index) => { if (index) label.y = Math.max(label.y, labels[index - 1].y + line); });
  labels.reverse().forEach((label, index) => { label.y = Math.min(label.y, index ? labels[index - 1].y - line : high); });
  layout.yaxis.range = [low, high];
  layout.showlegend = false;
  pen.font = `bold 12px ${FONT.family}`;
  const widths = labels.map(({ text }) => pen.measureText(text.slice(3).replace("</b>", "")).width);
  layout.margin = { ...layout.margin, r: 12 + Math.max(...widths) };
  const place = { xref: "paper", x: 1, xanchor: "left", xshift: 4, yanchor: "middle", showarrow: false };
  layout.annotations.push(...labels.map(({ y, text, color }) => ({ ...place, y, text, font: { ...FONT, size: 12, color } })));
}

// Plotly drops the hover label when the data change. The pointer has not moved, so it is put back where it was.
function hoverAgain(chart) {
  if (!chart.dataset.watched) {
    chart.dataset.watched = "yes";
    chart.addEventListener("mousemove", (event) => { if (event.isTrusted) chart.pointer = event; });
    chart.addEventListener("mouseleave", () => { chart.pointer = null; });
  }
  const pointer = chart.pointer;
  if (!pointer || pointer.buttons) return;
  const { clientX, clientY } = pointer;
  document.elementFromPoint(clientX, clientY)?.dispatchEvent(
    new MouseEvent("mousemove", { clientX, clientY, bubbles: true }),
  );
}
