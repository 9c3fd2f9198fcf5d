"""Whether anything grows: memory over an hour of 5,000 trades/s through the scripts and the servers.

    python -m benchmarks.memory                            # an hour
    python -m benchmarks.memory --minutes 5 --rate 1000

It starts the servers of local_stack.py in a separate folder, producer.py, consumer.py, dashboard.py and a browser that
watches the page (not measured, but without it the page would be idle), and reads the memory of each every five seconds:
resident memory; for PostgreSQL, the sum of its processes with shared pages counted once (PSS, Linux only). The curve
is written to memory.csv line by line, and to memory.png at the end. Growth is the median of the last fifth of the time
against that of the second fifth, because caches fill during the first.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

import plotly.graph_objects as go
import psutil
from playwright.sync_api import Browser

from benchmarks.command import machine, parser, run, say, say_table, show
from pipeline.user_error import UserError
from tests.live_page import chromium, dashboard
from tests.script import Script, environment_of
from tests.services import Kafka, Postgres

SIZE = {"width": 1200, "height": 700}

Curve = list[dict[str, float]]  # one dict per reading: minutes, and MB of each process


def measure(options: argparse.Namespace) -> None:
    """Run everything and record the memory; print and draw it."""
    with chromium() as browser:
        with whole_pipeline(browser, options.rate) as processes:
            curve = watch(processes, options)
        draw(browser, curve, options.picture)
    fifth = max(1, len(curve) // 5)
    say(f"{options.minutes:g} minutes, {options.rate:,} trades/s; {machine()}\n")
    rows = []
    for name in processes:
        sizes = [reading[name] for reading in curve]
        early, late = median(sizes[fifth : 2 * fifth]), median(sizes[-fifth:])
        rows.append([name, f"{early:.1f}", f"{late:.1f}", f"{late / early - 1:+.1%}", f"{max(sizes):.1f}"])
    say_table(["MB", "second fifth", "last fifth", "growth", "largest"], rows)


@contextmanager
def whole_pipeline(browser: Browser, rate: int) -> Iterator[dict[str, psutil.Process]]:
    """Run the servers, the scripts and a browser; yield the processes to measure."""
    with ExitStack() as stack:
        broker = stack.enter_context(Kafka())
        postgres = stack.enter_context(Postgres())
        environment = environment_of(broker.bootstrap_servers, postgres.url, "orders", "memory")
        consumer = Script(["consumer.py"], environment)
        stack.callback(consumer.kill)
        consumer.wait_for_line("Consumer started")
        producer = Script(["producer.py", "--rate", str(rate)], environment)
        stack.callback(producer.kill)
        address = stack.enter_context(dashboard(postgres.url))
        page = next(child for child in psutil.Process().children() if "dashboard.py" in child.cmdline())
        viewer = browser.new_page()
        viewer.goto(address)
        viewer.get_by_text("AAPL").first.wait_for()
        yield {
            "producer.py": psutil.Process(producer.pid),
            "consumer.py": psutil.Process(consumer.pid),
            "dashboard.py": page,
            "Kafka": psutil.Process(broker.pid),
            "PostgreSQL": psutil.Process(postgres.pid),
        }
        viewer.close()


def watch(processes: dict[str, psutil.Process], options: argparse.Namespace) -> Curve:
    """Record the memory until the time is up. Raises `UserError` if a process ends."""
    curve: Curve = []
    began = time.monotonic()
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["minutes", *processes])
        writer.writeheader()
        while (passed := (time.monotonic() - began) / 60) < options.minutes:
            try:
                sizes = {name: memory(name, process) for name, process in processes.items()}
            except psutil.NoSuchProcess as error:
                raise UserError(f"a process ended by itself after {passed:.1f} minutes: {error}") from None
            curve.append({"minutes": round(passed, 2)} | sizes)
            writer.writerow(curve[-1])
            file.flush()
            show(
                f"{passed:.0f} of {options.minutes:g} minutes: "
                + ", ".join(f"{name} {mb:.0f} MB" for name, mb in sizes.items())
            )
            time.sleep(options.every)
    return curve


def memory(name: str, process: psutil.Process) -> float:
    """Return the MB of a process or, for PostgreSQL, of all its processes."""
    if name != "PostgreSQL":
        return round(process.memory_info().rss / 1e6, 1)
    total = 0
    for each in (process, *process.children()):
        with suppress(psutil.NoSuchProcess):  # a worker that has finished
            total += each.memory_full_info().pss
    return round(total / 1e6, 1)


def draw(browser: Browser, curve: Curve, path: Path) -> None:
    """Draw the curve, with the browser that is running anyway."""
    minutes, *names = curve[0]
    figure = go.Figure(layout={"xaxis_title": "minutes", "yaxis_title": "MB", "yaxis_rangemode": "tozero", **SIZE})
    for name in names:
        figure.add_scatter(x=[reading[minutes] for reading in curve], y=[reading[name] for reading in curve], name=name)
    page = browser.new_page(viewport={"width": SIZE["width"], "height": SIZE["height"]})
    page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}))
    page.locator(".main-svg").first.wait_for()
    page.screenshot(path=path)
    page.close()


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=60)
    options.add_argument("--rate", type=int, default=5_000, help="trades per second")
    options.add_argument("--every", type=float, default=5, help="seconds between two readings")
    options.add_argument("--csv", type=Path, default=Path("memory.csv"), help="file for the readings")
    options.add_argument("--picture", type=Path, default=Path("memory.png"), help="file for the curve")
    return options


if __name__ == "__main__":
    sys.exit(run(options_parser(), measure))
