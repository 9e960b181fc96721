"""Run the commands of a documentation page and compare their output with the page.

    python tools/run_page.py docs/quickstart.md             # exit code 1 and a diff, if they differ
    python tools/run_page.py --write docs/quickstart.md     # update the page with the new output and figures

All commands of a page run in one new folder. Two kinds of fenced blocks matter:

    ```csv title="measured.csv"      is written to that file
    ```console                       `$ command` is run (`\\` continues the line), the rest is its output

On a page, `…` matches anything within a line, and any number of lines if it is alone. Words, whole numbers and signs
must be equal. Numbers with a decimal point or an exponent differ between processors, so they are compared as numbers: a
printed number p matches a shown number s if |p - s| ≤ 0.01 + 0.01 |s|. The number of digits and of adjacent spaces does
not matter; a bar of █ may be one longer or shorter. Everything runs in fp32.
`<!-- tolerance: 0.2 -->` before a block replaces the 0.01. After `<!-- tolerance: inf -->` only the number of lines is
compared, for example for predictions of a model that the page itself trained. The line that names the device is
ignored, because it differs between machines. `rinalmo` runs in forks of this process, which has imported torch:
importing takes longer than most commands.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import rinalmo

FENCE = re.compile(
    r"^(?:<!-- tolerance: (?P<tolerance>[\d.]+|inf) -->\n+)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
NUMBER = r"(?<![\w.])-?\d+(?:\.\d*)?e[+-]?\d+(?!\w)|-?\d+\.\d+"
VALUE = re.compile(rf"{NUMBER}|█+")
DEVICE = re.compile(r"^(?:note: )?device: .*\n", re.MULTILINE)
EXAMPLES = Path(rinalmo.__file__).parent / "assets" / "examples"
TOLERANCE = 0.01


@dataclass
class Step:
    """One command of a page, the output on the page, and its actual output."""

    command: str
    shown: str
    tolerance: float
    printed: str = ""

    @property
    def agrees(self) -> bool:
        return matches(self.shown, self.printed, self.tolerance)

    def difference(self) -> str:
        shown, printed = self.shown.splitlines(), self.printed.splitlines()
        lines = difflib.unified_diff(shown, printed, "the page", "printed now", lineterm="")
        return "\n".join([f"$ {self.command}", *lines])


def run(page: Path, *, write: bool = False) -> list[Step]:
    """The steps of a page, run in a new folder that holds the package's example sequences."""
    text, steps = page.read_text(encoding="utf-8"), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in EXAMPLES.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        for block in FENCE.finditer(text):
            if block["title"]:
                (folder / block["title"]).write_text(block["body"])
            elif block["language"] == "console":
                found = list(_steps(block["body"], float(block["tolerance"] or TOLERANCE)))
                for step in found:
                    step.printed = _printed(step.command, folder)
                steps += found
                if write:
                    text = text.replace(block["body"], "".join(map(_shown, found)))
        if write:
            page.write_text(text, encoding="utf-8")
            for picture in PICTURE.findall(text):
                if (made := folder / Path(picture).name).exists():
                    (page.parent / picture).write_bytes(made.read_bytes())
    return steps


def matches(shown: str, printed: str, tolerance: float) -> bool:
    """Whether the texts are equal, except for numbers within the tolerance and whatever `…` matches."""
    if tolerance == float("inf"):
        return len(shown.splitlines()) == len(printed.splitlines())
    values = _values(shown, printed)
    if values is None:
        return False
    return all(_agree(wanted, got, tolerance) for wanted, got in zip(VALUE.findall(shown), values, strict=True))


def _agree(shown: str, printed: str, tolerance: float) -> bool:
    """Whether a printed number or bar is close enough to the shown one."""
    if shown.startswith("█"):
        return abs(len(shown) - len(printed)) <= 1
    wanted, got = float(shown), float(printed)
    return abs(wanted - got) <= tolerance * (1 + abs(wanted))


def _values(shown: str, printed: str) -> tuple[str, ...] | None:
    """The printed value of each shown number and bar; None if the text between them differs."""
    pattern = "".join(_pattern(line) for line in shown.splitlines())
    found = re.fullmatch(pattern, "".join(f"{line}\n" for line in printed.splitlines()))
    return None if found is None else found.groups()


def _pattern(line: str) -> str:
    if line.strip() == "…":
        return r"(?:.*\n)*?"
    parts = re.split(rf"( *(?:{VALUE.pattern}) *|…)", line.rstrip())
    return "".join(map(_part, parts)) + r" *\n"


def _part(text: str) -> str:
    if text == "…":
        return ".*?"
    if text.strip(" ").startswith("█"):
        return " *(█*) *"
    # Adjacent spaces belong to a number: the width of a column depends on its digits.
    return rf" *({NUMBER}) *" if VALUE.fullmatch(text.strip(" ")) else re.escape(text)


def _steps(body: str, tolerance: float) -> Iterator[Step]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        end = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
        yield Step("\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :]), tolerance)


def _shown(step: Step) -> str:
    """The step for the page: the shown text with the new numbers, or the whole output if the text differs."""
    values = _values(step.shown, step.printed)
    if values is None:
        output = "\n".join(line.rstrip() for line in step.printed.splitlines())
    else:
        fresh = iter(values)
        output = VALUE.sub(lambda _: next(fresh), step.shown)
    return f"$ {step.command}\n" + (f"{output}\n" if output else "")


def _printed(command: str, folder: Path) -> str:
    output = folder / ".printed"
    with output.open("wb") as file:
        if re.match(r"rinalmo [^|><$;&*]*$", command.replace("\\\n", " ").replace("<mask>", "")):
            _load()
            words = shlex.split(command.replace("\\\n", " "))
            if not (child := os.fork()):
                _become_rinalmo(words, folder, file.fileno())
            os.waitpid(child, 0)
        else:
            subprocess.run(
                ["bash", "-c", command], cwd=folder, env=_environment(), stdout=file, stderr=file, check=False
            )
    printed = DEVICE.sub("", output.read_text()).strip("\n")
    output.unlink()
    return printed


def _load() -> None:
    import rinalmo.engine.engine
    import rinalmo.training.trainer  # noqa: F401


def _become_rinalmo(words: list[str], folder: Path, output: int) -> None:
    import torch

    from rinalmo import cli
    from rinalmo.cli import options

    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        os.environ.update(_environment())
        sys.argv = words
        torch.set_num_threads(1)
        options._SECONDS = float("inf")  # lines printed every ten seconds would depend on the clock
        cli.main()
    except SystemExit:
        pass  # the error message has been printed
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    fixed = {"COLUMNS": "80", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "RINALMO_CPU": "fp32"}
    return {**os.environ, **fixed, "PATH": path}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--write", action="store_true", help="update the pages with the new output")
    arguments = parser.parse_args()
    wrong = [step for page in arguments.pages for step in run(page, write=arguments.write) if not step.agrees]
    print("\n\n".join(step.difference() for step in wrong))
    sys.exit(bool(wrong) and not arguments.write)


if __name__ == "__main__":
    main()
