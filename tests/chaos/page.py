"""The page, watched by a viewer throughout the campaign."""

import threading
from contextlib import suppress

from playwright.sync_api import Error as BrowserError

from tests.live_page import CHROMIUM, chromium, healthy
from tests.script import Script, environment_of
from tests.services import eventually, free_port

TROUBLE = "[data-testid=stException]"  # how Streamlit shows a traceback


class Page:
    """The dashboard's server and, if asked for and Chromium is installed, a browser that watches the page."""

    def __init__(self, database_url: str, with_browser: bool) -> None:
        self._address = f"http://127.0.0.1:{free_port()}"
        self._environment = environment_of("127.0.0.1:9", database_url, "orders", "nobody")
        self._server: Script | None = None
        self._viewer = threading.Thread(target=self._view, daemon=True) if with_browser and CHROMIUM else None
        self._over = threading.Event()
        self._shown: set[str] = set()  # what a viewer should not have seen

    def start(self) -> None:
        """Start the server, and the viewer if there is one."""
        port = self._address.rpartition(":")[2]
        words = ("-m", "streamlit", "run", "dashboard.py", f"--server.port={port}")
        self._server = Script(words, self._environment)
        eventually(lambda: healthy(self._address))
        if self._viewer:
            self._viewer.start()

    def look(self) -> list[str]:
        """Return what is wrong with the page now, each problem once."""
        findings = sorted(self._shown)
        self._shown.clear()
        if self._server and not self._server.running:
            findings.append(f"the dashboard ended by itself: {self._server.stderr[-1000:]}")
            self._server = None
        elif self._server and not healthy(self._address):
            findings.append("the dashboard does not answer")
        return findings

    def stop(self) -> list[str]:
        """Stop the server as a user does; return what was wrong."""
        findings = self.look()
        self._over.set()
        if self._viewer:
            self._viewer.join(20)
        if server := self._server:
            try:
                server.stop()
            except AssertionError:
                findings.append("the dashboard took more than ten seconds to stop")
                server.kill()
            if "Traceback" in server.stderr:
                findings.append(f"the dashboard printed a traceback: {server.stderr[-2000:]}")
        return findings

    def kill(self) -> None:
        """Kill the server, if it runs."""
        self._over.set()
        if self._server:
            self._server.kill()

    def _view(self) -> None:
        with suppress(BrowserError), chromium() as browser:  # suppressed: the campaign was interrupted
            page = browser.new_page()
            page.goto(self._address)
            while not self._over.wait(1):
                for trouble in page.locator(TROUBLE).all_inner_texts():
                    self._shown.add(f"the page showed: {trouble[:500]}")
