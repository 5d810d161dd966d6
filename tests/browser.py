"""A headless Chromium driven through its DevTools protocol: real mouse and key events, no further
packages.

`websocket-client` comes with JupyterLab.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {"Enter": (13, "\r")}


def find() -> str | None:
    """The browser named by CCLKIT_CHROMIUM, or one on the path."""
    return os.environ.get("CCLKIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One window. Expressions are JavaScript; what they return must be JSON."""

    def __init__(self, binary: str, profile: Path, size: tuple[int, int] = (1300, 1000)):
        self.count = 0
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [
                binary,
                "--headless=new",
                *root,
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                f"--user-data-dir={profile}",
                "--remote-debugging-port=0",
                f"--window-size={size[0]},{size[1]}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = wait(
            lambda: (
                (profile / "DevToolsActivePort").is_file()
                and (profile / "DevToolsActivePort").read_text().split("\n")[0]
            ),
            60,
            "Chromium starts",
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(t for t in json.load(answer) if t["type"] == "page")
        self.socket = websocket.create_connection(
            page["webSocketDebuggerUrl"], suppress_origin=True, timeout=60
        )

    def call(self, method: str, **params) -> dict:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def js(self, expression: str):
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"].get(
            "exception", answer["exceptionDetails"]
        )
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float, what: str):
        return wait(lambda: self.js(expression), seconds, what)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def place(self, element: str, at: tuple[float, float] = (0.5, 0.5)) -> tuple[float, float]:
        """Where the element an expression returns is on the screen, at a fraction of its width and
        height; it is scrolled into view.
        """
        return tuple(
            self.js(
                f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); const b ="
                f" e.getBoundingClientRect(); return [b.left + {at[0]} * b.width, b.top + {at[1]} *"
                " b.height]; })()"
            )
        )

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **more)

    def click(self, element: str, at: tuple[float, float] = (0.5, 0.5), times: int = 1) -> None:
        x, y = self.place(element, at)
        self.mouse("Moved", x, y)
        for n in range(1, times + 1):
            self.mouse("Pressed", x, y, button="left", clickCount=n)
            self.mouse("Released", x, y, button="left", clickCount=n)

    def drag(self, element: str, dx: float) -> None:
        """Take an element at its middle and move it sideways, in pixels, in one go."""
        x, y = self.place(element)
        self.mouse("Moved", x, y)
        self.mouse("Pressed", x, y, button="left", clickCount=1)
        self.mouse("Moved", x + dx, y, button="left", buttons=1)
        self.mouse("Released", x + dx, y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        code, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        )

    def close(self) -> None:
        self.socket.close()
        end(self.process)


def end(process: subprocess.Popen) -> None:
    """Ask a process to stop; insist after a while."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait(condition, seconds: float, what: str):
    """The first true value of a condition. Fails, saying what did not happen, after so many
    seconds.
    """
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        value = condition()
        if value:
            return value
        time.sleep(0.1 if passed < 5 else 0.5)  # looking takes time from what is waited for
    raise AssertionError(f"not within {seconds} s: {what}")
