"""The web app in Chromium, as a visitor uses it; skipped without Playwright (group `browser`) or a Chromium."""

import io
import re
import shutil
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest

import rinalmo

playwright = pytest.importorskip("playwright.sync_api", reason="no browser: Playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no browser: there is no Chromium on the PATH", allow_module_level=True)

pytestmark = pytest.mark.slow
TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
# A name that would run as HTML, as an attribute, and as SVG.
EVIL = "x\"'><img/src=x/onerror=alert(1)><script>alert(2)</script><svg/onload=alert(3)>$x_1"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # Chromium's own sandbox cannot start as root, as tests in containers do.
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def page(browser, served):
    """A visitor's page; in the end nothing may have been asked of another machine, or have gone wrong in silence."""
    opened = browser.new_page(viewport={"width": 1000, "height": 760})
    opened.set_default_timeout(60_000)
    hosts, wrong = set(), []
    opened.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.goto(served.address)
    opened.get_by_role("tab", name="Fill mask").wait_for()
    yield opened
    opened.close()
    assert hosts <= {"127.0.0.1", None}  # None: data and blobs
    assert wrong == []


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").locator("visible=true").first


def picture(panel, name):
    """What a picture is made of, once it is there and the browser could draw it."""
    shown = panel.locator(f"#{name} img")
    shown.wait_for()
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    return b64decode(shown.get_attribute("src").split(",", 1)[1])


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def downloads(page, panel, name):
    """The files of a tab by name, each downloaded."""
    found = {}
    for link in panel.locator(f"#{name} a[download]").all():
        with page.expect_download() as started:
            link.click()
        found[started.value.suggested_filename] = started.value.path().read_bytes()
    return found


def test_fill_mask(page):
    panel = open_tab(page, "Fill mask")
    panel.get_by_role("button", name="HIV-1").click()
    (expected,) = rinalmo.fill_mask("GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU")[0]
    shown = texts(picture(panel, "bars"))
    assert shown[:3] == ["position 5", expected[0].token_str, f"{expected[0].score:.4f}"]
    assert b"logo-G" in picture(panel, "logo")
    panel.get_by_label("RNA with <mask>").fill("AC<mask>GU<mask>")
    panel.get_by_role("button", name="Predict").click()
    panel.get_by_alt_text("Candidates at 2 masks of RNA").wait_for()
    panel.get_by_alt_text("Logo of RNA").wait_for()
    assert sorted(downloads(page, panel, "mask-files")) == ["candidates.csv", "logo.png", "logo.svg"]


def test_the_first_screen_has_a_structure(page):
    panel = page.get_by_role("tabpanel").locator("visible=true").first
    (expected,) = rinalmo.fold(TRNA)
    playwright.expect(panel.locator("#dot-bracket textarea")).to_have_value(
        f">tRNA-Phe\n{TRNA}\n{expected.dot_bracket} ({expected.energy:.2f})\n"
    )
    assert f"{expected.energy:.1f} kcal/mol" in panel.locator("#summary").inner_text()
    assert panel.locator("#drawing .nucleotide").count() == 76


def test_fold(page):
    panel = open_tab(page, "Fold")
    panel.get_by_label("RNA", exact=True).fill("")
    panel.get_by_role("button", name="tRNA-Phe").click()
    (expected,) = rinalmo.fold(TRNA)
    panel.locator("#fold-files a[download]").first.wait_for()
    dbn = f">tRNA-Phe\n{TRNA}\n{expected.dot_bracket} ({expected.energy:.2f})\n"
    assert panel.locator("#dot-bracket textarea").input_value() == dbn
    for name in ("pair-map", "arcs"):
        picture(panel, name)
    hovered = panel.locator("#drawing title").all_text_contents()
    assert re.fullmatch(r"G1, pairs with C72; probability (0\.\d\d|1\.00)", hovered[0])
    assert re.fullmatch(r"A35, unpaired; most probable pair 0\.\d\d", hovered[34])
    files = downloads(page, panel, "fold-files")
    drawn = ["arcs.png", "arcs.svg", "drawing.png", "drawing.svg", "map.png", "map.svg"]
    assert sorted(files) == [*drawn, "structure.csv", "structure.ct", "structure.dbn"]
    assert files["structure.dbn"].decode() == dbn
    assert files["structure.ct"].split()[0] == b"76"
    assert files["map.png"].startswith(b"\x89PNG")


def test_figures_are_enlarged_and_moved(page):
    panel = open_tab(page, "Fold")
    figure = panel.locator("#drawing .picture")
    canvas = figure.locator(".canvas")
    figure.get_by_label("Zoom in").click()
    assert canvas.evaluate("canvas => canvas.dataset.scale") == "1.4"
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, box["y"] + 90)
    page.mouse.up()
    assert canvas.evaluate("canvas => [canvas.dataset.x, canvas.dataset.y]") == ["30", "-10"]
    figure.get_by_label("Whole figure").click()
    assert canvas.evaluate("canvas => canvas.style.transform") == "translate(0px, 0px) scale(1)"


def test_a_dropped_file_is_read_into_the_box(page, tmp_path):
    (tmp_path / "mine.fa").write_text(">mine\nGGGAAACCC\n")
    panel = open_tab(page, "Fold")
    panel.locator(".drop input[type=file]").set_input_files(tmp_path / "mine.fa")
    playwright.expect(panel.get_by_label("RNA", exact=True)).to_have_value(">mine\nGGGAAACCC\n")


def test_embed_an_uploaded_file(page, tmp_path):
    (tmp_path / "given.fa").write_text(">a kind=x\nACGUGGG\n>b kind=x\nGGGAAACCC\n>c kind=y\nAUAUAUAU\n")
    panel = open_tab(page, "Embed")
    panel.locator("input[type=file]").set_input_files(tmp_path / "given.fa")
    panel.get_by_text("given.fa").wait_for()
    panel.get_by_role("button", name="Embed").click()
    assert {"kind", "x (2)", "y (1)"} <= set(texts(picture(panel, "map")))
    assert panel.locator("#colour input").input_value() == "kind"
    cells = [cell.inner_text().strip() for cell in panel.locator("#table").get_by_role("gridcell").all()]
    rows = np.reshape(cells, (3, 5)).tolist()
    assert [row[:2] for row in rows] == [["a", "7"], ["b", "9"], ["c", "8"]]
    assert {row[2] for row in rows} <= {"a", "b", "c"}
    assert [row[4] for row in rows] == ["kind=x", "kind=x", "kind=y"]
    files = downloads(page, panel, "embed-files")
    assert sorted(files) == ["embeddings.csv", "embeddings.npz", "embeddings.parquet", "map.png", "map.svg"]
    with np.load(io.BytesIO(files["embeddings.npz"])) as found:
        expected = rinalmo.embed(["ACGUGGG", "GGGAAACCC", "AUAUAUAU"])
        assert found["embeddings"] == pytest.approx(expected, abs=1e-5)


def test_embed_the_example_and_colour_it(page):
    panel = open_tab(page, "Embed")
    panel.get_by_role("button", name="Well-known RNAs").click()
    panel.locator("#table").get_by_role("gridcell", name="tRNA-Phe").first.wait_for()
    assert "tRNA (3)" in texts(picture(panel, "map"))
    first = panel.locator("#map img").get_attribute("src")
    panel.locator("#colour input").click()
    page.get_by_role("option", name="description").click()
    playwright.expect(panel.locator("#map img")).not_to_have_attribute("src", first, timeout=60_000)
    assert "Homo sapiens (7)" in texts(picture(panel, "map"))


def test_variants(page):
    panel = open_tab(page, "Variants")
    panel.get_by_label("RNA", exact=True).fill(">mine\nGCGGNUUUAGC")
    panel.get_by_role("button", name="Score").click()
    assert b"mine" in picture(panel, "heat")
    files = downloads(page, panel, "variant-files")
    rows = files["variants.csv"].decode().splitlines()
    assert (rows[0], rows[1].split(",")[:4], len(rows)) == (
        "mutant,position,wild_type,letter,score",
        ["G1A", "1", "G", "A"],
        1 + 10 * 3,
    )


def test_errors_are_one_line_in_the_page(page):
    for tab, button, text, message in (
        ("Fill mask", "Predict", "<script>alert(1)</script>", "position 1: '<' is not a nucleotide code"),
        ("Fold", "Fold", "MKTEFLPQ", "looks like a protein"),
        ("Embed", "Embed", "", "there is no sequence yet; paste an RNA"),
        ("Variants", "Score", "ACGU" * 25_000, "has 100,000 nt, but the limit is 200"),
    ):
        panel = open_tab(page, tab)
        panel.locator("textarea").first.fill(text)
        panel.get_by_role("button", name=button, exact=True).click()
        panel.locator(".message .problem").filter(has_text=message).wait_for()
        playwright.expect(panel.locator(".picture:visible, [download]:visible")).to_have_count(0)


def test_names_are_shown_and_do_not_run(page):
    for tab, button, shown in (
        ("Fill mask", "Predict", "#logo img"),
        ("Fold", "Fold", "#fold-files a[download]"),
        ("Embed", "Embed", "#table"),
        ("Variants", "Score", "#heat img"),
    ):
        panel = open_tab(page, tab)
        sequence = "AC<mask>GU" if tab == "Fill mask" else "GGGAAACCC"
        panel.locator("textarea").first.fill(f">{EVIL} {EVIL}\n{sequence}")
        panel.get_by_role("button", name=button, exact=True).click()
        panel.locator(shown).first.wait_for()
        if tab == "Embed":
            panel.locator("#table").get_by_role("gridcell").filter(has_text=EVIL).first.wait_for()
    assert page.locator("[onerror], [onload]").count() == 0
    assert page.locator("body script", has_text="alert").count() == 0


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_tabs_read_well(browser, served, monkeypatch, scheme, width):
    """Contrast and other points of WCAG AA by axe-core, console errors, and nothing wider than the screen."""
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    import check_site

    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert list(check_site.check_tabs(context, f"{served.address}/?__theme={scheme}", scheme)) == []
    context.close()


def test_two_visitors_have_their_own_answers(browser, served):
    pages = [browser.new_page() for _ in range(2)]
    for number, visitor in enumerate(pages):
        visitor.goto(served.address)
        panel = open_tab(visitor, "Fill mask")
        panel.get_by_label("RNA with <mask>").fill(f">visitor{number}\nAC<mask>GU")
    for visitor in pages:
        visitor.get_by_role("button", name="Predict").click()
    for number, visitor in enumerate(pages):
        visitor.get_by_alt_text(f"Logo of visitor{number}").wait_for()
        visitor.close()
