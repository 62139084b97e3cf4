"""Globs: paths with wildcards, such as `log/day=2024-05-*`."""

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from mail_torchrec.utils.uris import is_uri

_WILDCARD = re.compile(r"[*?\[]")


def split_glob(path: str) -> tuple[str, str]:
    """Splits a path or URI before its first component with a wildcard.

    ``*``, ``?`` and ``[...]`` stand for a part of one name, ``**`` for any number of folders. In a
    URI a question mark begins its options, which stay with the first part.

    Returns:
        The path in front, and the pattern of what is below it, empty where there is none.
    """
    end, start = len(path), 0
    if is_uri(path):
        options = re.search(r"[?#]", path)
        end = options.start() if options else end
        authority = path.index("://") + 3
        start = path.find("/", authority, end)
        if start < 0:
            return path, ""
    if (wildcard := _WILDCARD.search(path, start, end)) is None:
        return path, ""
    slash = path.rfind("/", 0, wildcard.start())
    base = path[:slash] if slash > start else path[: slash + 1]
    return (base or ".") + path[end:], path[slash + 1 : end]


def matches_glob(path: str, pattern: str) -> bool:
    """Returns whether a path, or a folder above it, matches a pattern.

    Args:
        path: relative to where the pattern begins.
        pattern: of :func:`split_glob`; everything matches an empty one.
    """
    return _matches(PurePosixPath(path).parts, PurePosixPath(pattern).parts)


def _matches(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return True
    if patterns[0] == "**":
        return _matches(names, patterns[1:]) or (bool(names) and _matches(names[1:], patterns))
    if not names or not fnmatchcase(names[0], patterns[0]):
        return False
    return _matches(names[1:], patterns[1:])
