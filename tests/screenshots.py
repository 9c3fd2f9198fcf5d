"""Take the pictures for README.md and docs/dashboard.md: `make run` itself, seen in a real browser.

    python -m tests.screenshots                # about six minutes: the pictures wait for trades at one a second

It runs twice, in a copy of the project with its own ports and data: at the default rate, and at 50 trades/s for the
animation. To show each state, it suspends the producer and PostgreSQL. Needs Chromium (apt-get install chromium).
"""

import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import pairwise
from typing import Any

import psutil
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.live_page import CHROMIUM, NO_CHROMIUM, chromium
from tests.script import ROOT
from tests.services import eventually
from tests.test_make import Run, copy_to_run

FOLDER = ROOT / "images"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 400, "height": 860}
ALL_OF_IT = {"width": 1440, "height": 1260}  # the candles, too
SECONDS_MOVING, SECONDS_A_FRAME = 9, 0.2
COLOURS = 256


def main() -> None:
    """Take all pictures."""
    if CHROMIUM is None:
        sys.exit(NO_CHROMIUM)
    with chromium() as browser:
        with made_to_run("producer.py") as run:
            take_states(run, browser)
        with made_to_run("producer.py --rate 50") as run:
            page = open_page(run, browser, "?every=1+s")
            take(page, "LIVE", None)
            eventually(lambda: run.database.count() >= 1500, timeout=180)
            take_moving(page)


@contextmanager
def made_to_run(producer: str) -> Iterator[Run]:
    """Start `make run` in a copy of the project, with this producer command."""
    with copy_to_run() as run:
        procfile = run.folder / "Procfile"
        procfile.write_text(procfile.read_text().replace("producer.py", producer))
        run.start()
        yield run


def open_page(run: Run, browser: Browser, view: str = "", size: dict[str, int] = DESKTOP, scale: int = 1) -> Page:
    """Open the page in a window of that size, once it is up."""
    eventually(run.page_answers, timeout=120)
    page = browser.new_page(viewport=size, device_scale_factor=scale)  # type: ignore[arg-type]
    page.goto(f"http://localhost:{run.ports['page']}/{view}")
    return page


def take_states(run: Run, browser: Browser) -> None:
    """Take a picture of each state, starting before the first trade."""
    eventually(lambda: suspend(run, "producer.py"))
    page = open_page(run, browser)
    take(page, "EMPTY", "empty")
    suspend(run, "producer.py", over=True)
    eventually(lambda: run.database.count() >= 60, timeout=120)
    take(page, "LIVE", "first-minute")
    eventually(lambda: run.database.count() >= 240, timeout=300)
    page.set_viewport_size(ALL_OF_IT)  # type: ignore[arg-type]
    take(page, "LIVE", "dashboard")
    page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
    take(open_page(run, browser, size=PHONE, scale=2), "LIVE", "phone")
    suspend(run, "producer.py")
    take(page, "STALE", "stale")
    suspend(run, "producer.py", over=True)
    take(page, "LIVE", None)
    suspend(run, "postgres")
    take(page, "DATABASE DOWN", "database-down")


def suspend(run: Run, program: str, over: bool = False) -> bool:
    """Suspend every process of a program (`over`: resume them); return whether there is any."""
    found = False
    for process in run.processes():
        with suppress(psutil.NoSuchProcess):  # make and honcho have short-lived children
            if program in (process.name(), *process.cmdline()):
                process.resume() if over else process.suspend()
                found = True
    return found


def take(page: Page, state: str, name: str | None) -> None:
    """Wait until the page is in that state with everything drawn; take the picture if it has a name."""
    expect(page.locator(".status [role=status]")).to_have_text(state, timeout=60_000)
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(2500)  # for a tick, and for its change marks to fade
    if name:
        picture = Image.open(BytesIO(page.screenshot())).quantize(COLOURS)  # a third of the size
        picture.save(FOLDER / f"{name}.png", optimize=True)
        print(f"images/{name}.png", flush=True)


def take_moving(page: Page) -> None:
    """Record the page for a while, and save it as an animation."""
    frames: list[Image.Image] = []
    moments: list[float] = []  # seconds
    recorder = page.context.new_cdp_session(page)

    def keep(frame: dict[str, Any]) -> None:
        moment = frame["metadata"]["timestamp"]
        if not moments or moment - moments[-1] >= SECONDS_A_FRAME:
            frames.append(Image.open(BytesIO(b64decode(frame["data"]))).convert("RGB"))
            moments.append(moment)
        recorder.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    recorder.on("Page.screencastFrame", keep)
    recorder.send("Page.startScreencast", {"format": "png"})
    page.wait_for_timeout(1000 * SECONDS_MOVING)
    recorder.send("Page.stopScreencast")
    shown = [round(1000 * (later - before)) for before, later in pairwise(moments)]
    palette = frames[-1].quantize(COLOURS)  # the same for all frames, so that unchanged areas take no space
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames[: len(shown)]]
    first.save(FOLDER / "page.webp", append_images=others, save_all=True, duration=shown, loop=0, lossless=True)
    print(f"images/page.webp: {len(shown)} frames")


if __name__ == "__main__":
    main()
