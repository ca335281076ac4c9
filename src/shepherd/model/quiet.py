"""Calls into transformers without its terminal output: no progress bars, and errors cut to one line."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context without progress bars, tables or warnings of transformers."""
    import tqdm
    from transformers.utils import logging

    was_on, level, start = logging.is_progress_bar_enabled(), logging.get_verbosity(), tqdm.tqdm.__init__
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    tqdm.tqdm.__init__ = functools.partialmethod(start, disable=True)  # The unpacking of GGUF draws its own.
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = start
        logging.set_verbosity(level)
        if was_on:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__
