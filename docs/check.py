"""Look at the built site in a real browser, and say what is wrong with it.

Chromium opens each page from a server on this machine, as wide as a screen and as a phone. A fault is: a
link or an anchor that leads nowhere, a picture that is not shown, a request to another host, an error of a
script, a page that is wider than a phone, and a search that does not find a name. A link to the repository
has to name a file that is there; other hosts are not asked.

Run: mkdocs build --strict && python docs/check.py, with --shots FOLDER for pictures of four pages
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/minilearn/minilearn"
WIDTHS = {"screen": (1300, 1000), "phone": (390, 844)}
SHOWN = {
    "front": "",
    "how-to": "how-to/checkpoint-and-resume/",
    "reference": "reference/callbacks/",
    "events": "reference/events/",
    "tutorial": "tutorials/003_optimizers_from_scratch/",
    "job": "jobs/dcgan/",
    "measured": "measured/",
}
SEARCHED = "EarlyStoppingCB"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-pipe",
)
# What a page has: its links, the names that a link may lead to, the pictures, and how wide it is.
LOOK = """(() => {
    for (const image of document.images) image.loading = 'eager';
    return Promise.all([...document.images].map(image => image.complete ? 0 : new Promise(done => {
        image.onload = image.onerror = done;
    }))).then(() => ({
        links: [...document.querySelectorAll('a[href]')].map(a => a.href),
        names: [...document.querySelectorAll('[id]')].map(e => e.id),
        missing: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
        unnamed: [...document.images].filter(image => !image.alt).map(image => image.src),
        wide: document.documentElement.scrollWidth - window.innerWidth,
        widest: [...document.querySelectorAll('.md-content *')]
            .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1
                && !e.closest('pre, table, .output, .md-typeset__scrollwrap'))
            .map(e => e.tagName + ' ' + e.textContent.slice(0, 60)).slice(0, 3),
    }));
})()"""
SEARCH = """new Promise(done => {
    const field = document.querySelector('.md-search__input');
    document.querySelector('#__search').checked = true;
    field.focus();
    field.value = %s;
    field.dispatchEvent(new Event('input', {bubbles: true}));
    field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}));
    const begin = Date.now();
    (function look() {
        const found = [...document.querySelectorAll('a.md-search-result__link')].map(a => a.href);
        if (found.length || Date.now() - begin > 20000) done(found); else setTimeout(look, 100);
    })();
})"""


class Browser:
    """Drive Chromium by its protocol, over two pipes.

    Fields: requests, the addresses that pages asked for; errors, what went wrong while a page was open.
    """

    def __init__(self, folder: Path) -> None:
        program = (
            shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        )
        if program is None:
            raise SystemExit("no chromium was found: expected it on PATH, as from apt-get install chromium")
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def at_3_and_4() -> None:
            read, write = os.dup(to_browser), os.dup(from_browser)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=at_3_and_4,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._n, self._rest, self._session = 0, b"", ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol; return its result."""
        self._n += 1
        message: dict[str, Any] = {"id": self._n, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._n:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._in, 1 << 16)
            if not read:
                raise RuntimeError("the browser ended")
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        self._note(answer.get("method", ""), answer.get("params", {}))
        return answer

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.errors.append(f"{params['response']['status']} for {params['response']['url']}")
        elif method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])

    def size(self, width: int, height: int) -> None:
        """Give the pages a size in pixels."""
        options = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **options)

    def open(self, address: str) -> None:
        """Open a page, and wait until it is loaded."""
        self._loaded = False
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._next()

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files, and print nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder; give its address."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


@contextmanager
def browser() -> Iterator[Browser]:
    """Give a browser with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = Browser(Path(folder))
        try:
            yield found
        finally:
            found.close()


def leads_nowhere(link: str, page: str, site: str, pages: dict[str, dict[str, Any]], folder: Path) -> str:
    """Return why a link of a page leads nowhere, or ""."""
    target, _, name = link.partition("#")
    if target.startswith(f"{REPOSITORY}/"):
        kind, _, path = target.removeprefix(f"{REPOSITORY}/").partition("/main/")
        if kind not in ("blob", "tree"):
            return f"{link}: expected blob or tree, and main"
        found = ROOT / unquote(path)
        right = found.is_dir() if kind == "tree" else found.is_file()
        return "" if right else f"{link}: there is no such {'folder' if kind == 'tree' else 'file'}"
    if not target.startswith(site):
        return (
            "" if target.startswith("https://") or link.startswith("mailto:") else f"{link}: expected https"
        )
    place = unquote(target.removeprefix(site))
    if place not in pages:
        return "" if (folder / place).is_file() else f"{link}: there is no such page"
    return "" if not name or unquote(name) in pages[place]["names"] else f"{link}: there is no such anchor"


def faults(folder: Path, shots: Path | None = None) -> list[str]:
    """Return what is wrong with a built site.

    Args:
        shots: a folder, for pictures of pages.
    """
    found: list[str] = []
    places = [path.parent.relative_to(folder).as_posix() + "/" for path in folder.rglob("index.html")]
    places = sorted(place.removeprefix("./") for place in places)
    if not places:
        return [f"{folder} has no pages: expected the result of mkdocs build"]
    pages: dict[str, dict[str, Any]] = {}
    with served(folder) as site, browser() as chromium:
        for device, (width, height) in WIDTHS.items():
            chromium.size(width, height)
            for place in places:
                chromium.open(site + place)
                page = chromium.value(LOOK)
                found += [f"{place}: the picture {src} is not shown" for src in page["missing"]]
                found += [f"{place}: the picture {src} has no text" for src in page["unnamed"]]
                if page["wide"] > 0 or page["widest"]:
                    found.append(f"{place}: wider than a {device} by {page['wide']}: {page['widest']}")
                found += [f"{place}: {error}" for error in chromium.errors]
                others = [url for url in chromium.requests if not url.startswith((site, "data:", "about:"))]
                found += [f"{place}: asks {url}" for url in others]
                chromium.errors.clear()
                chromium.requests.clear()
                pages[place] = page
            if shots is not None:
                shots.mkdir(parents=True, exist_ok=True)
                for name, place in SHOWN.items():
                    chromium.open(site + place)
                    time.sleep(0.3)
                    chromium.picture(shots / f"{name}-{device}.png")
        for place, page in pages.items():
            reasons = (leads_nowhere(link, place, site, pages, folder) for link in page["links"])
            found += [f"{place}: {reason}" for reason in dict.fromkeys(reasons) if reason]
        chromium.size(*WIDTHS["screen"])
        chromium.open(site)
        hits = chromium.value(SEARCH % json.dumps(SEARCHED))
        if not any(hit.partition("?")[0].startswith(f"{site}reference/callbacks/") for hit in hits):
            found.append(f"the search for {SEARCHED} finds {hits}: expected reference/callbacks/")
        if shots is not None:
            time.sleep(1)  # the list opens slowly
            chromium.picture(shots / "search-screen.png")
    return list(dict.fromkeys(found))


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("site", type=Path, nargs="?", default=ROOT / "site", help="as built (default: site)")
    parser.add_argument("--shots", type=Path, help="a folder for pictures of pages")
    args = parser.parse_args()
    found = faults(args.site, args.shots)
    print("\n".join(found) or "no faults")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
