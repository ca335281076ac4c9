"""The hub is closed in this process unless a command asks for it, or the user decided otherwise.

close_by_default()          # at the start of the process, before the hub's libraries load
with opened():              # what was asked to download does so in here
    ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SWITCH = "HF_HUB_OFFLINE"
_ours = False


def close_by_default() -> None:
    """Set HF_HUB_OFFLINE for this process and its children, unless the user has set it."""
    global _ours
    if _SWITCH not in os.environ:
        os.environ[_SWITCH] = "1"
        _ours = True


def offline_by_default() -> bool:
    """Whether the hub is off because `close_by_default` said so, not because the user did."""
    return _ours


@contextmanager
def opened() -> Iterator[None]:
    """Let the hub's libraries use the network inside, if it was us who closed it. A user's own setting stands."""
    if not _ours:
        yield
        return
    _set(offline=False)
    try:
        yield
    finally:
        _set(offline=True)


def _set(offline: bool) -> None:
    """In the environment, which the libraries read when they load, and in those that are loaded already."""
    os.environ[_SWITCH] = "1" if offline else "0"
    readers = ["huggingface_hub.constants"]
    if "HF_DATASETS_OFFLINE" not in os.environ:  # the user's word for `datasets` alone
        readers.append("datasets.config")
    for name in readers:
        if name in sys.modules:
            setattr(sys.modules[name], _SWITCH, offline)
