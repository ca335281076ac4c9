"""Failures of the disk that a person can repair: the reason and the remedy."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping

REASONS: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the disk", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("a file may not grow further", "raise the limit on file sizes (ulimit -f) or take another disk"),
    errno.EIO: ("the disk reports an input/output error", "check the disk (dmesg), copy the run to another if need be"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.ESTALE: ("the network disk is gone", "bring it back"),
    errno.EISDIR: ("a folder is where a file belongs", "move it away"),
    errno.EACCES: ("permission denied", "give yourself the right to write there"),
}
"""{errno: (reason, remedy)}."""


def error_number(error: Exception) -> int | None:
    """The errno of a failure; of an exception from native code, such as a tokenizer's on a full disk, that in its text.

    None where there is none.
    """
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None
