"""Compare our folding model with thermodynamic and trained folding programs, with the same metrics.

    python benchmarks/folding.py TS0.csv.gz bpRNA-new.csv.gz                  # the peers, installed on first use
    python benchmarks/folding.py TS0.csv.gz --model RUN/model                 # and a fine-tuned model
    python benchmarks/folding.py archiveII.csv.gz --max-length 512            # per family, if there is such a column
    python benchmarks/folding.py TS0.csv.gz --most 200 --times                # a random part; time per sequence

    rinalmo             `rinalmo.inference.fold` with the defaults of `rinalmo fold`
    … thermodynamics W  the same with ViennaRNA's probabilities in the mean, for each weight of --thermodynamics; 0 is
                        the model alone
    RNAfold MFE         ViennaRNA, the structure of minimum free energy
    RNAfold centroid    ViennaRNA, the structure nearest to the whole ensemble
    LinearFold-V        pylinearfold, beam of 100 with Vienna's energies; the package has no LinearFold-C
    LinearPartition-V   pylinearfold, the structure of maximum expected accuracy
    MXfold2             with its own parameters, trained on TrainSetA and B of Rivas et al.
    eFold               only if named: --peers eFold. Its wheel (MIT) has its parameters; its environment is its own

All get the same sequences, upper case, T as U, other letters as N (for eFold, which has no N, as A). F1 is the mean
over structures, with the 95 % bootstrap interval of that mean: `all pairs`, exact or with one end off by at most one,
counts every annotated pair; `canonical nested` leaves pseudoknots and pairs other than AU, GC, GU out of the target
(see `rinalmo.metrics`). The mean of families has a bootstrap within each.

The other programs' structures are cached in a file (`--cache`); ours are always computed. With `--times` the cache is
not used: every method gets one sequence at a time, on one thread.

Calibration is reported for our default: of the pairs with a probability in a range, the share that is annotated.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import sides
from sides import Side

if TYPE_CHECKING:
    from rinalmo.tasks.base import Example

Probable = list[tuple[int, int, float]]  # pairs with their probabilities
Fold = Callable[[str], tuple[str, Probable]]  # a sequence to its dot-bracket text, and optional probabilities

VERSIONS = {"viennarna": "2.7.2", "pylinearfold": "1.0.0", "mxfold2": "0.1.1"}
EFOLD = "0.1.2"
NEEDS = ("torch==2.13.0", "pybind11==3.0.1", "setuptools")
PEERS = {
    "RNAfold MFE": ("vienna", "viennarna", {"centroid": False}),
    "RNAfold centroid": ("vienna", "viennarna", {"centroid": True}),
    "LinearFold-V": ("linear", "pylinearfold", {"partition": False}),
    "LinearPartition-V": ("linear", "pylinearfold", {"partition": True}),
    "MXfold2": ("mxfold2", "mxfold2", {}),
    "eFold": ("efold", "efold", {}),
}
# Precision, recall, F1 on bpRNA TS0, ±1, all pairs: Penić et al. 2025 (arXiv:2403.00043); AIDO.RNA by its authors.
PUBLISHED = {
    "RiNALMo 650M": (0.784, 0.730, 0.747),
    "AIDO.RNA 1.6B": (0.815, 0.769, 0.783),
    "RNA-FM, fine-tuned by RiNALMo's authors": (0.709, 0.664, 0.676),
    "UFold": (0.607, 0.741, 0.654),
    "RNAErnie": (0.575, 0.678, 0.622),
    "SPOT-RNA": (0.594, 0.693, 0.619),
}
PUBLISHED_F1 = {"RiNALMo 33M": 0.685}
RANGES = (0.2, 0.4, 0.6, 0.8)  # of probability, each up to the next
COLUMNS = ("", "F1, exact", "P, ±1", "R, ±1", "F1, ±1", "F1, canonical nested", "ms a sequence")


# The methods.


def answer(fold: Fold) -> None:
    """Fold sequences from standard input, one per line, until its end."""
    lines = sides.answers()
    print("{}", file=lines)
    for line in sys.stdin:
        start = time.perf_counter()
        structure, pairs = fold(line.strip())
        seconds = time.perf_counter() - start
        print(json.dumps({"value": structure, "seconds": seconds, "pairs": pairs}), file=lines)


def rinalmo(model: str, thermodynamics: float | None) -> None:
    from rinalmo.engine.engine import Engine
    from rinalmo.inference.fold import Decoding, fold_records
    from rinalmo.io.sequences import Record
    from rinalmo.rna.structure import PairList

    engine, decoding = Engine(model, threads=1), Decoding(thermodynamics=thermodynamics)

    def fold(sequence: str) -> tuple[str, Probable]:
        ((structure, found),) = fold_records([Record("", "", sequence)], engine, decoding)
        if isinstance(found, PairList):
            i, j, values = found.i, found.j, found.values
        else:
            i, j = (found > RANGES[0]).nonzero()
            i, j = i[i < j], j[i < j]
            values = found[i, j]
        return structure.dot_bracket, list(zip(i.tolist(), j.tolist(), values.tolist(), strict=True))

    answer(fold)


def vienna(centroid: bool) -> None:
    import RNA

    def fold(sequence: str) -> tuple[str, Probable]:
        compound = RNA.fold_compound(sequence)
        structure, energy = compound.mfe()
        if centroid:
            compound.exp_params_rescale(energy)
            compound.pf()
            structure, _ = compound.centroid()
        return str(structure), []

    answer(fold)


def linear(partition: bool) -> None:
    import pylinearfold

    fold = pylinearfold.partition if partition else pylinearfold.fold
    answer(lambda sequence: (str(fold(sequence)["structure"]), []))


def mxfold2() -> None:
    import torch
    from mxfold2 import predict

    models = Path(predict.__file__).parent / "models"
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@")
    predict.Predict.add_args(parser.add_subparsers())
    settings = parser.parse_args(["predict", "-", f"@{models / 'TrainSetAB.conf'}"])
    model, _ = predict.Predict().build_model(settings)
    model.load_state_dict(torch.load(models / settings.param, map_location="cpu"))
    model.eval()

    @torch.no_grad()
    def fold(sequence: str) -> tuple[str, Probable]:
        return str(model([sequence])[1][0]), []

    answer(fold)


def efold() -> None:
    import torch
    from efold.api.run import run

    brackets = ("()", "[]", "{}", "<>")

    @torch.no_grad()
    def fold(sequence: str) -> tuple[str, Probable]:
        # It has no N. Its own dot-bracket text writes some crossing pairs with the same brackets.
        text, levels = ["."] * len(sequence), [list[tuple[int, int]]() for _ in brackets]
        (found,) = run([sequence.replace("N", "A")], fmt="bp").values()
        for i, j in sorted((int(i) - 1, int(j) - 1) for i, j in found):
            free = text[i] == text[j] == "."
            fits = (n for n, level in enumerate(levels) if not any(a < i <= b < j for a, b in level))
            if free and (level := next(fits, None)) is not None:
                levels[level].append((i, j))
                text[i], text[j] = brackets[level]
        return "".join(text), []

    answer(fold)


def efold_python() -> str:
    """The Python of eFold's own environment, created on first use; it needs half of a training framework."""
    return sides.installed(f"efold-{EFOLD}", [NEEDS[0], f"efold=={EFOLD}"], "efold.api.run")


def peer_python() -> str:
    """The Python of an environment with the other programs, created on first use."""
    pinned = [f"{name}=={version}" for name, version in VERSIONS.items()]
    return sides.installed("-".join(pinned), [*NEEDS, *pinned[:2]], "RNA, pylinearfold, mxfold2.interface", add_mxfold2)


def versions_of(python: str) -> dict[str, str]:
    """The versions of the other programs in this Python environment."""
    code = "import importlib.metadata as m, json;"
    code += "print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    found = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    return {name: found[name] for name in VERSIONS if name in found}


def add_mxfold2(python: str) -> None:
    """Install MXfold2 from the source in its wheel, which needlessly requires an old torch and Python 3.8."""
    wheel = f"mxfold2=={VERSIONS['mxfold2']}"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    code = "import pybind11, sysconfig as s; print(s.get_path('purelib'), s.get_config_var('EXT_SUFFIX'), end=' ');"
    code += "print(s.get_path('include'), pybind11.get_include())"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    packages, ending, *include = found.stdout.split()
    source = Path(packages, "mxfold2", "src")
    files = [source / "interface.cpp", *source.glob("fold/*.cpp"), *source.glob("param/*.cpp")]
    flags = ["-O3", "-w", "-shared", "-fPIC", "-std=c++17", *(f"-I{folder}" for folder in include)]
    subprocess.run(["g++", *flags, *files, "-o", source.parent / f"interface{ending}"], check=True)


# The parent: predictions.


class Cache:
    """Cached structures, by method with its version and by sequence."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.base.execute("PRAGMA synchronous = OFF")  # computing a structure again is fast
        self.base.execute("CREATE TABLE IF NOT EXISTS folded (method, sequence, structure, UNIQUE (method, sequence))")

    def get(self, method: str, sequence: str) -> str | None:
        found = self.base.execute("SELECT structure FROM folded WHERE method = ? AND sequence = ?", (method, sequence))
        row = found.fetchone()
        return row[0] if row else None

    def put(self, method: str, sequence: str, structure: str) -> None:
        self.base.execute("INSERT OR REPLACE INTO folded VALUES (?, ?, ?)", (method, sequence, structure))


class Method(NamedTuple):
    """A method with its name in the tables; `key` is its name and version in the cache, if it is cached."""

    name: str
    key: str | None
    side: Side


def start(chosen: argparse.Namespace) -> list[Method]:
    found = []
    for weight in (None, *chosen.thermodynamics) if chosen.model else ():
        side = Side("rinalmo", 1, model=chosen.model, thermodynamics=weight)
        found.append(Method("rinalmo" if weight is None else f"rinalmo, thermodynamics {weight}", None, side))
    python = chosen.python or (peer_python() if set(chosen.peers) - {"eFold"} else "")
    for name in chosen.peers:
        serve, package, arguments = PEERS[name]
        own = chosen.efold_python or efold_python() if name == "eFold" else python
        side = Side(serve, 1, own, **arguments)
        found.append(Method(name, f"{name}, {package} {VERSIONS.get(package, EFOLD)}", side))
    return found


def folded(method: Method, sequence: str, cache: Cache, times: bool) -> tuple[str, Probable] | None:
    """A structure and probabilities, or nothing if the method has failed."""
    if method.key and not times and (kept := cache.get(method.key, sequence)):
        return kept, []
    if not (answered := method.side.ask(sequence)):
        return None
    method.side.seconds.append(answered["seconds"])
    if method.key:
        cache.put(method.key, sequence, answered["value"])
    return str(answered["value"]), answered["pairs"]


# The parent: scores.


class Scored(NamedTuple):
    """Precision, recall and F1 of one structure, counted in three ways."""

    family: str
    exact: Sequence[float]
    near: Sequence[float]
    nested: Sequence[float]


def scored(example: Example, structure: str) -> Scored:
    from rinalmo.metrics import canonical_nested_scores, pair_scores
    from rinalmo.rna.structure import Structure, pairs_of

    target, found = Structure(example.name, example.sequence, example.target), pairs_of(structure)
    exact, near = (pair_scores(target.pairs, found, tolerance=tolerance) for tolerance in (0, 1))
    return Scored(example.group, exact, near, canonical_nested_scores(target, found))


def read(path: Path, chosen: argparse.Namespace) -> list[Example]:
    """The structures of a file, or a random part of them."""
    from rinalmo.tasks.base import Columns
    from rinalmo.tasks.secondary_structure import SecondaryStructure

    examples = SecondaryStructure.read(path, Columns())
    short = [example for example in examples if len(example.sequence) <= (chosen.max_length or sys.maxsize)]
    number = min(chosen.most or len(short), len(short))
    return [short[place] for place in sorted(random.Random(chosen.seed).sample(range(len(short)), number))]


def compare(path: Path, methods: Sequence[Method], cache: Cache, chosen: argparse.Namespace) -> None:
    examples = read(path, chosen)
    results: dict[str, list[Scored]] = {method.name: [] for method in methods}
    said: list[tuple[float, bool]] = []  # the default's probability of a pair, and whether it is annotated
    for method in methods:
        method.side.seconds.clear()
    for example in examples:
        sequence = re.sub("[^ACGU]", "N", example.sequence.upper().replace("T", "U"))
        for method in methods:
            if answer := folded(method, sequence, cache, chosen.times):
                results[method.name].append(scored(example, answer[0]))
                if method.name == "rinalmo":
                    true = set(map(tuple, example.target))
                    said += [(value, (i, j) in true) for i, j, value in answer[1]]
    report(path, examples, methods, results, chosen)
    if said:
        calibration(said)
    if chosen.without:
        known = {example.sequence.upper().replace("T", "U") for example in read(chosen.without, everything(chosen))}
        places = [n for n, e in enumerate(examples) if e.sequence.upper().replace("T", "U") not in known]
        print(f"\nWithout the {len(examples) - len(places):,} whose sequences are in {chosen.without.name}:")
        rest = {name: [of[n] for n in places] for name, of in results.items() if len(of) == len(examples)}
        report(path, [examples[n] for n in places], methods, rest, chosen)


def everything(chosen: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(chosen), "most": None, "max_length": None})


def calibration(said: Sequence[tuple[float, bool]]) -> None:
    """For each range of probability, the number of pairs and of annotated pairs."""
    print("\nCalibration\n")
    rows = []
    for low, high in zip(RANGES, [*RANGES[1:], 1.01], strict=True):
        right = [true for value, true in said if low <= value < high]
        rows.append([f"{low:.1f}–{min(high, 1):.1f}", f"{len(right):,}", f"{mean(right):.3f}" if right else ""])
    sides.table(["probability", "pairs", "right"], rows)


def report(
    path: Path,
    examples: Sequence[Example],
    methods: Sequence[Method],
    results: dict[str, list[Scored]],
    chosen: argparse.Namespace,
) -> None:
    part = f", drawn with seed {chosen.seed}" if chosen.most else ""
    print(f"\n### {path.name}: {len(examples):,} structures{part}\n")
    whole = {name: found for name, found in results.items() if len(found) == len(examples)}
    times = {m.name: f"{1e3 * sum(m.side.seconds) / len(examples):.1f}" for m in methods} if chosen.times else {}
    rows = [[name, *cells(found), *([times[name]] if times else [])] for name, found in whole.items()]
    rows += published(len(rows[0])) if path.name.startswith("TS0") and rows else []
    sides.table(COLUMNS[: 7 if times else 6], rows)
    for method in methods:
        if method.name not in whole:
            print(f"\nNot measured: {method.name} ({method.side.failure}).")
    families = sorted({example.group for example in examples} - {""})
    if len(families) > 1 and whole:
        by_family(families, whole)


def cells(found: Sequence[Scored]) -> Iterator[str]:
    from rinalmo.metrics import bootstrap_interval

    def f1(values: Sequence[float]) -> str:
        low, high = bootstrap_interval(values)
        return f"{mean(values):.3f} ({low:.3f}–{high:.3f})"

    yield f1([one.exact[2] for one in found])
    yield from (f"{mean([one.near[column] for one in found]):.3f}" for column in (0, 1))
    yield f1([one.near[2] for one in found])
    yield f1([one.nested[2] for one in found])


def published(width: int) -> Iterator[list[str]]:
    rows = {name: [f"{value:.3f}" for value in values] for name, values in PUBLISHED.items()}
    rows |= {name: ["", "", f"{f1:.3f}"] for name, f1 in PUBLISHED_F1.items()}
    for name, values in rows.items():
        yield [f"{name} (published)", "", *values, *[""] * (width - 5)]


def by_family(families: Sequence[str], results: dict[str, list[Scored]]) -> None:
    """F1 of every family, ±1 and canonical nested, and the mean of the families, with a bootstrap within each."""
    import numpy as np

    print("\nF1, ±1 / canonical nested\n")
    labels = [*families, *(f"mean of families, {count}" for count in ("exact", "±1", "canonical nested"))]
    columns: dict[str, list[str]] = {"family": labels}
    for name, found in results.items():
        scores = [[(s.exact[2], s.near[2], s.nested[2]) for s in found if s.family == family] for family in families]
        values, generator = [np.array(each) for each in scores], np.random.default_rng(0)
        columns["n"] = [f"{len(each):,}" for each in values] + [""] * 3
        drawn = [[each[generator.integers(0, len(each), len(each))].mean(0) for each in values] for _ in range(1000)]
        means, bounds = np.mean([each.mean(0) for each in values], 0), np.quantile(np.mean(drawn, 1), (0.025, 0.975), 0)
        columns[name] = [f"{each[:, 1].mean():.3f} / {each[:, 2].mean():.3f}" for each in values]
        columns[name] += [f"{m:.3f} ({low:.3f}–{high:.3f})" for m, low, high in zip(means, *bounds, strict=True)]
    sides.table(list(columns), zip(*columns.values(), strict=True))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="tables or files of structures")
    parser.add_argument("--model", help="a model fine-tuned for secondary structure")
    parser.add_argument(
        "--thermodynamics",
        type=float,
        nargs="+",
        default=[],
        metavar="WEIGHT",
        help="also evaluate the model with these weights of thermodynamics",
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS)[:-1], metavar="PEER")
    parser.add_argument("--most", type=int, help="structures of each file, drawn at random")
    parser.add_argument("--max-length", type=int, help="leave longer sequences out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", type=Path, metavar="FILE", help="also exclude the sequences of this file")
    parser.add_argument("--python", help="a Python with the other programs installed")
    parser.add_argument("--efold-python", help="a Python with eFold installed")
    parser.add_argument("--times", action="store_true", help="measure the time; needs an otherwise idle machine")
    kept = Path.home() / ".cache" / "rinalmo-benchmarks" / "folded.sqlite"
    parser.add_argument("--cache", type=Path, default=kept, help="file that caches the other programs' structures")
    chosen = parser.parse_args()
    chosen.threads, chosen.peer = 1, None
    if chosen.python:
        VERSIONS.update(versions_of(chosen.python))
    cache, methods = Cache(chosen.cache), start(chosen)
    sides.head("Secondary structure", chosen)
    versions = VERSIONS | ({"efold": EFOLD} if "eFold" in chosen.peers else {})
    print(f"Peers: {', '.join(f'{name} {version}' for name, version in versions.items())}.")
    for path in chosen.data:
        compare(path, methods, cache, chosen)
    for method in methods:
        method.side.close()


if __name__ == "__main__":
    serves = {f.__name__: f for f in (rinalmo, vienna, linear, mxfold2, efold)}
    sides.serve_or(main, serves)
