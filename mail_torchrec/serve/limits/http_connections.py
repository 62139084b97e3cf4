"""Bounded HTTP connections: their number, and the time that a request may take to arrive."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mail_torchrec.utils.logging import get_logger

LOG = get_logger("mail_torchrec.serve.connections")
BACKLOG = 2048
"""Connections that the system holds until they are accepted."""
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of the HTTP connections."""

    max_connections: int
    """Most open connections. One more takes the place of the connection that has been idle for the
    longest time, so an idle client shuts nobody out."""
    receive_seconds: float
    """Most seconds from a request's first byte (or from the connection's opening) to its last, and
    for a client to take what was written to it."""
    max_unread_bytes: int
    """Most bytes of responses that wait for clients to take them."""
    count_closed: Callable[[str], None]
    """Counts connections that the server closes, by reason: ``late``, ``idle``, ``unread``,
    ``no_room``."""
    open: "set[HttpConnection]" = field(default_factory=set)
    """Open connections."""


class HttpConnection(H11Protocol):
    """uvicorn's HTTP connection with a time limit for requests and a trace of its idleness.

    Args:
        limits: limits of the connections.
        uvicorn: arguments of uvicorn's class.
    """

    def __init__(self, *, limits: ConnectionLimits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.limits = limits
        self.last_used = 0.0
        self.num_requests = 0
        self._deadlines: dict[str, asyncio.TimerHandle] = {}

    @property
    def eviction_order(self) -> tuple[int, float]:
        """Sort key, the first to be closed first: without a request, idle, receiving, working."""
        if self.cycle is None or self.cycle.response_complete:
            return int(self.num_requests > 0), self.last_used
        return 2 if self.cycle.more_body else 3, self.last_used

    @property
    def is_working(self) -> bool:
        """True while a whole request is being answered."""
        return self.eviction_order[0] == 3

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time of the first request."""
        super().connection_made(transport)
        self.limits.open.add(self)
        self.last_used = self.loop.time()
        self._start("receive")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all times."""
        self.limits.open.discard(self)
        for name in list(self._deadlines):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes; the time runs until the request is whole."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Notes the end of a response; the bytes of the next request may be there already."""
        self.last_used = self.loop.time()
        self.num_requests += 1
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Starts the time in which the client has to read, if the bytes of all leave room."""
        super().pause_writing()
        self._start("write")
        unread = sum(one.transport.get_write_buffer_size() for one in self.limits.open)
        if unread > self.limits.max_unread_bytes:
            self.close("unread")

    def resume_writing(self) -> None:
        """Stops that time."""
        super().resume_writing()
        self._stop("write")

    def send_400_response(self, msg: str) -> None:
        """Refuses bytes that are no HTTP; after a response has begun there is none to send."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
            if self.cycle is not None:  # whose own response would be a second one
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        else:
            self.transport.abort()

    def close(self, reason: str) -> None:
        """Closes the connection, whatever is under way."""
        self.limits.open.discard(self)
        self.limits.count_closed(reason)
        self.transport.abort()

    def _should_upgrade(self) -> bool:
        return False  # without uvicorn's warnings, a line of log for each request

    def _watch(self) -> None:
        state = self.conn.their_state
        if state is h11.SEND_BODY or (state is h11.IDLE and self.conn.trailing_data[0]):
            self._start("receive")
        else:
            self._stop("receive")

    def _start(self, name: str) -> None:
        if name not in self._deadlines:
            seconds = self.limits.receive_seconds
            self._deadlines[name] = self.loop.call_later(seconds, self.close, "late")

    def _stop(self, name: str) -> None:
        if (deadline := self._deadlines.pop(name, None)) is not None:
            deadline.cancel()


class Listener(socket.socket):
    """Listening socket that makes room before it accepts a connection.

    asyncio logs each failure of ``accept``, thousands in a second once files run out.
    """

    limits: ConnectionLimits

    def open_for(self, limits: ConnectionLimits) -> None:
        """Starts to listen for connections within limits."""
        self.limits = limits
        self._accepted: list[socket.socket] = []
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self.setblocking(False)
        super().listen(BACKLOG)

    def listen(self, backlog: int = BACKLOG, /) -> None:
        """Leaves the backlog as it is: asyncio sets it to the number it accepts at once."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Accepts a connection.

        Raises:
            BlockingIOError: there is none, or first an idle one has to be closed.
        """
        if len(self._accepted) >= self.limits.max_connections:
            self._forget_closed()
        if len(self._accepted) >= self.limits.max_connections:
            self._make_room()
        try:
            accepted, address = super().accept()
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                LOG.error("no file is left for an HTTP connection: %s", error.strerror)
                self._forget_closed()
                self._make_room()
            raise
        self._accepted.append(accepted)
        return accepted, address

    def close(self) -> None:
        """Stops listening."""
        super().close()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _make_room(self) -> None:
        """Closes the connection idle for longest, or the new one where all are at work."""
        is_changing = len(self._accepted) > len(self.limits.open)  # some are opening or closing
        if not is_changing and (idle := most_idle(self.limits.open)) is not None:
            idle.close("idle")
        elif not is_changing:
            LOG.error(
                "all %d HTTP connections are at work, a new one is closed", len(self._accepted)
            )
            self.limits.count_closed("no_room")
            os.close(self._spare)  # a file for the new connection, if there is no other
            try:
                super().accept()[0].close()
            finally:
                self._spare = os.open(os.devnull, os.O_RDONLY)
        raise BlockingIOError(errno.EAGAIN, "room is being made")

    def _forget_closed(self) -> None:
        self._accepted = [one for one in self._accepted if one.fileno() >= 0]


def most_idle(connections: Iterable[HttpConnection]) -> HttpConnection | None:
    """Chooses the connection to close first; None where every one waits for its answer."""
    idle = [one for one in connections if not one.is_working]
    return min(idle, key=lambda one: one.eviction_order, default=None)
