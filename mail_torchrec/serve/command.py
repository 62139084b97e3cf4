"""The ``mail-torchrec serve`` command: both protocols in one process, until a signal ends it."""

import gc
import logging
import os
import resource
import signal
import socket
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from mail_torchrec.inference.traffic_split import TrafficSplit
from mail_torchrec.publishing.follower import Follower, following
from mail_torchrec.serve.drift.monitor import DriftMonitor
from mail_torchrec.serve.grpc_service import start_grpc
from mail_torchrec.serve.limits.admission import Admission
from mail_torchrec.serve.limits.grpc_calls import grpc_options
from mail_torchrec.serve.limits.http_connections import ConnectionLimits, HttpConnection, Listener
from mail_torchrec.serve.limits.quiet_log import keep_log_short
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.ranker import Ranker
from mail_torchrec.serve.rest import build_app
from mail_torchrec.serve.versions import LOG, ModelVersions

_GRACE = 10
"""Seconds that requests in progress have to end."""
_OWN_FILES = 12
"""Files that the server itself opens from time to time, those of a new version above all."""
_ACCEPTED_AT_ONCE = 16
_MAX_WORKERS = 4
_STALLED_SECONDS = 60.0
"""Seconds between the reports of a scan that does not end."""


@dataclass(frozen=True)
class ServeOptions:
    """Options of the server."""

    model: str
    """Exported model, a folder of exported versions, or a folder or URI to which versions are
    published."""
    cache: Path | None = None
    """Folder for published versions, kept when the server ends; None takes a temporary one."""
    name: str | None = None
    """Name of the model for clients; None takes the serving version's."""
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    max_bytes: int = 4 * 2**20
    """Most bytes of a request."""
    max_candidates: int = 2000
    """Most candidates of a request."""
    max_waiting_bytes: int = 64 * 2**20
    """Most bytes of all requests in the server, as they arrive."""
    max_requests: int = 1024
    """Most requests in the server."""
    workers: int | None = None
    """Requests that are decoded and scored at once; None: one a core, at most four."""
    max_connections: int = 1000
    """Most connections of HTTP, and of gRPC."""
    receive_seconds: float = 30.0
    """Most seconds that a request may take to arrive."""
    keep_alive: int = 620
    """Seconds that an idle connection is kept (of gRPC at most 300). HTTP: longer than load
    balancers keep theirs, or one would send a request into a connection that is being closed."""
    threads: int | None = None
    """Number of ONNX Runtime's threads for one request; None leaves it to the runtime."""
    poll: float = 5.0
    """Seconds between scans of the folder for versions; 0 never scans again."""
    split: TrafficSplit | None = None
    """Traffic split between the serving version and a candidate."""
    copy_to: Path | None = None
    """Folder for private copies of the versions, to be mapped in their place; None maps them."""
    allow_schema_change: bool = False
    """Load versions that take other requests than the one that serves."""
    drift: float | None = None
    """Seconds after which served new users are compared with a version's golden behaviours; None
    never compares them."""


def serve(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT; requests in progress are answered.

    Raises:
        ValueError: no good version to serve, or an address that cannot be listened on.
    """
    _log_with_times()
    with following(options.model, options.cache) as follower:
        if follower is not None:
            _fetch_first(follower)
        _serve(options, follower)


def _serve(options: ServeOptions, follower: Follower | None) -> None:
    metrics = ServerMetrics()
    versions = ModelVersions(
        follower.current if follower is not None else Path(options.model),
        metrics,
        threads=options.threads,
        split=options.split,
        allow_schema_change=options.allow_schema_change,
        copy_to=options.copy_to,
    )
    name = options.name or versions.serving.manifest.name
    drift = DriftMonitor.of(versions, metrics.registry, options.drift)
    ranker = Ranker(name, versions, metrics, options.max_candidates, drift)
    admission = Admission(
        options.max_waiting_bytes,
        options.max_requests,
        options.workers or min(len(os.sched_getaffinity(0)), _MAX_WORKERS),
    )
    max_connections = _max_connections(options.max_connections)
    http = ConnectionLimits(
        max_connections,
        options.receive_seconds,
        options.max_waiting_bytes,
        lambda reason: metrics.closed.labels(reason).inc(),
    )
    http_socket = _listen(options.host, options.http_port)
    http_socket.open_for(http)
    host = f"[{options.host}]" if ":" in options.host else options.host
    grpc_server, grpc_port = start_grpc(
        ranker,
        f"{host}:{options.grpc_port}",
        admission,
        grpc_options(
            options.max_bytes, max_connections, options.receive_seconds, options.keep_alive
        ),
        options.receive_seconds,
    )
    stop = _start_watcher(versions, options.poll, follower)
    if drift is not None:
        drift.start(stop)
    http_port = http_socket.getsockname()[1]
    LOG.info("serving model '%s': http://%s:%d, gRPC %s:%d", name, host, http_port, host, grpc_port)
    # What is there now stays as long as the server: a collection need not walk through it, while
    # every thread waits.
    gc.collect()
    gc.freeze()
    # uvicorn raises SIGTERM again when it is done; gRPC still has to end then.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(_http_config(ranker, admission, http, options)).run(sockets=[http_socket])
    finally:
        stop.set()
        grpc_server.stop(_GRACE).wait()
        admission.close()


def _log_with_times() -> None:
    """Prints times before the server's log lines, and those of other libraries."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        LOG.addHandler(handler)
    LOG.propagate = False
    keep_log_short()


def _max_connections(wanted: int) -> int:
    """Divides the files that the process may open between HTTP, gRPC and itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 2 * wanted + 1024
    if soft < enough:
        soft = min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    free = soft - len(os.listdir("/proc/self/fd")) - _OWN_FILES
    if free < 2 * wanted:
        LOG.warning(
            "%d connections of HTTP and as many of gRPC are accepted, not %d: the limit of open "
            "files (ulimit -n) is %d",
            max(free // 2, 1),
            wanted,
            soft,
        )
    return max(min(wanted, free // 2), 1)


def _http_config(
    ranker: Ranker, admission: Admission, limits: ConnectionLimits, options: ServeOptions
) -> uvicorn.Config:
    connection: Any = partial(HttpConnection, limits=limits)
    return uvicorn.Config(
        build_app(ranker, options.max_bytes, admission),
        loop="asyncio",
        http=connection,
        ws="none",
        backlog=_ACCEPTED_AT_ONCE,
        log_config=None,
        log_level="error",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE,
        timeout_keep_alive=options.keep_alive,
    )


def _listen(host: str, port: int) -> Listener:
    try:
        [address, *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, socket_address = address
        listening = Listener(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(socket_address)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port} for HTTP: {error}") from error
    return listening


def _fetch_first(follower: Follower) -> None:
    """Fetches the published version; where that fails, the one in the cache serves."""
    LOG.info("following %s", follower.store.name)
    try:
        follower.update()
    except (ValueError, OSError) as error:
        if not follower.current.exists():
            raise
        LOG.error("%s; the version in %s serves", error, follower.root)


def _start_watcher(
    versions: ModelVersions, seconds: float, follower: Follower | None = None
) -> threading.Event:
    """Starts the thread that scans for versions; the event that is returned stops it."""
    stop = threading.Event()
    if seconds > 0:
        arguments = (versions, seconds, stop, follower)
        threading.Thread(target=_watch, args=arguments, daemon=True).start()
    return stop


def _watch(
    versions: ModelVersions, seconds: float, stop: threading.Event, follower: Follower | None
) -> None:
    """Scans again and again, in a thread of its own: a file system may leave a read hanging."""
    while not stop.wait(seconds):
        fetched = follower and follower.num_bytes
        scan = threading.Thread(target=_scan, args=(versions, follower), daemon=True)
        scan.start()
        scan.join(seconds)  # with the wait before it two polls
        start = time.monotonic()
        while scan.is_alive() and not stop.is_set():
            if fetched == (fetched := follower and follower.num_bytes):  # no download that goes on
                versions.metrics.loads.labels("stalled").inc()
                waited = seconds + time.monotonic() - start
                name = follower.store.name if follower else versions.root
                LOG.error(
                    "%s is being read for %.0f s; what is loaded goes on serving", name, waited
                )
            scan.join(_STALLED_SECONDS)


def _scan(versions: ModelVersions, follower: Follower | None) -> None:
    if follower is not None:
        _fetch(versions, follower)
    try:
        versions.refresh()
    except Exception:  # loaded versions go on serving, and so does the watcher
        versions.metrics.loads.labels("refused").inc()
        LOG.exception("looking at %s failed", versions.root)


def _fetch(versions: ModelVersions, follower: Follower) -> None:
    """Fetches what was published; an error is told once until an update succeeds again."""
    try:
        follower.update(versions.in_use())
    except Exception as error:  # loaded versions go on serving, and so does the watcher
        serving = versions.serving.manifest.version
        state = ("not_fetched", follower.num_updates, str(error))
        versions.report("not_fetched", state, f"{error}; version {serving} goes on serving")
        if not isinstance(error, ValueError | OSError):
            LOG.exception("following %s failed", follower.store.name)
