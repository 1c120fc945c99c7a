"""A headless Chromium by its own protocol, over two pipes: no driver, no package."""

import json
import os
import shutil
import subprocess
from itertools import count
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: what a page's troubles are reported as
TROUBLES = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.requestWillBeSent")


class Browser:
    """One page of one browser. troubles: errors, console output and requests of the page that is open."""

    def __init__(self, profile: Path):
        (commands, self.write), (self.read, answers) = os.pipe(), os.pipe()

        def give_pipes():  # the browser reads file 3 and writes file 4
            for source, target in ((os.dup(commands), 3), (os.dup(answers), 4)):
                os.dup2(source, target)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, "about:blank"], preexec_fn=give_pipes, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(commands), os.close(answers)
        self.numbers, self.waiting, self.session, self.troubles = count(1), b"", None, []
        target = self.call("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in target if each["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def message(self) -> dict:
        while b"\0" not in self.waiting:
            if not (more := os.read(self.read, 65536)):
                raise EOFError("Chromium ended")
            self.waiting += more
        found, _, self.waiting = self.waiting.partition(b"\0")
        return json.loads(found)

    def call(self, method: str, **params) -> dict:
        number = next(self.numbers)
        asked = {"id": number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(asked).encode() + b"\0")
        while (found := self.message()).get("id") != number:
            self.note(found)
        assert "error" not in found, found
        return found["result"]

    def note(self, event: dict) -> None:
        if event.get("method") in TROUBLES:
            self.troubles.append(event)

    def open(self, file: Path, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.troubles = []
        self.call("Page.navigate", url=file.resolve().as_uri())
        while (found := self.message()).get("method") != "Page.loadEventFired":
            self.note(found)

    def evaluate(self, expression: str):
        """The value of an expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself apart."""
        asked = [each["params"]["request"]["url"] for each in self.troubles if each["method"].startswith("Network")]
        return asked[1:]

    def complaints(self) -> list[dict]:
        return [each for each in self.troubles if not each["method"].startswith("Network")]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write), os.close(self.read)
