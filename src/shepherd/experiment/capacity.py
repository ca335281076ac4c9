"""Whether memory and disk are enough for a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import ResourceError

MARGIN = 2.0
"""A run is refused when its estimate is this many times what is free. Estimates of memory were measured at 0.94 (the
demo) to 1.7 (a tiny model, where nearly all is Python itself) of the real use: at 2 no run that works is refused.
"""

_CGROUP = Path("/sys/fs/cgroup")


def fits_here(plan: Mapping[str, Any], out: Path | None, times: float = 1.0) -> None:
    """Raise ResourceError when the plan needs more than `times` the memory or disk that is free.

    out: where the run directory is made; None where nothing is written.
    """
    import psutil

    from shepherd.report.wording import size

    memory = available_memory()
    if plan.get("device", "cpu") == "cpu" and plan.get("memory_bytes", 0) > times * memory:
        raise ResourceError(
            f"the run takes about {size(plan['memory_bytes'])} of memory, {size(memory)} are free",
            hint="shepherd check RECIPE --quick; or lower training.tokens_per_pass and training.clients_at_once, "
            "set training.gradient_checkpointing = true, or take a smaller model.base",
        )
    if out is None:
        return
    disk = psutil.disk_usage(str(check_place(out))).free
    if plan.get("disk_bytes", 0) > times * disk:
        raise ResourceError(
            f"the run takes about {size(plan['disk_bytes'])} on the disk of {out}, {size(disk)} are free",
            hint="lower checkpoints.keep or lora.r, or choose another place with --out",
        )


def available_memory() -> float:
    """Bytes that this process may still take: what is free, swap too, within the limit of its container."""
    import psutil

    free = psutil.virtual_memory().available + psutil.swap_memory().free
    return min(free, _container_memory(_CGROUP))


def _container_memory(cgroup: Path) -> int | float:
    """What a container's limit leaves (version 2 or 1), pages of files that it can drop included; inf without one."""
    two = (cgroup / "memory.max").is_file()
    names = ("memory.max", "memory.current", "memory.stat", "inactive_file") if two else (
        "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"
    )  # fmt: skip
    try:
        limit, used, stat = ((cgroup / name).read_text() for name in names[:3])
        droppable = dict(line.split() for line in stat.splitlines()).get(names[3], 0)
        return max(0, int(limit) - int(used) + int(droppable))
    except (OSError, ValueError):  # no container, or "max"
        return float("inf")


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:  # a drive of Windows need not be there
        folder = folder.parent
    return folder


def check_place(out: Path) -> Path:
    """The folder that is there, `out` or the nearest above it. Raises ResourceError where no run can be made in it."""
    place = nearest_existing(out)
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ResourceError(
            f"no run directory can be made in {out}: {place} is no folder that may be written to",
            hint="choose another place with --out",
        )
    return place
