"""`rinalmo fill-mask`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rinalmo.cli.options import engine_options, is_sequence, make_engine

if TYPE_CHECKING:
    from rinalmo.inference.fill_mask import Prediction
    from rinalmo.rna.fasta import Record

    Masks = list[list[Prediction]]

_FORMATS = ("table", "tsv", "jsonl")
_COLUMNS = ("id", "position", "score", "token", "token_str", "sequence")


@click.command("fill-mask")
@click.argument("source", metavar="SEQ|FASTA|-")
@click.option("-k", "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Candidates per mask.")
@click.option(
    "-f", "--format", "style", type=click.Choice(_FORMATS), default="table", show_default=True, help="Output format."
)
@engine_options(precision="fp32")
def command(source: str, top_k: int, style: str, **engine_settings: Any) -> None:
    """Predict the nucleotides at <mask>.

    SEQ is an RNA or DNA sequence with one or more <mask>; a file name is read as FASTA; - is FASTA from standard input.

    \b
    rinalmo fill-mask "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"
    rinalmo fill-mask masked.fa --format tsv > predictions.tsv
    """
    from rinalmo.inference.fill_mask import predict
    from rinalmo.inference.inputs import as_records, read_from
    from rinalmo.rna.fasta import read_fasta

    given = is_sequence(source)
    records = as_records(source, allow_mask=True) if given else read_fasta(source, allow_mask=True)
    show = {"table": _table, "tsv": _tsv, "jsonl": _jsonl}[style]
    engine = make_engine(**engine_settings)
    with read_from(None if given else Path(source)):
        for number, (record, masks) in enumerate(predict(records, engine, top_k=top_k)):
            if style == "tsv" and number == 0:
                print("\t".join(_COLUMNS))
            show(record, masks)


def _tsv(record: Record, masks: Masks) -> None:
    for values in _rows(record, masks):
        print("\t".join(map(str, values)))


def _jsonl(record: Record, masks: Masks) -> None:
    for values in _rows(record, masks):
        print(json.dumps(dict(zip(_COLUMNS, values, strict=True))))


def _rows(record: Record, masks: Masks) -> Iterator[list[Any]]:
    for candidate in (c for mask in masks for c in mask):
        values = {"id": record.id, **asdict(candidate), "score": float(f"{candidate.score:.6g}")}
        yield [values[column] for column in _COLUMNS]


def _table(record: Record, masks: Masks) -> None:
    print(f">{record.id} {record.sequence}")
    for mask in masks:
        print(f"  mask at {mask[0].position}")
        for candidate in mask:
            bar = "█" * round(30 * candidate.score)
            print(f"    {candidate.token_str}  {candidate.score:.4f}  {bar}")
