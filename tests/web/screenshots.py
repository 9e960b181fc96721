"""Write pictures of every tab of a running page with real results, as the documentation has them.

rinalmo web --port 7860 &
python tests/web/screenshots.py http://127.0.0.1:7860 docs/images
"""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from test_browser import CHROMIUM

# tab, example to press, what is there in the end
TABS = {
    "Fill mask": ("HIV-1", "#logo img"),
    "Fold": ("tRNA-Phe", "#arcs img"),
    "Embed": ("Well-known RNAs", "#map img"),
    "Variants": ("tRNA-Phe", "#heat img"),
}
HEIGHTS = {"Fold": 1750, "Embed": 1500}  # without the list of files
WIDTH, SMOOTHING_MS = 1200, 1500


def main(address: str, folder: Path) -> None:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for tab, (example, shown) in TABS.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": 700})
            page.goto(address)
            page.get_by_role("tab", name=tab).click()
            page.get_by_role("tabpanel").locator("visible=true").get_by_role("button", name=example).first.click()
            page.locator(shown).wait_for(timeout=120_000)
            page.wait_for_timeout(SMOOTHING_MS)
            path = folder / f"web_{tab.lower().replace(' ', '_')}.png"
            full = page.evaluate("document.documentElement.scrollHeight")
            height = min(full, HEIGHTS.get(tab, full))
            page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
            Image.open(path).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE).save(
                path, optimize=True
            )  # a third of the size
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
            page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]))
