"""Time and memory of `rinalmo score --vcf` on a simulated genome: transcripts of several exons on both strands,
substitutions, insertions and deletions.

    python benchmarks/vcf_speed.py --threads 1 2       # 10,000 variants, masked-marginals, windows of 500 nt
    python benchmarks/vcf_speed.py --variants 200 --method length-corrected-pll --window 100

Columns: variants in the file, scores in the output (masked-marginals has none for insertions and deletions), seconds on
the clock and of the processor with the start of the program, scores per processor second, peak memory of the process.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

EXON, INTRON, EXONS, TRANSCRIPTS = 300, 700, 6, 400


def write_genome(folder: Path, variants: int, seed: int) -> None:
    """`genome.fa`, `genes.gtf` and `variants.vcf`, sorted."""
    draw = random.Random(seed)
    gene = EXONS * (EXON + INTRON)
    genome = "".join(draw.choices("ACGT", k=gene * TRANSCRIPTS))
    lines = "\n".join(genome[i : i + 60] for i in range(0, len(genome), 60))
    (folder / "genome.fa").write_text(f">chr1\n{lines}\n")
    exons = [(k, k * gene + n * (EXON + INTRON)) for k in range(TRANSCRIPTS) for n in range(EXONS)]
    (folder / "genes.gtf").write_text("".join(map(_exon_line, exons)))
    places = sorted(start + draw.randrange(5, EXON - 10) for _, start in draw.choices(exons, k=variants))
    columns = "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"])
    header = f"##fileformat=VCFv4.2\n##contig=<ID=chr1,length={len(genome)}>\n{columns}\n"
    (folder / "variants.vcf").write_text(header + "".join(_variant_lines(genome, places, draw)))


def _exon_line(exon: tuple[int, int]) -> str:
    gene, start = exon
    strand = "+-"[gene % 2]
    name = f'gene_id "g{gene}"; transcript_id "t{gene}";'
    return f"chr1\tsimulated\texon\t{start + 1}\t{start + EXON}\t.\t{strand}\t.\t{name}\n"


def _variant_lines(genome: str, places: list[int], draw: random.Random) -> Iterator[str]:
    for place in places:
        kind, size = draw.random(), draw.randint(1, 4)
        if kind < 0.8:
            old, new = genome[place], draw.choice([letter for letter in "ACGT" if letter != genome[place]])
        elif kind < 0.9:
            old, new = genome[place], genome[place] + "".join(draw.choices("ACGT", k=size))
        else:
            old, new = genome[place : place + 1 + size], genome[place]
        yield f"chr1\t{place + 1}\t.\t{old}\t{new}\t.\tPASS\t.\n"


def measure(folder: Path, threads: int, options: list[str]) -> tuple[int, float, float, float]:
    """Scores, seconds on the clock, seconds of the processor, peak memory in MB."""
    files = ["--vcf", "variants.vcf", "--reference", "genome.fa", "--regions", "genes.gtf", "-o", "scored.csv"]
    command = [sys.executable, "-m", "rinalmo", "score", *files, "--threads", str(threads), "--quiet", *options]
    start = time.perf_counter()
    child = os.posix_spawnp("env", ["env", "-C", str(folder), f"OMP_NUM_THREADS={threads}", *command], {**os.environ})
    _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"rinalmo score failed: {status}")
    with (folder / "scored.csv").open() as file:
        scores = sum(1 for _ in file) - 1
    (folder / "scored.csv").unlink()
    return scores, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=10_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--method", default="masked-marginals")
    parser.add_argument("--window", type=int, default=500)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = ["--method", given.method, "--window", str(given.window), "--model", given.model]
    print("| method, window | threads | variants | scores | seconds | processor seconds | scores/s | peak memory, MB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_genome(folder, given.variants, given.seed)
        for threads in given.threads:
            scores, seconds, used, peak = measure(folder, threads, [*options, "--precision", given.precision])
            name = f"{given.method}, {given.window} nt, {given.precision}"
            print(f"| {name} | {threads} | {given.variants:,} | {scores:,} | ", end="")
            print(f"{seconds:,.0f} | {used:,.0f} | {scores / used:.1f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
