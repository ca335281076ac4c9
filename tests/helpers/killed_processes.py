"""A process that ends at its k-th change of the disk, as one that is killed: no clean-up of its code runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from shepherd.store.disk import PrivateDisk

CHANGES = ("make_folder", "write", "append", "rename", "remove", "remove_folder")


def killed_at(step: int, work: Callable[[], object], torn: bool) -> bool:
    """Run `work` in a child process that ends before its change `step` from 0; torn: in its write `step`, with half of
    the file written. Whether it came so far."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(name: str) -> Callable[..., None]:
            real = getattr(PrivateDisk, name)

            def change(self: PrivateDisk, path: Path, *more: object) -> None:
                nonlocal left
                if left == 0:
                    if torn:
                        path.write_bytes(bytes(more[0])[: len(bytes(more[0])) // 2])
                    os._exit(9)
                left -= 1
                real(self, path, *more)

            return change

        try:
            with mock.patch.multiple(PrivateDisk, **{name: counted(name) for name in (["write"] if torn else CHANGES)}):
                work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), "the work failed before it was killed"
    return code == 9


def each_step(work: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """The steps of `work` one after another, each after `prepare` and with the process killed there, twice."""
    for torn in False, True:
        step = 0
        while True:
            prepare()
            if not killed_at(step, work, torn):
                assert step > 0, "the work changes the disk"
                break
            yield step
            step += 1
