"""Events of TensorBoard as bytes of an event file.

TensorBoard's own writer writes in a thread whose first error ends it; bytes can be written, and
written again, like any other record of a run.
"""

import os
import socket
import time
from collections.abc import Mapping
from io import BytesIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def event_file_name() -> str:
    """Returns the name of a new event file: TensorBoard reads those of one folder in time order."""
    return (
        f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
    )


def first_events(purge_step: int) -> bytes:
    """Encodes the head of an event file.

    Args:
        purge_step: points of earlier files from this step on are hidden.
    """
    now = time.time()
    start = SessionLog(status=SessionLog.START)
    return _encode(
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, step=purge_step, session_log=start),
    )


def scalar_events(values: Mapping[str, float], step: int) -> bytes:
    """Encodes numbers by name, as points of one step."""
    now = time.time()
    return _encode(
        *(
            Event(
                wall_time=now,
                step=step,
                summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]),
            )
            for name, value in values.items()
        )
    )


def _encode(*events: Event) -> bytes:
    buffer = BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()
