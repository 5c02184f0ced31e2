"""Headless Chromium, driven over its debugging pipe: no package beside the browser itself."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DEADLINE_S = 120  # only to end a hang
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_AXE = find_spec("axe_playwright_python")  # bundles axe-core
AXE = Path(_AXE.origin).with_name("axe.min.js").read_text() if _AXE and _AXE.origin else ""
_FOUND = """axe.run(document).then((found) => found.violations.flatMap((v) =>
  v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 120)}`)))"""


class Browser:
    """One page of one browser. `errors`: what its console said; `requests`: every URL it asked for."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        assert CHROMIUM
        to_read, to_write = os.pipe(), os.pipe()
        self._in, self._out = to_read[1], to_write[0]

        def wire() -> None:
            ours = os.dup(to_write[1])  # above 4, whatever 3 and 4 are now
            os.dup2(to_read[0], 3)
            os.dup2(ours, 4)
            os.set_inheritable(3, True)

        self._process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
             "--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}",
             f"--window-size={width},{height}", "about:blank"],
            preexec_fn=wire, close_fds=False,  # noqa: PLW1509
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read[0])
        os.close(to_write[1])
        self._buffer, self._number = b"", 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.downloads: list[str] = []
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the page and give its result."""
        return self._ask(method, self._session, **parameters)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._out, 1 << 20)
            assert data, "the browser is gone"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(text)
        self._take_note(event.get("method", ""), event.get("params", {}))
        return event

    def _take_note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.errors.append(said["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.errors.append(str(said["args"]))

    def open(self, url: str) -> None:
        """Go to a page and wait for its load event."""
        self.ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def run(self, code: str) -> Any:
        """Evaluate JavaScript; a promise is awaited."""
        found = self.ask("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, code: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + DEADLINE_S
        while not self.run(code):
            assert time.monotonic() < end, f"never true: {code}"
            time.sleep(0.05)

    def axe(self) -> list[str]:
        """Give what axe-core has to say against the page as it is now."""
        self.run(f"{AXE};0")
        found: list[str] = self.run(_FOUND)
        return found

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = key if len(key) == 1 else ""
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Save a screenshot."""
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
