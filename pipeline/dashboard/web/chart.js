// Keeps one Plotly chart and brings it up to date in place: zoom, pan, legend choices and hover stay as they are.
// Streamlit calls this once a tick with the new figure; `parentElement` lives as long as the chart is on the page.

const LIBRARY = "component/pipeline.dashboard.charts.plotly/plotly.min.js"; // 4.8 MB, loaded once and shared by all charts
const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]], // not the one that sends charts to a cloud
  plotlyServerURL: "",
};

function library() {
  window.plotlyLoaded ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL(LIBRARY, document.baseURI);
    script.onload = () => resolve(window.Plotly);
    script.onerror = reject;
    document.head.append(script);
  });
  return window.plotlyLoaded;
}

export default function ({ data, parentElement }) {
  const { figure, summary } = JSON.parse(new TextDecoder().decode(data));
  const frame = parentElement.querySelector("figure");
  const chart = frame.querySelector("div");
  frame.querySelector("figcaption").textContent = summary;
  library().then(async (Plotly) => {
    await Plotly.react(chart, figure.data, figure.layout, CONFIG);
    hoverAgain(chart);
  });
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
