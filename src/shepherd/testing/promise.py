"""The one way in which a promise is found broken: an AssertionError with the part, the promise and the sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def promise(holds: bool, part: str, words: str, where: str = "") -> None:
    """Raise AssertionError, "<part>: <words> (<where>)", unless the promise holds."""
    if not holds:
        raise AssertionError(f"{part}: {words}{f' ({where})' if where else ''}")


def global_generator() -> bytes:
    """The state of numpy's global generator, which no part may draw from."""
    state = np.random.get_state(legacy=False)
    return state["state"]["key"].tobytes() + repr((state["state"]["pos"], state["gauss"])).encode()


def attempt(work: Callable[[], Any], part: str, where: str = "") -> Any:
    """The result of `work`; AssertionError with the part and the sizes where it raises."""
    try:
        return work()
    except AssertionError:  # a promise, with its words
        raise
    except Exception as error:  # a part from outside can raise anything
        raise AssertionError(
            f"{part}: failed, {type(error).__name__}: {error}{f' ({where})' if where else ''}"
        ) from error
