"""Commands about models: models, info, convert."""

from __future__ import annotations

import sys
from typing import Any

import click

from rinalmo.cli.options import print_line, print_note
from rinalmo.errors import InputError


@click.command("models")
@click.argument("name", required=False)
def models_command(name: str | None) -> None:
    """List the available models and whether they are on this machine, or describe the model NAME.

    fold, predict and evaluate accept models that are fine-tuned for a task. File sizes assume four bytes per parameter.

    \b
    rinalmo models
    rinalmo models giga-fold-bprna
    """
    from rinalmo.weights.catalog import find, models, resolve

    if name is not None:
        entry = find(name)
        if entry is None:
            resolve(name)  # says what there is
            raise InputError(f"{name} is a file or folder, not a model name; see `rinalmo info {name}`")
        described = {
            "name": entry.name,
            "task": entry.task or "none: pre-trained",
            "trained on": entry.trained_on,
            "do not test on": entry.not_for,
            "published score": entry.score,
            "parameters": f"{entry.parameters:.1f} million",
            "license": entry.license,
            "also called": ", ".join(entry.aliases),
            "on this machine": f"yes: {entry.folder}" if entry.present else "no: downloaded on first use",
        }
        for file in entry.addresses:
            described[file.filename] = file.url
            if file.sha256 or file.record:
                described["  sha256"] = file.sha256 or "not known; checked against size and MD5 in Zenodo's record"
        for title, value in described.items():
            if value:
                print(f"{title:20} {value}")
        return
    for entry in models():
        where = "bundled" if entry.bundled else "here" if entry.present else f"{entry.parameters * 4:,.0f} MB"
        about = f"{entry.trained_on}; {entry.score}" if entry.task else entry.summary
        print(f"{entry.name:30} {where:9} {entry.license:10}  {entry.task or 'pre-trained':19}  {about}")


@click.command("info")
@click.argument("model", required=False)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=128,
    help="Sequence length for FLOPs and MACs; the published numbers are for 128.",
)
@click.option("--system", is_flag=True, help="Show versions, processor, devices and kernels instead, for a bug report.")
def info_command(model: str | None, tokens: int, system: bool) -> None:
    """Show the size and cost of MODEL (a preset, a name, a folder or a file), or of all presets.

    Parameters (in millions), FLOPs and MACs are those of encoder and pooler, for one sequence of --tokens tokens. Max
    tokens is the maximum length in pre-training, if known; the model accepts any length.

    \b
    rinalmo info giga
    rinalmo info --system
    """
    if system:
        if model is not None:
            raise click.UsageError("--system describes this machine; leave out MODEL")
        from rinalmo.engine.devices import system_report

        for name, value in system_report():
            click.echo(f"{name:18} {value}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from rinalmo.weights.checkpoint import info

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    headers = "Model", "Layers", "Hidden size", "Heads", "Intermediate size", "Parameters (M)", "FLOPs (G)", "MACs (G)"
    for header in (*headers, "Max tokens"):
        table.add_column(header, justify="left" if header == "Model" else "right", overflow="fold")
    for row in info(model, tokens=tokens):
        sizes = (row.num_layers, row.hidden_size, row.num_heads, row.intermediate_size)
        costs = (row.parameters / 1e6, row.flops / 1e9, row.macs / 1e9)
        table.add_row(row.name, *map(str, sizes), *(f"{cost:.2f}" for cost in costs), str(row.max_tokens or "–"))
    # A pipe has no width, and the default would wrap the table.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    print(f"FLOPs and MACs for one sequence of {tokens} tokens.")


@click.command("convert")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--layout",
    type=click.Choice(["rinalmo", "official", "multimolecule"]),
    default="rinalmo",
    help="rinalmo and multimolecule are folders, official is one .pt file.",
)
@click.option(
    "--heads", type=click.IntRange(min=1), help="Number of attention heads, for a file that does not record it."
)
@click.option("--half", is_flag=True, help="Write matrices in fp16: half the size, weights rounded to 11 bits.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def convert_command(source: str, target: str, layout: Any, heads: int | None, half: bool, overwrite: bool) -> None:
    """Convert a model between all three checkpoint formats.

    IN is a name from `rinalmo models`, a folder or a file in any of the formats. Weights are copied bit for bit unless
    --half is given; only the token rows differ between the authors' 22 tokens (with T) and the other formats' 28 (with
    U).

    \b
    rinalmo convert rinalmo_giga_pretrained.pt giga
    rinalmo convert giga giga.pt --layout official
    rinalmo convert run/model small --half
    """
    from rinalmo.weights.checkpoint import convert

    checkpoint = convert(source, target, layout, num_attention_heads=heads, half=half, overwrite=overwrite)
    for note in checkpoint.notes:
        print_note(note)
    print_line(f"{target}: {layout} layout, from {checkpoint.layout}")
