"""Figures as people write them, the same everywhere on the page. Text from trades is shown verbatim, never run."""

import json
import re
from datetime import datetime
from typing import Any

UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def amount(value: float | None) -> str:
    """Return an amount of money, or a dash for None."""
    return "–" if value is None else f"{value:,.2f}"


def signed(value: float, unit: str = "") -> str:
    """Return a change with its sign; one that rounds to zero has none."""
    written = f"{value:+,.2f}"
    return (written[1:] if not written.strip("+-0.") else written.replace("-", "−")) + unit


def duration(seconds: float) -> str:
    """Return a time span in the largest unit that fits at least twice: 119 s, 22 min, 26 h."""
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    size, unit = next((size, unit) for size, unit in UNITS if seconds >= 2 * size)
    return f"{seconds / size:.0f} {unit}"


def frequency(rate: float | None) -> str:
    """Return a rate per second; if that is less than 0.1, how far trades are apart."""
    if rate is None:
        return "– trades/s"
    return f"{rate:,.1f} trades/s" if rate >= 0.1 else f"a trade every {duration(1 / rate)}"


def clock(moment: datetime | None) -> str:
    """Return the time of day, or "never" for None."""
    return "never" if moment is None else f"{moment:%H:%M:%S} UTC"


def for_streamlit(text: str) -> str:
    """Return text escaped so that Streamlit shows it verbatim: no Markdown, no :cat: or -> turned into a picture."""
    return re.sub(r"([!-/:-@\[-`{-~])", "\\\\\\1\u2060", text)


def for_plotly(text: str) -> str:
    """Return text escaped so that Plotly, which interprets some HTML, shows it verbatim."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def encoded(value: dict[str, Any]) -> bytes:
    """Return the data for one of the page's components, as JSON."""
    return json.dumps(value, separators=(",", ":")).encode()
