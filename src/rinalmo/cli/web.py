"""`rinalmo web`."""

from __future__ import annotations

import click

from rinalmo.cli.options import FOLD_MODEL, device_option, model_option, print_line, threads_option


@click.command("web")
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to serve on; 0.0.0.0 makes the app reachable from other machines.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=7860, help="Port to serve on; 0 for a free one.")
@model_option
@click.option(
    "--fold-model",
    default=FOLD_MODEL,
    metavar="MODEL",
    help="Model for folding, fine-tuned for secondary structure.",
)
@threads_option
@device_option
def web_command(host: str, port: int, model: str, fold_model: str, threads: int | None, device: str) -> None:
    """Serve a web app that predicts masked nucleotides, folds, embeds and scores variants.

    By default the app is reachable only from this machine. With another --host, everyone who can reach the address can
    use it, without a password. Nothing is sent anywhere else. gradio_client can call its API. Stop it with Ctrl-C.

    \b
    rinalmo web
    rinalmo web --model giga --port 8000
    rinalmo web --model run/model
    """
    from rinalmo.web.server import serve

    def announce(address: str, device: str) -> None:
        print_line(f"device: {device}")
        print(f"serving on {address}  (Ctrl-C stops)", flush=True)

    serve(model, fold_model, host=host, port=port, threads=threads, device=device, ready=announce)
