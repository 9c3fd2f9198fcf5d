"""What the browser draws by itself: the status line, the tables and the charts, each told what to show once a tick.

Streamlit's own charts and tables are made anew whenever their data change, and with them go zoom, scrolling and hover;
these are brought up to date in place.
"""

from importlib.resources import files
from pathlib import Path

from streamlit.components import v1, v2
from streamlit.components.v2.types import ComponentRenderer

WEB = Path(__file__).parent


def component(name: str, html: str) -> ComponentRenderer:
    """Return what mounts a component; the script beside this file that has its name fills in the HTML."""
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

# Serves Plotly's own folder: nothing is copied, and nothing comes from another host. This module's name is in its
# address, and so in chart.js.
v1.declare_component("plotly", path=str(files("plotly") / "package_data"))
