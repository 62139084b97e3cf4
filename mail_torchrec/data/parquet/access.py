"""Errors of reading files: no access, no connection, or damage."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from mail_torchrec.utils.current_read import publish_read
from mail_torchrec.utils.uris import redact

_CREDENTIALS = (
    "check the credentials (for s3 in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN "
    "or a profile, or key:secret@ in the URI, percent-encoded; saved configurations hold none) and "
    "what they may read or write"
)
_STORES = {
    r"configured region|PermanentRedirect|MovedPermanently|HTTP status 30\d|"
    r"AuthorizationHeaderMalformed|resolving region": (
        "name the bucket's region (region=... among the URI's options), or the store's address "
        "(endpoint_override=HOST:PORT)"
    ),
    r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|ContainerNotFound": (
        "correct the bucket's name, or the store's address (endpoint_override)"
    ),
    r"NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT|UNAVAILABLE|[Tt]imed? ?out|[Rr]esolve|"
    r"[Cc]onnect(ion|ing)? (refused|reset|error|to)|[Ff]ailed to connect": (
        "check the network and the store's address (endpoint_override=HOST:PORT and scheme=http or "
        "https among the URI's options)"
    ),
    r"ACCESS_DENIED|AccessDenied|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|"
    r"EXPIRED_TOKEN|ExpiredToken|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION|"
    r"PERMISSION_DENIED|UNAUTHENTICATED|HTTP status 40[13]|\b40[13]\b|[Cc]redential|Forbidden|"
    r"AuthorizationFailure|AuthenticationFailed|Permission denied: user": _CREDENTIALS,
    r"libjvm|libhdfs": "reading from hdfs needs Java and Hadoop: set JAVA_HOME and HADOOP_HOME",
    r"AWS Error|google::cloud|Azure|HDFS": (
        "this is the store's answer, and says nothing about the file; " + _CREDENTIALS
    ),
}
"""Words in the errors of object stores and HDFS, and what to do about each; the first counts."""


@contextmanager
def reading(file: str, row_group: int | None = None) -> Iterator[None]:
    """Names the file in errors of reading it, and tells damage from a lack of access.

    Meanwhile the file is published as the one that this process reads (``utils/current_read.py``).

    Args:
        file: path or URI for the message, without credentials.
        row_group: number of the row group that is read; None for more of the file, or its footer.

    Raises:
        ValueError: an error within.
    """
    try:
        with publish_read(file if row_group is None else f"{file}, row group {row_group}"):
            yield
    except Exception as error:  # a file system of fsspec raises errors of any kind
        raise unreadable_file(file, error) from error


def unreadable_file(file: str, error: Exception) -> ValueError:
    """Makes the error to raise where a file or folder cannot be read."""
    text = redact(str(error).partition("\n")[0]) or type(error).__name__
    if (advice := store_advice(error)) is not None:
        return ValueError(f"{file} cannot be read: {text}; {advice}")
    return ValueError(
        f"{file} cannot be read as Parquet (truncated, damaged, another format?): {text}; write "
        "it anew or take it out"
    )


def store_advice(error: Exception) -> str | None:
    """Returns what to do about an error; None for damage.

    Damage found by Arrow's reader is an ArrowInvalid, or an OSError that no system call gave.
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory for it: write smaller row groups"
    if isinstance(error, NotImplementedError):
        return "this version of Arrow cannot read it: write it anew with plainer settings"
    if isinstance(error, FileNotFoundError):
        return "it is not there (any more): do not change data that is being read"
    if isinstance(error, PermissionError):
        return (
            "permission is missing: let this user read the file (r) and enter and list the folders "
            "above it (r and x)"
        )
    stores = (advice for words, advice in _STORES.items() if re.search(words, str(error)))
    if isinstance(error, pa.ArrowInvalid):
        return None
    if (advice := next(stores, None)) is not None:
        return advice
    of_system = isinstance(error, OSError) and error.errno is not None
    if of_system or not isinstance(error, OSError | pa.ArrowException):
        return "the system or the store could not give it: try again, or look after that error"
    return None
