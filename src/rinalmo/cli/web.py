"""`rinalmo web`."""

from __future__ import annotations

import click

from rinalmo.cli.options import FOLD_MODEL, device_option, model_option, threads_option


@click.command("web")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on; 0.0.0.0 is all of them.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port to serve on; 0 is a free one."
)
@model_option
@click.option(
    "--fold-model",
    default=FOLD_MODEL,
    show_default=True,
    metavar="MODEL",
    help="The one for the tab Fold, fine-tuned for secondary structure.",
)
@threads_option
@device_option
def web_command(host: str, port: int, model: str, fold_model: str, threads: int | None, device: str) -> None:
    """Serve a page to fill masks, fold, embed and score variants in a browser.

    It is for this machine, unless --host says otherwise; then everybody who reaches the address can use it, without a
    password. Nothing is sent anywhere else. Its API answers gradio_client. Stop it with Ctrl-C.

    \b
    rinalmo web
    rinalmo web --model giga --fold-model run/model --port 8000
    """
    from rinalmo.web.server import serve

    serve(
        model,
        fold_model,
        host=host,
        port=port,
        threads=threads,
        device=device,
        ready=_announce,
    )


def _announce(address: str, device: str) -> None:
    click.echo(f"device: {device}", err=True)
    print(f"serving on {address}  (Ctrl-C stops)", flush=True)
