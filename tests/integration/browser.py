"""Headless Chromium over a pipe with the DevTools protocol: opens a page, runs script, takes pictures."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--hide-scrollbars", "--force-color-profile=srgb", "--font-render-hinting=none",
    "--remote-debugging-pipe",
)  # fmt: skip


COUNT_COLOURS = """(async (encoded, x, y) => {
  const bytes = Uint8Array.from(atob(encoded), (one) => one.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  const { data, width, height } = context.getImageData(0, 0, image.width, image.height);
  const colour = (at) => `${data[at]},${data[at + 1]},${data[at + 2]}`;
  const colours = {};
  for (let at = 0; at < data.length; at += 4) colours[colour(at)] = (colours[colour(at)] ?? 0) + 1;
  return { width, height, colours, colour_at: colour(4 * (Math.round(y) * width + Math.round(x))) };
})"""


@dataclass(frozen=True)
class Picture:
    """What is in a screenshot: how many pixels of each colour, and the colour at one place."""

    width: int
    height: int
    colours: dict[str, int]
    colour_at: str


@dataclass
class Page:
    """An open page and what it did: requests, and whatever it complained of."""

    reading: int
    writing: int
    session: str = ""
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _n_sent: int = 0
    _buffer: bytes = b""

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer; notes the events that come before it."""
        self._n_sent += 1
        message: dict[str, Any] = {"id": self._n_sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        unsent = memoryview(json.dumps(message).encode() + b"\0")
        while unsent:
            unsent = unsent[os.write(self.writing, unsent) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._n_sent:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """Runs an expression in the page; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        """Goes to an address and waits until it is loaded."""
        self.send("Page.navigate", url=address)
        self.evaluate(
            "new Promise((done) => document.readyState === 'complete' ? done() : onload = () => done())"
        )

    def press(self, key: str, *, shift: bool = False) -> None:
        """Presses a key that writes nothing, such as Tab or ArrowDown."""
        codes = {
            "Tab": 9,
            "ArrowDown": 40,
            "ArrowUp": 38,
            "ArrowLeft": 37,
            "ArrowRight": 39,
            "End": 35,
            "Enter": 13,
            "Escape": 27,
        }
        code = codes[key]
        text = {"text": "\r"} if key == "Enter" else {}  # without it a button is not pressed
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                modifiers=8 if shift else 0, **text,
            )  # fmt: skip

    def type(self, text: str) -> None:
        """Writes text where the focus is."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path, *, whole: bool = True) -> str:
        """Takes a picture, of the whole page or of the window, and returns it in base 64."""
        encoded: str = self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(encoded))
        return encoded

    def picture(self, path: Path, *, whole: bool = True, at: tuple[float, float] = (0, 0)) -> Picture:
        """Takes a picture and counts its colours."""
        arguments = ", ".join(map(json.dumps, (self.screenshot(path, whole=whole), *at)))
        return Picture(**self.evaluate(f"{COUNT_COLOURS}({arguments})"))

    def print_to_pdf(self, path: Path) -> None:
        """Prints on A4."""
        answer = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=False)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self.reading, 1 << 20)
            assert chunk, "the browser has gone"
            self._buffer += chunk
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(parameters["exceptionDetails"]["exception"]["description"])
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
        return message


@contextmanager
def opened(page_at: Path | str, width: int = 1366, height: int = 768) -> Iterator[Page]:
    """A page, which is a file or has an address, in a browser of its own, loaded."""
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads commands from descriptor 3 and writes to 4.
        redirect = f'exec "$0" "$@" 3</dev/fd/{to_browser[0]} 4>/dev/fd/{from_browser[1]}'
        command = ["sh", "-c", redirect, CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        command += [f"--window-size={width},{height}", "about:blank"]
        process = subprocess.Popen(
            command, pass_fds=(to_browser[0], from_browser[1]), stderr=subprocess.DEVNULL
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        page = Page(from_browser[0], to_browser[1])
        try:
            _load(page, page_at.as_uri() if isinstance(page_at, Path) else page_at, width, height)
            yield page
        finally:
            process.terminate()
            process.wait(10)
            os.close(from_browser[0])
            os.close(to_browser[1])


def _load(page: Page, address: str, width: int, height: int) -> None:
    target = next(
        one for one in page.send("Target.getTargets")["targetInfos"] if one["type"] == "page"
    )["targetId"]  # fmt: skip
    page.session = page.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Network", "Runtime", "Log"):
        page.send(f"{domain}.enable")
    page.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
    )
    page.open(address)
