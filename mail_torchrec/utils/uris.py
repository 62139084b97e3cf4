"""URIs of data: parts below them, and their credentials, which nothing may show or store.

A URI may carry credentials (``s3://key:secret@bucket/data?region=...``). Arrow's file systems need
them, while messages, logs and saved configurations get the URI without them.
"""

import re
from urllib.parse import unquote

_URI = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.S
)
_URI_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*://(?:[^\s'\"<>]|'(?=[\w%]))*")
_SECRET_OPTION = re.compile(
    r"key|secret|token|passw|pwd|^sig$|signature|cred(?!.*kind)|auth(?!ority)|sas", re.I
)
_PORT = re.compile(r"\[.*\](:\d*)?|[^:]*(:\d*)?")
_USER_IS_AN_ADDRESS = {"abfs", "abfss", "gs", "hdfs", "viewfs", "ftp", "sftp", "ssh", "smb"}
"""Schemes whose user is no credential: a container, an account, a login of an own password."""


def is_uri(path: str) -> bool:
    """Returns whether a path is a URI."""
    return "://" in path


def join_path(root: str, part: str) -> str:
    """Appends a relative path to a folder or URI, in front of the URI's options.

    An absolute path or URI is returned as it is.

    Args:
        root: folder or URI; empty for the current folder.
        part: a path below it.
    """
    if not root or part.startswith("/") or is_uri(part):
        return part
    end = len(root)
    if is_uri(root) and (options := re.search(r"[?#]", root)):
        end = options.start()
    return f"{root[:end].rstrip('/')}/{part}{root[end:]}"


def without_credentials(uri: str) -> str:
    """Takes user, password and secret options out of a URI; any other path is returned unchanged.

    With what is left, the same data is found where the environment has the credentials.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        return uri
    scheme, authority = match["scheme"], match["authority"]
    user, at, host = authority.rpartition("@")
    if not at and not _PORT.fullmatch(authority):
        # A "/", "?" or "#" that is not percent-encoded within a secret ends the authority too soon,
        # and pydantic's messages cut long values.
        _, _, tail = uri.rpartition("@")
        return f"{scheme}://{tail if '@' in uri else '***'}"
    name = user.partition(":")[0]
    keeps_user = name and scheme.lower().removeprefix("fsspec+") in _USER_IS_AN_ADDRESS
    host = f"{name}@{host}" if keeps_user else host
    return f"{scheme}://{host}{match['path']}{_public(match['rest'])}"


def redact(text: str) -> str:
    """Takes the credentials out of all URIs in a text."""
    return _URI_IN_TEXT.sub(lambda match: without_credentials(match[0]), text)


def _public(rest: str) -> str:
    """Takes the secret options out of what follows a URI's path."""
    options, hash_sign, fragment = rest.partition("#")
    kept = [option for option in options.removeprefix("?").split("&") if not _is_secret(option)]
    question = "?" if any(kept) else ""
    # What follows a "#" may be the end of a secret in which it is not percent-encoded.
    end = "" if len(kept) <= options.count("&") else hash_sign + fragment
    return question + "&".join(kept) + end


def _is_secret(option: str) -> bool:
    name, _, value = option.partition("=")
    # A proxy's URI may have a password of its own.
    return bool(_SECRET_OPTION.search(unquote(name))) or "@" in unquote(value)
