"""asv's published page in a headless browser, with or without a way to the CDNs that it loads its scripts from.

Where a CDN does not answer, the files come from the npm packages of the same projects. jQuery, Bootstrap, md5 and
orderBars are then the very files: their hashes are those that asv's page demands. npm has Flot 0.8.3 as sources only,
not minified, and of stupidtable only the release 1.1.3 where the page asks for 1.0.1: the page is given those two
without the demand for a hash.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NPM = {
    "jquery-3.3.1.min.js": ("jquery@3.3.1", "dist/jquery.min.js"),
    "jquery.flot.min.js": ("flot@0.8.3", "jquery.flot.js"),
    "jquery.flot.time.min.js": ("flot@0.8.3", "jquery.flot.time.js"),
    "jquery.flot.selection.min.js": ("flot@0.8.3", "jquery.flot.selection.js"),
    "jquery.flot.categories.min.js": ("flot@0.8.3", "jquery.flot.categories.js"),
    "jquery.flot.orderBars.js": ("flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js"),
    "stupidtable.min.js": ("stupid-table-plugin@1.1.3", "stupidtable.js"),
    "md5.min.js": ("blueimp-md5@2.19.0", "js/md5.min.js"),
    "bootstrap.min.js": ("bootstrap@3.1.1", "dist/js/bootstrap.min.js"),
    "bootstrap.min.css": ("bootstrap@3.1.1", "dist/css/bootstrap.min.css"),
}
_EXTERNAL = re.compile(r'(?:src|href)="(https://[^"]+)"( integrity="([^"]+)")')


@contextlib.contextmanager
def open_browser(html: Path, cache: Path) -> Iterator[tuple[Any, str, list[str]]]:
    """A page of a headless Chromium, the address at which `html` is served, and the list of errors seen so far.

    Skips the test where there is no browser or no way to the scripts; fails it where GRADMARK_REQUIRE_BROWSER=1.
    """
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        _give_up("no chromium, chromium-browser or google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    resources = _external_resources(html / "index.html", cache)
    errors: list[str] = []
    with _server(html) as address, playwright.sync_playwright() as driver:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=executable, args=arguments)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.on("pageerror", lambda error: errors.append(f"uncaught: {error}"))
            page.on("console", lambda message: errors.extend(_error(message, address)))
            page.route("**/*", functools.partial(_answer, html=html, address=address, resources=resources))
            yield page, address, errors
        finally:
            browser.close()


def _error(message: Any, address: str) -> list[str]:
    # The page asks for the graph of every benchmark; those that were not run have none.
    unmeasured = message.location["url"].startswith(f"{address}graphs/") and "404" in message.text
    return [message.text] if message.type == "error" and not unmeasured else []


def _answer(route: Any, *, html: Path, address: str, resources: dict[str, tuple[bytes, bool]]) -> None:
    url = route.request.url
    if url in (address, f"{address}index.html"):
        route.fulfill(body=_without_unmet_demands(html, resources), content_type="text/html")
    elif url.startswith(address):
        route.continue_()
    elif url in resources:
        kind = "text/css" if url.endswith(".css") else "text/javascript"
        route.fulfill(body=resources[url][0], content_type=kind, headers={"Access-Control-Allow-Origin": "*"})
    else:
        route.abort()


def _without_unmet_demands(html: Path, resources: dict[str, tuple[bytes, bool]]) -> str:
    def keep_or_drop(match: re.Match[str]) -> str:
        return match[0] if resources[match[1]][1] else match[0].replace(match[2], "")

    return _EXTERNAL.sub(keep_or_drop, (html / "index.html").read_text("utf-8"))


def _external_resources(index: Path, cache: Path) -> dict[str, tuple[bytes, bool]]:
    """Content of every external file of the page, and whether it has the hash that the page demands."""
    found = {}
    for url, _, integrity in _EXTERNAL.findall(index.read_text("utf-8")):
        content = _from_network(url, integrity, cache) or _from_npm(url, cache)
        found[url] = (content, _has_hash(content, integrity))
    assert found, "asv's page has no external scripts any more: this helper can go"
    return found


def _has_hash(content: bytes, integrity: str) -> bool:
    algorithm, expected = integrity.split("-", 1)
    return base64.b64encode(hashlib.new(algorithm, content).digest()).decode() == expected


_unreachable: set[str] = set()


def _from_network(url: str, integrity: str, cache: Path) -> bytes | None:
    kept = cache / hashlib.sha256(integrity.encode()).hexdigest()
    if kept.exists():
        return kept.read_bytes()
    host = url.split("/")[2]
    if host in _unreachable:
        return None
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError):
        _unreachable.add(host)
        return None
    if not _has_hash(content, integrity):
        return None
    cache.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(content)
    return content


def _from_npm(url: str, cache: Path) -> bytes:
    name = url.rsplit("/", 1)[1]
    if name not in _NPM:
        _give_up(f"{url} cannot be had, and no npm package is known to hold it")
    package, path = _NPM[name]
    folder = cache / package
    if not folder.exists():
        _download(package, folder)
    return (folder / "package" / path).read_bytes()


def _download(package: str, folder: Path) -> None:
    if shutil.which("npm") is None:
        _give_up("the CDNs of asv's page do not answer, and there is no npm to take the scripts from")
    unpacked = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    done = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=unpacked, capture_output=True, text=True, timeout=120
    )
    archives = list(unpacked.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        _give_up(f"neither the CDNs of asv's page nor npm answer: {done.stderr.strip()[-300:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(unpacked, filter="data")
    unpacked.rename(folder)


def _give_up(reason: str) -> None:
    if os.environ.get("GRADMARK_REQUIRE_BROWSER") == "1":
        pytest.fail(f"GRADMARK_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
