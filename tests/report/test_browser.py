"""The page in headless Chromium: what is on it, what clicks do, a clean console, and not one request."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lipcert.report import Wanted, gather, write
from tests.report.test_page import NAME, Hostile

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="chromium and chromedriver are not installed here"),
]

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1000,900",
]  # fmt: skip


class Browser:
    """A WebDriver session over HTTP."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        wanted = {
            "goog:chromeOptions": {"binary": BROWSER, "args": FLAGS},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        found = self._send("/session", {"capabilities": {"alwaysMatch": wanted}})
        self.base += f"/session/{found['sessionId']}"

    def _send(self, path: str, body: Any = None, method: str = "POST") -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._send("/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._send("/execute/sync", {"script": script, "args": []})

    def log(self, kind: str) -> list[Any]:
        return self._send("/se/log", {"type": kind})

    def emulate(self, command: str, **parameters: Any) -> None:
        self._send("/goog/cdp/execute", {"cmd": f"Emulation.{command}", "params": parameters})

    def close(self) -> None:
        self._send("", method="DELETE")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert DRIVER is not None
    process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        session = Browser(port)
        yield session
        session.close()
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report") / "page.html"
    centre = torch.zeros(1, 4)
    wanted = Wanted(budget=1, lower_budget=0.5, radii=(0.1, 1.0), centre=centre)
    write(replace(gather(Hostile().eval(), centre, wanted), model="a" * 300), place)
    return place


def test_the_page_in_a_browser(browser: Browser, file: Path) -> None:
    browser.log("performance")
    browser.open(file.as_uri())
    assert browser.run("return document.querySelectorAll('section').length") >= 6
    assert NAME in browser.run("return document.body.textContent")
    assert browser.run("return document.getElementById('layers').innerText").count("%") > 2

    # a click on a head sorts, a second one turns the order around
    column = "Array.from(document.querySelectorAll('#methods tbody tr')).map(r => r.cells[3].textContent)"
    click = "document.querySelectorAll('#methods thead button')[3].click();"
    up = [float(v) for v in browser.run(f"{click} return {column}")]
    assert up == sorted(up)
    down = [float(v) for v in browser.run(f"{click} return {column}")]
    assert down == sorted(up, reverse=True)
    sort = "return document.querySelectorAll('#methods thead th')[3].getAttribute('aria-sort')"
    assert browser.run(sort) == "descending"

    # shares are sorted as numbers, and layers without one come last
    heads = "Array.from(document.querySelectorAll('#layers thead button'))"
    lost = f"{heads}.findIndex(b => b.textContent === 'lost')"
    cells = f"Array.from(document.querySelectorAll('#layers tbody tr')).map(r => r.cells[{lost}].textContent)"
    shares = browser.run(f"{heads}[{lost}].click(); return {cells}")
    told = [float(share.removesuffix(" %")) for share in shares if share]
    assert told == sorted(told)
    assert all(shares[: len(told)])

    # a box of the graph leads to its row
    browser.run("document.querySelectorAll('svg.tree a')[2].dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert browser.run("return location.hash") == "#node-2"
    assert browser.run("return document.querySelector('tr:has(:target)') !== null")

    assert browser.log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith((file.as_uri(), "data:")) for url in asked), asked


def test_light_dark_and_a_phone(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri())
    colours = []
    for scheme in ("light", "dark"):
        browser.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]
    browser.emulate("setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    assert browser.run("return document.documentElement.scrollWidth") <= 390


def test_everything_is_reached_by_keyboard_and_has_a_name(browser: Browser, file: Path) -> None:
    browser.open(file.as_uri())
    unnamed = """return Array.from(document.querySelectorAll('a, button, svg[role], [tabindex], table')).filter(e =>
        !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim())).length"""
    assert browser.run(unnamed) == 0
    assert browser.run("return document.querySelectorAll('table:not(:has(caption)), th:not([scope])').length") == 0
    assert browser.run("return document.documentElement.lang") == "en"
