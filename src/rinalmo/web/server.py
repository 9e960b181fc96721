"""The page on a port of this machine, until it is told to stop.

What comes in is measured before it is read, what goes out says that the browser may talk to this server and nobody
else, and a signal to stop lets every visitor who waits know before the server goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
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
from rinalmo.web.service import REQUEST

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
_VARIABLES = ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_MAX_EVENTS")


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
    """Serve the page until SIGINT or SIGTERM; `ready` is called with its address and what it computes on.

    Port 0 is any free one. `device` is as for an `Engine`.

    In another thread than the main one signals are left to the caller, and the page is served until the process ends.

    Raises InputError for a port that cannot be had or a `fold_model` that does not fold, MissingExtraError without
    Gradio.
    """
    need_gradio()
    _share_memory_between_threads()
    listening = _listening(host, port)
    with _restored_environment(), listening, tempfile.TemporaryDirectory(prefix="rinalmo-web-") as folder:
        application, stop, computes_on = _application(model, fold_model, threads, device, Path(folder))
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        ready(address, computes_on)
        _run(application, stop, listening)


@contextlib.contextmanager
def _restored_environment() -> Iterator[None]:
    """Give the process its environment variables back once the page is gone."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _share_memory_between_threads() -> None:
    """glibc gives up to eight threads a core a heap of their own and keeps what they free; requests come in many."""
    if platform.libc_ver()[0] == "glibc":
        m_arena_max = -8  # malloc.h
        ctypes.CDLL(None).mallopt(m_arena_max, 2)


def need_gradio() -> None:
    """Raise MissingExtraError if Gradio or what draws pictures is not installed."""
    for package, extra in (("gradio", "web"), ("matplotlib", "web"), ("RNA", "web")):
        if find_spec(package) is None:
            raise MissingExtraError("ViennaRNA" if package == "RNA" else package, extra, "the web page")


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{host}:{port} cannot be served from ({reason}); choose another --port or --host") from None


def _application(
    model: str, fold_model: str, threads: int | None, device: str, folder: Path
) -> tuple[Any, Callable[[], None], str]:
    """The page as an ASGI application, what is to be called before it stops, and what it computes on."""
    from rinalmo.engine.engine import Engine
    from rinalmo.web.service import BATCH_TOKENS, Service

    engine = Engine(model, "fp32", threads=threads, batch_tokens=BATCH_TOKENS, device=device)
    engine.head("lm_head")  # raises for a model that cannot fill masks
    folding = _folding(engine, model, fold_model, threads)
    (folder / "files").mkdir()
    service = Service(engine, folding, folder / "files")
    # Gradio reads these when it is imported, and tells its makers who starts it unless it is told not to.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder / "cache"))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # kept for a page of figures, which is not shown
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fastapi
        import gradio

        from rinalmo.web.page import STYLE, page, theme

        application = gradio.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            page(service, model, fold_model),
            "/",
            footer_links=["api"],
            run_history=False,
            show_error=False,
            max_file_size=REQUEST,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme(),
            css=STYLE,
        )

    def stop() -> None:
        service.turns.stop()
        application.routes[-1].app.stop_event.set()  # ends the heartbeats of open pages, which uvicorn would wait for

    return _Guard(application), stop, engine.describe()


def _folding(engine: Any, model: str, fold_model: str, threads: int | None) -> Any:
    """An engine for folding, the same one if it is the same model."""
    from rinalmo.engine.engine import Engine
    from rinalmo.inference.fold import folding_task
    from rinalmo.web.service import BATCH_TOKENS

    folding = engine
    if fold_model != model:
        folding = Engine(fold_model, "auto", threads=threads, batch_tokens=BATCH_TOKENS, device=engine.device)
    folding_task(folding.spec, model=f"--fold-model {fold_model}")
    return folding


class _Guard:
    """Refuses a body that is too large, before it is read, and adds the headers. Plain ASGI, so that streams stream."""

    def __init__(self, application: Any) -> None:
        self.application = application

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        size = dict(scope["headers"]).get(b"content-length", b"")
        is_chunked = scope["method"] in ("POST", "PUT", "PATCH") and not size.isdigit()
        if is_chunked or (size.isdigit() and int(size) > REQUEST):
            await _refuse(send, 411 if is_chunked else 413)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        await self.application(scope, receive, with_headers)


async def _refuse(send: Any, status: int) -> None:
    about = f"a request may have up to {REQUEST:,} bytes, and must say how many"
    text = ('{"error": "' + about + '"}').encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": text})


def _run(application: Any, stop: Callable[[], None], listening: socket.socket) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Tells the page before it stops, and does not raise the signal again: files are still to be removed."""

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
