"""The ``mail-torchrec serve`` command: both protocols in one process, until a signal ends it."""

import logging
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from mail_torchrec.inference.traffic_split import TrafficSplit
from mail_torchrec.serve.grpc_service import start_grpc
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.ranker import Ranker
from mail_torchrec.serve.rest import build_app
from mail_torchrec.serve.versions import LOG, ModelVersions

_GRACE = 10
"""Seconds that requests in progress have to end."""
_KEEP_ALIVE = 620
"""Seconds that an idle connection is kept: longer than load balancers keep theirs, or one would
send a request into a connection that is being closed."""


@dataclass(frozen=True)
class ServeOptions:
    """Options of the server."""

    model: Path
    """Exported model, or a folder of exported versions."""
    name: str | None = None
    """Name of the model for clients; None takes the serving version's."""
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    max_bytes: int = 4 * 2**20
    """Most bytes of a request."""
    max_candidates: int = 2000
    """Most candidates of a request."""
    threads: int | None = None
    """Number of ONNX Runtime's threads for one request; None leaves it to the runtime."""
    poll: float = 5.0
    """Seconds between scans of the folder for versions; 0 never scans again."""
    split: TrafficSplit | None = None
    """Traffic split between the serving version and a candidate."""
    allow_schema_change: bool = False
    """Load versions that take other requests than the one that serves."""


def serve(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT; requests in progress are answered.

    Raises:
        ValueError: no good version to serve, or an address that cannot be listened on.
    """
    _log_with_times()
    metrics = ServerMetrics()
    versions = ModelVersions(
        options.model,
        metrics,
        threads=options.threads,
        split=options.split,
        allow_schema_change=options.allow_schema_change,
    )
    name = options.name or versions.serving.manifest.name
    ranker = Ranker(name, versions, metrics, options.max_candidates)
    http_socket = _listen(options.host, options.http_port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    grpc_server, grpc_port = start_grpc(
        ranker, f"{host}:{options.grpc_port}", options.max_bytes, threads=8
    )
    stop = _start_watcher(versions, options.poll)
    http_port = http_socket.getsockname()[1]
    LOG.info("serving model '%s': http://%s:%d, gRPC %s:%d", name, host, http_port, host, grpc_port)
    # uvicorn raises SIGTERM again when it is done; gRPC still has to end then.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(_http_config(ranker, options)).run(sockets=[http_socket])
    finally:
        stop.set()
        grpc_server.stop(_GRACE).wait()


def _log_with_times() -> None:
    """Prints times before the server's log lines, and those of other libraries."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        LOG.addHandler(handler)
    LOG.propagate = False


def _http_config(ranker: Ranker, options: ServeOptions) -> uvicorn.Config:
    return uvicorn.Config(
        build_app(ranker, options.max_bytes),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE,
        timeout_keep_alive=_KEEP_ALIVE,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        [address, *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, socket_address = address
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(socket_address)
        listening.listen(2048)  # connections that come before uvicorn is up wait
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port} for HTTP: {error}") from error
    return listening


def _start_watcher(versions: ModelVersions, seconds: float) -> threading.Event:
    """Starts the thread that scans for versions; the event that is returned stops it."""
    stop = threading.Event()
    if seconds > 0:
        threading.Thread(target=_watch, args=(versions, seconds, stop), daemon=True).start()
    return stop


def _watch(versions: ModelVersions, seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds):
        try:
            versions.refresh()
        except Exception:  # loaded versions go on serving, and so does the watcher
            LOG.exception("looking at %s failed", versions.root)
