"""`rinalmo info`."""

from __future__ import annotations

import sys

import click


@click.command("info")
@click.argument("model", required=False)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Sequence length for FLOPs and MACs; the published figures hold for 128.",
)
@click.option(
    "--system", is_flag=True, help="Versions, processor, devices and kernels instead: what a bug report needs."
)
def command(model: str | None, tokens: int, system: bool) -> None:
    """Sizes and costs of MODEL (a preset, a name, a folder or a file), or of all presets.

    Parameters are those of encoder and pooler, in millions. FLOPs and MACs are for one sequence of --tokens tokens
    through both. Max tokens is the length seen in pre-training, where known; the model itself takes any.

    \b
    rinalmo info giga
    rinalmo info --system
    """
    if system:
        if model is not None:
            raise click.UsageError("--system describes this machine; leave MODEL out")
        from rinalmo.inference.system import system_report

        for name, value in system_report():
            click.echo(f"{name:18} {value}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from rinalmo.weights.info import info

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    headers = "Model", "Layers", "Hidden size", "Heads", "Intermediate size", "Parameters (M)", "FLOPs (G)", "MACs (G)"
    for header in (*headers, "Max tokens"):
        table.add_column(header, justify="left" if header == "Model" else "right", overflow="fold")
    for row in info(model, tokens=tokens):
        sizes = (row.num_layers, row.hidden_size, row.num_heads, row.intermediate_size)
        costs = (row.parameters / 1e6, row.flops / 1e9, row.macs / 1e9)
        table.add_row(row.name, *map(str, sizes), *(f"{cost:.2f}" for cost in costs), str(row.max_tokens or "–"))
    # A pipe has no width; a table there is not to be folded to some default.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    print(f"FLOPs and MACs for one sequence of {tokens} tokens.")
