"""Check the built site, and a running web app, as visitors meet them; prints what is wrong and exits 1 if anything is.

    zensical build --strict --clean
    python tools/check_site.py                                           # links, anchors, alternative texts, weight
    python tools/check_site.py --browser                                 # and every page in Chromium
    python tools/check_site.py --browser --web http://127.0.0.1:7860     # and every tab of `rinalmo web`

In Chromium (`pip install --group browser`) each page is opened at the width of a desktop and of a phone, in light and
dark: no console error, nothing wider than the screen, and none of axe-core's violations of WCAG 2.1 AA, contrast of
text among them.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

SITE = Path(__file__).parents[1] / "site"
MAX_PAGE_BYTES = 1_500_000  # with its own scripts, styles and pictures: two seconds at 6 Mbit/s, a slow mobile network
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
AXE = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    "resultTypes": ["violations"],
    # Browsers make what scrolls reachable by keyboard; the theme wraps wide tables without `tabindex`.
    "rules": {"scrollable-region-focusable": {"enabled": False}},
}
TABS = {  # of the web app: the example to press, and what is there in the end
    "Fold": ("tRNA-Phe", "#arcs img"),
    "Fill mask": ("HIV-1", "#logo img"),
    "Embed": ("Well-known RNAs", "#map img"),
    "Variants": ("tRNA-Phe", "#heat img"),
}


class Page(HTMLParser):
    """What a page links to, loads and names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.without_alt: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img" and not values.get("alt", "").strip():
            self.without_alt.append(values.get("src", ""))
        source = values.get("href" if tag == "link" else "src", "")
        if source and (tag in ("script", "img") or (tag == "link" and values.get("rel") == "stylesheet")):
            self.loaded.append(source)


def check_files(site: Path = SITE) -> Iterator[str]:
    """Broken links and anchors, images without alternative text, what is loaded from elsewhere, and pages too heavy."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        weight = path.stat().st_size
        for link in page.links + page.loaded:
            address, anchor = urldefrag(link)
            if urlparse(link).scheme or link.startswith("//"):
                if link in page.loaded and not link.startswith("data:"):
                    yield f"{name}: loads {link}"
                continue
            base = site if address.startswith("/") else path.parent
            target = (base / unquote(urlparse(address).path).lstrip("/")).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{name}: {link} is not there"
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                yield f"{name}: {link} has no such anchor"
            elif link in page.loaded:
                weight += target.stat().st_size
        yield from (f"{name}: {source} has no alternative text" for source in page.without_alt)
        if weight > MAX_PAGE_BYTES:
            yield f"{name}: {weight / 1e6:.1f} MB with what it loads, more than {MAX_PAGE_BYTES / 1e6:.1f}"


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The site's address on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check_in_browser(site: Path = SITE, web: str | None = None, pages: list[str] | None = None) -> Iterator[str]:
    """The same pages, or only those named, and the tabs of the web app at `web`, in Chromium."""
    from playwright.sync_api import sync_playwright

    names = pages or [str(path.relative_to(site)) for path in sorted(site.rglob("*.html"))]
    with sync_playwright() as started, served(site) as address:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width, size in WIDTHS.items():
            for scheme in SCHEMES:
                viewport = {"width": size[0], "height": size[1]}
                context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
                for name in names:
                    yield from _look(context, f"{address}/{name}", f"{name}, {width}, {scheme}")
                if web:
                    yield from check_tabs(context, f"{web}/?__theme={scheme}", f"{width}, {scheme}")
                context.close()
        browser.close()


def _watch(page: Any, found: list[str]) -> None:
    page.on("console", lambda message: found.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(f"error: {error}"))


def _look(context: Any, address: str, where: str) -> Iterator[str]:
    page, found = context.new_page(), []
    _watch(page, found)
    page.goto(address, wait_until="load")
    yield from (f"{where}: {line}" for line in [*found, *_measure(page)])
    page.close()


def check_tabs(context: Any, address: str, where: str) -> Iterator[str]:
    """The tabs of a web app, each with the answer to an example."""
    page, found = context.new_page(), []
    _watch(page, found)
    page.goto(address)
    for tab, (example, shown) in TABS.items():
        page.get_by_role("tab", name=tab).click(timeout=60_000)
        panel = page.get_by_role("tabpanel").locator("visible=true").first
        panel.get_by_role("button", name=example).first.click()
        page.locator(shown).wait_for(timeout=120_000)
        yield from (f"web app, {tab}, {where}: {line}" for line in [*found, *_measure(page)])
        found.clear()
    page.close()


def _measure(page: Any) -> Iterator[str]:
    from axe_playwright_python.sync_playwright import Axe

    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        yield f"{wide} pixels wider than the screen"
    for violation in Axe().run(page, options=AXE).response["violations"]:
        nodes = [f"{' '.join(map(str, node['target']))} ({_reason(node)})" for node in violation["nodes"]]
        yield f"{violation['id']}: {'; '.join(nodes[:3])}{f' and {len(nodes) - 3} more' if len(nodes) > 3 else ''}"


def _reason(node: dict[str, Any]) -> str:
    return next((check["message"] for kind in ("any", "all", "none") for check in node[kind]), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=SITE)
    parser.add_argument("--browser", action="store_true", help="open the pages in Chromium, too")
    parser.add_argument("--web", help="address of a running `rinalmo web`")
    parser.add_argument("pages", nargs="*", help="open only these in Chromium, such as index.html")
    chosen = parser.parse_args()
    found = list(check_files(chosen.site))
    if chosen.browser:
        found += check_in_browser(chosen.site, chosen.web, chosen.pages)
    print(*(found or ["nothing is wrong"]), sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
