"""Shared code of the benchmark scripts: competing implementations, their environment, report headers, tables.

A *side* is one implementation in a comparison, in its own process with a set number of threads. It prepares, runs once
untimed, then runs on request. The sides of a comparison take turns, so that a busy machine slows all of them, and
medians are compared. Memory is measured in a separate run, because releasing free memory first would slow a timed one.

Note that a script runs at both ends: it starts itself with a side's Python and `--serve NAME ARGUMENTS`. The other
packages' Python environments do not have `rinalmo`, so the top level imports only the standard library. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from unittest.mock import MagicMock

PEERS = ("multimolecule==0.2.2", "torch==2.13.0")
TRAINER_NEEDS = ("accelerate==1.15.0",)
OFFICIAL_NEEDS = ("einops", "ml_collections", "scikit-learn")
Run = Callable[[], Any]  # computes once; the results of sides can be compared


# The parent process.


class Side:
    """One implementation, in its own process or, with torchrun, in several with `threads` each.

    `failure` is the reason if it could not start; `value` is the last result it returned with the time.
    """

    def __init__(
        self, serve: str, threads: int, python: str = sys.executable, processes: int = 1, **arguments: Any
    ) -> None:
        self.seconds: list[float] = []
        self.value: Any = None
        self.failure = ""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115, open as long as the process is
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launched = [python, "-W", "ignore", *(torchrun if processes > 1 else ())]
        command = [*launched, sys.argv[0], "--serve", serve, json.dumps(arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        self._process = subprocess.Popen(command, env=environment(threads), **pipes)
        self._hear()

    def run(self) -> None:
        """Run once and keep the seconds."""
        if answer := self.ask("run"):
            self.seconds.append(answer["seconds"])

    def memory(self) -> int:
        """The peak growth of the process during one more run, in bytes."""
        return self.ask("memory").get("bytes", 0)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    @property
    def median(self) -> float:
        """Median seconds; infinite for a side that failed."""
        return statistics.median(self.seconds) if self.seconds else float("inf")

    def ask(self, what: str) -> dict[str, Any]:
        """Send one line and return the answer, or nothing if the side has failed."""
        if self.failure or not self._process.stdin:
            return {}
        with suppress(BrokenPipeError):  # it has died; the reason is determined below
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            self.value = answer.get("value", self.value)
            return answer
        code = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        self.failure = said[-1] if said and code > 0 else f"ended by signal {-code}"
        return {}


def take_turns(sides: Iterable[Side], repeats: int) -> None:
    """Run all sides in turn, `repeats` times."""
    chosen = list(sides)
    for _ in range(repeats):
        for side in chosen:
            side.run()


class Spent(NamedTuple):
    """Resources that a whole process used. `anonymous` excludes mapped file pages, which can be dropped.

    `cpu` is the CPU time of the process and its children, in seconds.
    """

    seconds: float
    cpu: float
    peak: int
    anonymous: int
    output: str


def spend(command: Sequence[str], threads: int) -> Spent:
    """Run a command and measure it; its memory is sampled every few milliseconds."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, env=environment(threads), stdout=subprocess.PIPE, text=True)
    peaks = {"VmHWM": 0, "RssAnon": 0}

    def watch() -> None:
        while process.poll() is None:
            for key in peaks:
                peaks[key] = max(peaks[key], _status(key, process.pid))
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.communicate()[0]
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        sys.exit(f"failed ({process.returncode}): {' '.join(command)}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(seconds, cpu, peaks["VmHWM"], peaks["RssAnon"], output)


def once(serve: str, threads: int, python: str = sys.executable, **arguments: Any) -> Spent:
    """Measure a process in which one of the script's sides prepares and runs once."""
    return spend([python, "-W", "ignore", sys.argv[0], "--once", serve, json.dumps(arguments)], threads)


def environment(threads: int) -> dict[str, str]:
    """This process's environment with a set number of threads and no network."""
    count = str(threads)
    return os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}


# The side's process.


def serve_or(main: Callable[[], None], serves: dict[str, Callable[..., Any]]) -> None:
    """Call `main` or, in a process that a `Side` or `once` started, one of `serves`.

    Those return a `Run`, or nothing if they have answered all requests themselves.
    """
    if sys.argv[1:2] == ["--once"]:
        serves[sys.argv[2]](**json.loads(sys.argv[3]))()
    elif sys.argv[1:2] == ["--serve"]:
        if run := serves[sys.argv[2]](**json.loads(sys.argv[3])):
            _serve(run)
    else:
        main()


def answers() -> TextIO:
    """The stream for a side's answers, one JSON object per line. What libraries print is redirected."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lines


def _serve(run: Run) -> None:
    lines = answers()
    print(json.dumps({"value": run()}, default=lambda array: array.tolist()), file=lines)
    for line in sys.stdin:
        print(json.dumps(_timed(run) if line.strip() == "run" else _grown(run)), file=lines)


def _timed(run: Run) -> dict[str, float]:
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start}


def _grown(run: Run) -> dict[str, int]:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the high-water mark
    before = _status("VmRSS")
    run()
    return {"bytes": _status("VmHWM") - before}


def _status(key: str, process: int | str = "self") -> int:
    """A line of /proc/PROCESS/status in bytes; 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":")), 0)


def use_official(checkout: str) -> None:
    """Make the authors' code importable; its modules import flash-attn even if they do not use it."""
    sys.path.insert(0, checkout)
    for name in ("flash_attn", "flash_attn.layers", "flash_attn.layers.rotary", "flash_attn.bert_padding"):
        sys.modules[name] = MagicMock()


# Options, other packages, reports.


def options(doc: str | None, *, peers: bool = True, **more: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line: common options, then the script's own. `peer` is the Python of the other packages."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(peer_python=None, no_peers=True, official=None)
    if peers:
        _ask_for_peers(parser)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    for name, settings in more.items():
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    chosen = parser.parse_args()
    chosen.peer = None if chosen.no_peers else chosen.peer_python or _peers()
    chosen.official = str(Path(chosen.official).resolve()) if chosen.peer and chosen.official else None
    return chosen


def _ask_for_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer-python", help="a Python with multimolecule 0.2.2; default: installed once, in ~/.cache")
    parser.add_argument("--no-peers", action="store_true", default=False, help="measure rinalmo alone")
    parser.add_argument("--official", help="a checkout of lbcb-sci/RiNALMo, to measure the authors' code too")


def _peers() -> str:
    return installed("-".join(PEERS), (*PEERS, *TRAINER_NEEDS, *OFFICIAL_NEEDS), "accelerate, multimolecule")


def installed(name: str, packages: Sequence[str], imports: str, finish: Callable[[str], Any] = str) -> str:
    """The Python of an environment that can import the given packages, created on first use.

    `finish` receives its Python and does what pip cannot.
    """
    folder = Path.home() / ".cache" / "rinalmo-benchmarks" / name
    python = folder / "bin" / "python"
    whole = [python, "-c", f"import {imports}"]
    if not python.exists() or subprocess.run(whole, capture_output=True).returncode:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        finish(str(python))
    return str(python)


def head(title: str, chosen: argparse.Namespace) -> None:
    """Print what a reader needs to judge or reproduce the results."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    versions = [f"Python {platform.python_version()}", *_versions(sys.executable, "torch", "transformers", "numpy")]
    versions += _versions(chosen.peer, "multimolecule", "torch") if chosen.peer else []
    print(f"## {title}\n")
    print(f"{date.today()}, {processor()}, {chosen.threads} threads, load before {os.getloadavg()[0]:.1f};", end=" ")
    print(f"commit {commit.stdout.strip() or 'unknown'}; {', '.join(versions)}.  ")
    print(f"`python {' '.join(sys.argv)}`\n", flush=True)


def processor() -> str:
    """The processor and its extensions for fast arithmetic."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    kinds = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")
    flags = [kind for kind in kinds if kind in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.processor())} ({', '.join(flags)}), {os.cpu_count()} cores"


def _versions(python: str, *packages: str) -> list[str]:
    code = "import sys, importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in sys.argv[1:]), sep=',')"
    found = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True)
    return found.stdout.strip().split(",") if found.returncode == 0 else []


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(markdown(columns, rows), flush=True)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, aligned for reading as text."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def megabytes(size: float) -> str:
    """A size for a table."""
    return f"{size / 1e6:,.0f} MB"
