"""Offline by default: hub libraries may use the network only inside `opened`, unless the user decided otherwise.

close_by_default()          # at the start of the process, before the hub's libraries load
with opened():              # downloads happen in here
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
    """Whether the hub was turned off by `close_by_default`, not by the user."""
    return _ours


@contextmanager
def opened() -> Iterator[None]:
    """Let the hub's libraries use the network inside the block, unless the user turned it off."""
    if not _ours:
        yield
        return
    _set(offline=False)
    try:
        yield
    finally:
        _set(offline=True)


def _set(offline: bool) -> None:
    """Set the switch in the environment, for libraries yet to load, and in those already loaded."""
    os.environ[_SWITCH] = "1" if offline else "0"
    readers = ["huggingface_hub.constants"]
    if "HF_DATASETS_OFFLINE" not in os.environ:  # the user's setting for `datasets` alone
        readers.append("datasets.config")
    for name in readers:
        if name in sys.modules:
            setattr(sys.modules[name], _SWITCH, offline)
