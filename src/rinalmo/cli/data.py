"""`rinalmo data` (prepare, check, card, download) and `rinalmo examples`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import print_line, progress
from rinalmo.errors import InputError


@click.group("data")
def data_command() -> None:
    """Prepare token stores from sequence databases, for `rinalmo pretrain`.

    \b
    rinalmo data download rfam databases/
    rinalmo data prepare store rfam=databases/rfam
    rinalmo data check store
    """


@data_command.command("prepare")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, metavar="LABEL=PATH…")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Recipe for reading, filtering and clustering: a name (data-nano) or a YAML file.",
)
@click.option(
    "--table", "tables", multiple=True, metavar="LABEL=FILE", help="Table with metadata of a source, by sequence id."
)
@click.option(
    "--exclude",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FASTA",
    help="Leave out these sequences and their cluster mates, such as a test set; may be given several times.",
)
@click.option("--no-cluster", is_flag=True, help="Do not run MMseqs2: every sequence is its own cluster.")
@click.option("--validation-fraction", type=click.FloatRange(0, 1), help="Fraction of the clusters for validation.")
@click.option("--seed", type=int, help="Random seed for the choice of validation clusters.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one value of the recipe, such as filters.max_length=1000.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads for MMseqs2.  [default: all]")
@click.option("--resume", is_flag=True, help="Continue an interrupted run after its last finished step.")
@click.option("--restart", is_flag=True, help="Discard the finished steps of an interrupted run and start over.")
def prepare_command(
    out: Path,
    sources: tuple[str, ...],
    recipe: str | None,
    tables: tuple[str, ...],
    no_cluster: bool,
    validation_fraction: float | None,
    seed: int | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Prepare the token store OUT from FASTA files, compressed or not, or folders of them.

    Sequences of 16 to 8192 nt are kept, deduplicated, clustered with MMseqs2 at 70 % identity and 80 % coverage, and
    split by cluster. OUT/report.json counts the dropped sequences by reason; OUT/card.md describes the store.

    \b
    rinalmo data prepare store rfam=Rfam.fa.gz rnacentral=rnacentral_active.fasta.gz
    rinalmo data prepare store mine=my.fa --no-cluster --validation-fraction 0.05
    """
    from rinalmo.data.prepare import prepare
    from rinalmo.data.sources import load_recipe

    values = {"split.validation_fraction": validation_fraction, "split.seed": seed}
    changes = [*overrides, *(f"{key}={value}" for key, value in values.items() if value is not None)]
    changes += ["clustering.method=none"] if no_cluster else []
    try:
        store = prepare(
            out,
            [_split_label(source) for source in sources],
            recipe=load_recipe(recipe, changes),
            tables=dict(_split_label(table) for table in tables),
            progress=_step_progress,
            **options,
        )
    except KeyboardInterrupt:
        print_line(f"{out}: stopped; the finished steps are saved; continue with --resume")
        raise
    parts = ", ".join(f"{split} {len(store.cluster_range(split)):,}" for split in ("train", "validation"))
    print_line(f"{out}: {len(store):,} sequences in {store.manifest['clusters']:,} clusters ({parts})")


@data_command.command("check")
@click.argument("store", type=click.Path(path_type=Path))
def check_command(store: Path) -> None:
    """Verify all checksums of STORE.

    \b
    rinalmo data check store
    """
    from rinalmo.data.store import TokenStore

    opened = TokenStore.open(store)
    opened.verify()
    print(f"{store} is intact: {len(opened):,} sequences, fingerprint {opened.fingerprint}")


@data_command.command("card")
@click.argument("store", type=click.Path(path_type=Path))
def card_command(store: Path) -> None:
    """Rewrite STORE/card.md and its plots.

    \b
    rinalmo data card store
    """
    from rinalmo.data.data_card import write_card

    with progress("counting") as report:
        path = write_card(store, report)
    print_line(f"{path}: written")


@data_command.command("download")
@click.argument("database", metavar="DATABASE")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--mirror", metavar="URL", help="Another server with the same files at the same paths.")
def download_command(database: str, folder: Path, mirror: str | None) -> None:
    """Download a database: rnacentral, rfam, ensembl (release 109), ensembl-bacteria (release 56) or nt.

    The same command continues an interrupted download; complete files are not downloaded again. Pass the folder to
    `prepare` as LABEL=DIR.

    \b
    rinalmo data download rfam databases/rfam
    rinalmo data prepare store rfam=databases/rfam
    """
    from rinalmo.data.databases import download

    with progress(f"downloading {database}", "files") as report:
        files = download(database, folder, mirror=mirror, report=report)
    print_line(f"{folder}: {len(files):,} files of {database}")


@click.command("examples")
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
def examples_command(folder: Path) -> None:
    """Copy the example files of the documentation into FOLDER, by default the current one.

    Files that are already there are left alone. If one differs from its example, nothing is copied.

    \b
    rinalmo examples
    rinalmo examples rna
    """
    from rinalmo.io.files import atomic_write
    from rinalmo.weights.catalog import ASSETS

    sources = {folder / path.name: path.read_bytes() for path in sorted((ASSETS / "examples").iterdir())}
    for path, content in sources.items():
        if path.exists() and path.read_bytes() != content:
            raise InputError(f"{path} exists and is no copy of the example; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in sources.items():
        if not path.exists():
            with atomic_write(path) as file:
                file.write(content)
        print(path)


@contextmanager
def _step_progress(step: str) -> Iterator[Callable[[int], None]]:
    """Progress of one step, and a line when it is done."""
    start, total = time.monotonic(), 0
    with progress(step) as report:

        def update(count: int) -> None:
            nonlocal total
            total = count
            report(count)

        yield update
    number = f"{total:,} sequences, " if total else ""
    print_line(f"{step}: {number}{time.monotonic() - start:.0f} s")


def _split_label(text: str) -> tuple[str, Path]:
    label, sign, path = text.partition("=")
    if not (sign and label and path):
        raise InputError(f"{text!r}: write LABEL=PATH, such as rfam=Rfam.fa.gz")
    return label, Path(path)
