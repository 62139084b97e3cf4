"""Both protocols in one process, until a signal ends it."""

import logging
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from mail_torchrec.inference.traffic_split import Split
from mail_torchrec.serve.grpc_service import start_grpc
from mail_torchrec.serve.prometheus import Metrics
from mail_torchrec.serve.ranker import Ranker
from mail_torchrec.serve.rest import build_app
from mail_torchrec.serve.versions import LOG, Versions

_GRACE = 10  # seconds that requests have to end
# seconds; longer than load balancers keep an idle connection, or one would send into one that is
# being closed
_IDLE = 620


@dataclass(frozen=True)
class Service:
    """What to serve, where."""

    model: Path
    name: str | None = None
    """None: the newest version's."""
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    max_bytes: int = 4 * 2**20
    max_candidates: int = 2000
    threads: int | None = None
    """Of ONNX Runtime for one request."""
    poll: float = 5.0
    """Seconds between looks at the folder; 0 never looks again."""
    split: Split | None = None


def serve(service: Service) -> None:
    """Serves until SIGTERM or SIGINT; requests that are being answered then are.

    Raises:
        ValueError: nothing good to serve, or an address that cannot be listened on.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    metrics = Metrics()
    versions = Versions(service.model, metrics, threads=service.threads, split=service.split)
    ranker = Ranker(
        service.name or versions.all[-1].manifest.name, versions, metrics, service.max_candidates
    )
    listening = _listen(service.host, service.http_port)
    host = f"[{service.host}]" if ":" in service.host else service.host
    over_grpc, grpc_port = start_grpc(
        ranker, f"{host}:{service.grpc_port}", service.max_bytes, threads=8
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(versions, service.poll, stop), daemon=True)
    if service.poll > 0:
        watcher.start()
    LOG.info(
        "serving model '%s': http://%s:%d, gRPC %s:%d",
        ranker.name,
        host,
        listening.getsockname()[1],
        host,
        grpc_port,
    )
    config = uvicorn.Config(
        build_app(ranker, service.max_bytes), log_level="warning", access_log=False, lifespan="off",
        timeout_graceful_shutdown=_GRACE, timeout_keep_alive=_IDLE,
    )  # fmt: skip
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # uvicorn raises it again when it is done, and gRPC still has to end
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        stop.set()
        over_grpc.stop(_GRACE).wait()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            0
        ]
        listening = socket.socket(family, kind, number)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)  # who comes before uvicorn is up waits
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port} for HTTP: {error}") from error
    return listening


def _watch(versions: Versions, seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds):
        try:
            versions.refresh()
        except Exception:  # what is loaded goes on, and so does the watch
            LOG.exception("looking at %s failed", versions.root)
