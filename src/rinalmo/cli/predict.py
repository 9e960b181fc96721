"""`rinalmo predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import computing_options, fill_option, make_engine, thermodynamics_option, window_option


@click.command("predict")
@click.argument("model", metavar="MODEL")
@click.argument("fasta", metavar="FASTA|-")
@click.option(
    "-o", "--output", default="-", help="File to write: .csv, .tsv, .jsonl or .parquet.  [default: CSV to stdout]"
)
@click.option("--keep-columns", is_flag=True, help="Write the other columns of a table beside the predictions.")
@fill_option
@window_option
@thermodynamics_option
@computing_options(precision="auto")
def command(
    model: str,
    fasta: str,
    output: str,
    keep_columns: bool,
    fill_to: int | None,
    window: int | None,
    thermodynamics: float | None,
    **engine_settings: Any,
) -> None:
    """Predict with a fine-tuned model for the sequences of a FASTA file or table.

    MODEL is a folder that `rinalmo finetune` wrote, or the authors' fine-tuned .pt file as it is.
    One row a sequence: a number, a class with the probability of each, or a structure; a model for single nucleotides
    gives a row for each of them. Sequences are cropped as they were for training. `rinalmo fold` writes structures in
    other formats. A table (.csv, .tsv, .jsonl, .parquet) has a column `sequence`.

    \b
    rinalmo predict run/model sequences.fa -o predictions.csv
    rinalmo predict ribosome_load.pt utrs.fa
    rinalmo predict run/model measured.csv --keep-columns -o both.csv
    """
    from rinalmo.cli.progress import counter, noted
    from rinalmo.inference.embed_file import check_input
    from rinalmo.inference.inputs import is_sequence_table, read_sequences
    from rinalmo.tasks.predicting import predict_records, predict_table
    from rinalmo.tasks.registry import task_of
    from rinalmo.tasks.regression import filled
    from rinalmo.tasks.row_files import check_rows_output, write_rows
    from rinalmo.tasks.secondary_structure import as_asked

    if keep_columns and not is_sequence_table(fasta):
        raise click.UsageError("--keep-columns is for sequences in a table (.csv, .tsv, .jsonl, .parquet)")
    check_input(fasta)
    check_rows_output(output)
    engine = make_engine(model=model, **engine_settings)
    task = as_asked(filled(task_of(engine.spec), fill_to), engine.spec, window, thermodynamics, noted)
    done = 0
    with counter("predicting") as tell:

        def rows() -> Any:
            nonlocal done
            predicted = (
                predict_table(Path(fasta), engine, task, noted)
                if keep_columns
                else predict_records(read_sequences(fasta), engine, task, noted)
            )
            for found in predicted:
                done += 1
                tell(done)
                yield from found

        write_rows(output, rows())
    if output != "-":
        click.echo(f"{output}: {done:,} sequences, {task.name}", err=True)
