"""The documentation: its commands run and print what the pages show, nothing is missing, the site builds strictly."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

import rinalmo
from rinalmo.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOOLS = ROOT / "tools"


def with_commands():
    return [page for page in sorted(DOCS.rglob("*.md")) if "```console\n$ " in page.read_text()]


def trains(page):
    return re.search(r"^\$ rinalmo (finetune|pretrain) (?!--help)", page.read_text(), re.MULTILINE) is not None


def run_pages(*arguments):
    command = [sys.executable, TOOLS / "run_page.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["reading", "training"])
def test_commands_print_what_the_page_shows(training):
    pages = [page for page in with_commands() if trains(page) is training]
    assert pages
    done = run_pages(*pages)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_quickstart_prints_what_it_shows():
    done = run_pages(DOCS / "quickstart.md")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_prints_what_it_shows():
    done = run_pages(ROOT / "README.md")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_of_recipe_keys_describes_every_key(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import recipe_keys

    page = (DOCS / "recipes.md").read_text()
    assert page == recipe_keys.page(), "run tools/recipe_keys.py --write"
    assert re.findall(r"^\| `.*\|  \|$", page, re.MULTILINE) == [], "describe the key in the docstring of its class"


# What quotes results: overviews quote the newest, of benchmarks/results/summary.csv; other pages any that was recorded.
OVERVIEWS = ["README.md", "docs/index.md", "docs/results/index.md"]
MEASURED = re.compile(
    r"(?<![\w.,])(?:0\.\d{3,}|\d[\d,]*(?:\.\d+)?(?=(?:(?:;| and) \d[\d,.]*)* (?:×|times|%|tokens/s|sequences/s)))"
    r"(?![\d.]*\d)"
)
SCORES = re.compile("F1|accuracy|R²|AUC|Spearman|correlation|share of")


def prose(page):
    """A page without its code, on which the tests of commands and of Python examples look."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def summary_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import benchmark_charts

    return benchmark_charts.rows()


def test_pages_quote_the_newest_results(monkeypatch):
    for row in summary_rows(monkeypatch):
        record = row["record"].removeprefix("../")
        assert (DOCS if record != row["record"] else ROOT / "benchmarks" / "results").joinpath(f"{record}.md").exists()
        value = f"{float(row['value']):,.{row['digits']}f}"
        for page in row["pages"].split():
            assert value in (ROOT / page).read_text(), f"{page}: {row['series']} on {row['group']} is {value} now"


@pytest.mark.parametrize("page", OVERVIEWS)
def test_what_an_overview_quotes_is_in_the_file_of_results(monkeypatch, page):
    values = [row["value"] for row in summary_rows(monkeypatch) if page in row["pages"].split()]
    quoted = MEASURED.findall(" ".join(prose(ROOT / page).split()))
    assert [number for number in quoted if not is_rounded_from(number, values)] == []
    assert quoted or page == "docs/index.md"


def test_scores_on_pages_are_in_a_record_of_a_measurement():
    """So no page has a score that nobody measured, nor one that was measured anew and is in no record any more."""
    sources = [*(ROOT / "benchmarks" / "results").iterdir(), *(ROOT / "src" / "rinalmo" / "assets").glob("*/README.md")]
    recorded = {number for path in sources for number in re.findall(r"(?<![\d.])\d+\.\d+", path.read_text())}
    measured_there = ("log", "variants", "benchmarks_of_others", "scaling", "known_rnas")
    pages = [page for page in DOCS.glob("*.md") if page.stem not in measured_there]
    for page in [*pages, *DOCS.glob("tutorials/*.md"), DOCS / "results" / "index.md"]:
        for block in filter(SCORES.search, prose(page).split("\n\n")):
            for number in re.findall(r"(?<![\d.,])(?:0\.\d{3,}|\d+\.\d+(?= %))(?!\d)", block):
                assert is_rounded_from(number, recorded), f"{page.name} has {number}, and no record has it: {block}"


def is_rounded_from(number, values):
    digits = len(number.partition(".")[2])
    exact = [value for value in values if len(value.partition(".")[2]) >= digits]
    return any(f"{float(value):,.{digits}f}" == number for value in exact)


@pytest.mark.parametrize("model", ["nano", "nano-fold"])
def test_the_page_of_a_bundled_model_is_its_card_without_metadata(model):
    path, line = re.fullmatch(r'--8<-- "(.*):(\d+):"\n', (DOCS / f"{model}.md").read_text()).groups()
    assert (ROOT / path).read_text().splitlines()[int(line) - 1] == f"# {model}"


@pytest.mark.slow
def test_well_known_rnas_are_folded_as_their_page_says():
    pytest.importorskip("RNA")
    command = [sys.executable, TOOLS / "known_rnas.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_that_says_something_else_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        '```text title="a.txt"\nfirst\nsecond\n```\n\n```console\n$ cat a.txt\nfirst\nthird\n$ echo 0.5\n0.504\n```\n'
    )
    done = run_pages(page)
    assert done.returncode == 1
    assert "-third\n+second" in done.stdout
    assert "0.5" not in done.stdout
    assert run_pages("--write", page).returncode == 0
    assert "$ cat a.txt\nfirst\nsecond\n$ echo 0.5\n0.5\n" in page.read_text()


@pytest.mark.parametrize(
    ("shown", "printed", "tolerance", "same"),
    [
        ("a 0.50 b", "a 0.505 b", 0.01, True),
        ("a 0.50 b", "a 0.60 b", 0.01, False),
        ("a 0.50 b", "a 0.60 b", 0.1, True),
        ("3 sequences", "4 sequences", 0.1, False),
        ("[-0.61237836  0.11136806]", "[-0.6123786   0.11136794]", 0.01, True),
        ("[-0.61237836  0.11136806]", "[-0.6123786  -0.11136794]", 0.01, False),
        ("loss 1.5e-05 now", "loss 2e-05 now", 0.01, True),
        ("loss 1.5e-05 now", "loss 2 now", 0.01, False),
        ("G  0.27  ███", "G  0.28  ████", 0.01, True),
        ("G  0.27  ███", "G  0.28  █████", 0.01, False),
        ("sha256 12e4", "sha256 12e4ab", 0.01, False),
        ("reading: … s", "reading: 12 s", 0.01, True),
        ("reading: … s", "writing: 12 s", 0.01, False),
        ("first\n…\nlast", "first\nx\ny\nlast", 0.01, True),
        ("first\n…\nlast", "first\nx\ny", 0.01, False),
        ("one\ntwo", "three\nfour", float("inf"), True),
        ("one\ntwo", "three", float("inf"), False),
    ],
)
def test_what_counts_as_the_same(monkeypatch, shown, printed, tolerance, same):
    monkeypatch.syspath_prepend(str(TOOLS))
    import run_page

    assert run_page.matches(shown, printed, tolerance) is same


def all_commands(command=cli, path=()):
    """(words, command) of every command and of its own."""
    context = click.Context(command)
    names = command.list_commands(context) if isinstance(command, click.Group) else []
    for name in names:
        found = command.get_command(context, name)
        yield (*path, name), found
        yield from all_commands(found, (*path, name))


@pytest.mark.parametrize(
    ("words", "command"), list(all_commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_is_documented(words, command):
    page = DOCS / "commands" / f"{words[0]}.md"
    assert page.exists(), f"write docs/commands/{words[0]}.md and name it in mkdocs.yml"
    assert f"$ rinalmo {' '.join(words)} --help\n" in page.read_text()
    assert f"({words[0]}.md)" in (DOCS / "commands" / "index.md").read_text()
    assert f"commands/{words[0]}.md" in nav()


@pytest.mark.parametrize(
    ("words", "command"), list(all_commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_help_says_all_and_ends_with_an_example(words, command):
    text = command.get_help(click.Context(command, info_name=f"rinalmo {' '.join(words)}"))
    *_, examples = text.split("Examples:\n")
    assert "Options:" in text.removesuffix(examples)
    lines = examples.rstrip().splitlines()
    assert any(line.strip().startswith(f"rinalmo {' '.join(words)}") for line in lines)
    assert all(line.startswith("    ") for line in lines), "something stands below the examples"
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


def nav():
    def files(part):
        if isinstance(part, str):
            yield part
        for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from files(each)

    return list(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_every_page_is_in_the_navigation():
    assert sorted(nav()) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    results = {page.name for page in (ROOT / "benchmarks" / "results").glob("*.md")}
    assert results == {page.name for page in (DOCS / "results").glob("2*.md")}, "docs/results/NAME.md includes each"


@pytest.fixture(scope="module")
def site():
    """The folder of the site, built strictly."""
    command = [Path(sys.executable).parent / "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "site"


def test_the_site_has_no_broken_link_nor_image_without_text_and_fetches_nothing(site, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_site

    assert len(list(site.rglob("*.html"))) > len(nav())
    assert list(check_site.check_files(site)) == []


def test_what_is_wrong_on_a_page_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_site

    (tmp_path / "b.html").write_text('<h2 id="there">b</h2>')
    (tmp_path / "heavy.svg").write_bytes(b" " * (check_site.MAX_PAGE_BYTES + 1))
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">fine</a> <a href="https://example.org/">fine</a> <a href="b.html#gone">x</a>'
        '<a href="c.html">x</a> <img src="heavy.svg"> <script src="https://example.org/x.js"></script>'
    )
    assert [line.removeprefix("a.html: ") for line in check_site.check_files(tmp_path)] == [
        "b.html#gone has no such anchor",
        "c.html is not there",
        "loads https://example.org/x.js",
        "heavy.svg has no alternative text",
        "1.5 MB with what it loads, more than 1.5",
    ]


@pytest.mark.slow
def test_pages_read_well_in_a_browser(site, monkeypatch):
    """Contrast and other points of WCAG AA by axe-core, console errors and width; light and dark, desktop and phone."""
    pytest.importorskip("playwright.sync_api", reason="no browser: Playwright is not installed")
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_site

    if check_site.CHROMIUM is None:
        pytest.skip("no browser: there is no Chromium on the PATH")
    assert list(check_site.check_in_browser(site)) == []


def test_every_public_name_is_on_the_api_page():
    listed = set(re.findall(r"^::: rinalmo\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert listed >= set(rinalmo.__all__) - {"__version__"}


def test_commands_of_the_overview_are_those_of_the_package():
    assert {words[0] for words, _ in all_commands()} == set(COMMANDS)
