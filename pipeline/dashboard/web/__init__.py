"""Components that the browser draws: the status line, the tables and the charts, each sent its data once per tick.

Streamlit recreates its own charts and tables whenever their data changes, and zoom, scrolling and hover are lost;
these are updated in place.
"""

from importlib.resources import files
from pathlib import Path

from streamlit.components import v1, v2
from streamlit.components.v2.types import ComponentRenderer

WEB = Path(__file__).parent


def component(name: str, html: str) -> ComponentRenderer:
    """Return a function that mounts the component; the script of the same name, beside this file, fills in the HTML."""
    return v2.component(name, html=html, js=(WEB / f"{name}.js").read_text(), isolate_styles=False)


status_line = component(
    "status",
    '<div class="status"><b role="status"></b><span class="age"></span><span class="age"></span>'
    '<span class="facts"></span></div>',
)
table = component(
    "table", '<div class="table" tabindex="0" role="region"><table><thead></thead><tbody></tbody></table></div>'
)
chart = component("chart", '<figure class="chart"><div></div><figcaption class="unseen"></figcaption></figure>')

# Serves Plotly's own folder: nothing is copied, and nothing comes from another host. The URL contains this module's
# name, so chart.js does, too.
v1.declare_component("plotly", path=str(files("plotly") / "package_data"))
