"""A headless Chromium that a test drives over a pipe, by the DevTools protocol; no packages beside the browser."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "chrome")
LONGEST_WAIT = 60.0  # seconds for an answer, on a machine that has much else to do


def find_browser() -> str | None:
    """Path of a Chromium, if one is installed (Debian: ``chromium``)."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@dataclass
class Browser:
    """An open page.

    Attributes:
        events: what has happened since the page was asked for: (name, what is said of it).
    """

    to_browser: int
    from_browser: int
    session: str = ""
    number: int = 0
    unread: bytes = b""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, page: Path) -> None:
        """Load a page, to its end."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("Page.loadEventFired")

    def wait_for(self, event: str, **said: Any) -> None:
        """Return when an event has happened of which this is said."""
        while not any(name == event and said.items() <= about.items() for name, about in self.events):
            self._next()

    def wait_until(self, script: str) -> None:
        """Return when an expression on the page is true."""
        ask = f"if ({script}) {{clearInterval(at); done()}}"
        self.evaluate(f"new Promise((done) => {{const at = setInterval(() => {{{ask}}}, 20)}})")

    def evaluate(self, script: str) -> Any:
        """The value of an expression on the page, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def type_into(self, selector: str, text: str) -> None:
        """Replace what an input holds."""
        self.evaluate(f"{{const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select();}}")
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        """A key, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8 if shift else 0)

    def click(self, selector: str) -> None:
        """The middle of what is first found."""
        place = self.evaluate(
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def save_screenshot(self, path: Path) -> None:
        """A picture of the whole page, as PNG."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            readable, _, _ = select.select([self.from_browser], [], [], LONGEST_WAIT)
            assert readable, f"the browser says nothing for {LONGEST_WAIT:.0f} s"
            part = os.read(self.from_browser, 1 << 20)
            assert part, "the browser has ended"
            self.unread += part
        line, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message


@contextmanager
def open_browser(program: str, folder: Path) -> Iterator[Browser]:
    """A browser with an empty page, whose profile and downloads lie in ``folder``."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    # The browser reads descriptor 3 and writes 4; higher ones than those can be put there in any order.
    passed = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (theirs_in, theirs_out)]
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    flags += ["--autoplay-policy=no-user-gesture-required", "--window-size=1280,900", "about:blank"]
    command = ["bash", "-c", f'exec "$0" "$@" 3<&{passed[0]} 4>&{passed[1]}', program, *flags]
    process = subprocess.Popen(
        command, pass_fds=passed, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for each in (theirs_in, theirs_out, *passed):
        os.close(each)
    try:
        browser = Browser(ours_out, ours_in)
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            browser.call(f"{domain}.enable")
        yield browser
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
