"""The web app on a port of this machine.

Requests are measured before they are read, responses allow the browser to talk to this server alone, and a signal to
stop ends waiting requests with a message before the server goes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.web.service import BATCH_TOKENS, MAX_REQUEST

_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio starts from a script in the page, and evaluates the template of its HTML component.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_GRACE_SECONDS = 15


def serve(
    model: str,
    fold_model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    threads: int | None = None,
    device: str = "auto",
    ready: Callable[[str, str], Any] = lambda address, device: None,
) -> None:
    """Serve the web app until SIGINT or SIGTERM.

    Outside the main thread signals are left to the caller, and the app is served until the process ends.

    Args:
        model: For masks, embeddings and variants; or a fine-tuned one, for predictions and embeddings.
        fold_model: For structures.
        host: Address to listen on.
        port: 0 is any free one.
        threads: As for an `Engine`.
        device: As for an `Engine`.
        ready: Called with the app's address and a description of the device.

    Raises:
        InputError: The port cannot be used, or `fold_model` does not fold.
        MissingExtraError: Gradio, matplotlib or ViennaRNA is not installed.
    """
    for package, name in (("gradio", "gradio"), ("matplotlib", "matplotlib"), ("RNA", "ViennaRNA")):
        if find_spec(package) is None:
            raise MissingExtraError(name, "web", "the web app")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot serve on {host}:{port} ({reason}); choose another --port or --host") from None
    with listening, tempfile.TemporaryDirectory(prefix="rinalmo-web-") as folder, _gradio_environment(folder):
        application, stop, description = _application(model, fold_model, threads, device, Path(folder))
        ready(f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}", description)
        _run(application, stop, listening)


@contextlib.contextmanager
def _gradio_environment(folder: str) -> Iterator[None]:
    """Variables that Gradio reads when it is imported; without them it reports to its makers that it was started."""
    settings = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": f"{folder}/cache",
        "HF_HUB_DISABLE_TELEMETRY": os.environ.get("HF_HUB_DISABLE_TELEMETRY", "1"),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _application(
    model: str, fold_model: str, threads: int | None, device: str, folder: Path
) -> tuple[Any, Callable[[], None], str]:
    """The ASGI application, a function to call before it stops, and a description of the device."""
    from rinalmo.engine.engine import Engine
    from rinalmo.inference.fold import folding_task
    from rinalmo.web.service import Service

    engine = Engine(model, "fp32", threads=threads, batch_tokens=BATCH_TOKENS, device=device)
    folding = engine
    if fold_model != model:
        folding = Engine(fold_model, "auto", threads=threads, batch_tokens=BATCH_TOKENS, device=engine.device)
    folding_task(folding.spec, model=f"--fold-model {fold_model}")
    (folder / "files").mkdir()
    service = Service(engine, folding, folder / "files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fastapi
        import gradio

        from rinalmo.web.app import SCRIPT, STYLE, theme, web_app

        application = gradio.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            web_app(service, model, fold_model),
            "/",
            footer_links=["api"],
            run_history=False,
            show_error=False,
            max_file_size=MAX_REQUEST,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme(),
            css=STYLE,
            head=SCRIPT,
        )

    def stop() -> None:
        service.turns.stop()
        application.routes[-1].app.stop_event.set()  # ends the heartbeats of open pages, which uvicorn would wait for

    return _with_limit_and_headers(application), stop, engine.describe()


def _with_limit_and_headers(application: Any) -> Callable[..., Any]:
    """Refuse a body that is too large, before it is read, and add the headers. Plain ASGI, so that streams stream."""

    async def limited(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        size = dict(scope["headers"]).get(b"content-length", b"")
        has_no_size = scope["method"] in ("POST", "PUT", "PATCH") and not size.isdigit()
        if has_no_size or (size.isdigit() and int(size) > MAX_REQUEST):
            body = f'{{"error": "a request may have up to {MAX_REQUEST:,} bytes, and must say how many"}}'.encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            status = {"status": 411 if has_no_size else 413, "headers": [*headers, (b"connection", b"close")]}
            await send_with_headers({"type": "http.response.start", **status})
            await send({"type": "http.response.body", "body": body})
        else:
            await application(scope, receive, send_with_headers)

    return limited


def _run(application: Any, stop: Callable[[], None], listening: socket.socket) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Calls `stop` at a signal, and does not raise it again: files are still to be removed."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            def handle(number: int, frame: Any) -> None:
                stop()
                self.handle_exit(number, frame)

            if threading.current_thread() is not threading.main_thread():
                yield  # Python lets only the main thread handle signals
                return
            before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = uvicorn.Config(
        application, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS, lifespan="on"
    )
    Server(config).run(sockets=[listening])
