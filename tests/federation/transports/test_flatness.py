"""The criterion of a soak, and what an engine's process does so that it is met."""

from __future__ import annotations

import gc

import pytest

from flatness import FEWEST, Held, not_flat
from shepherd.federation.transports.tidying import LARGE, Tidier, trim

FLAT = [Held(250.0, 13, 45)] * 60


def test_a_process_that_goes_up_and_down_is_flat():
    assert not_flat({"engine": [Held(200.0 + 60 * (n % 2), 13 + n % 2, 40 + n % 10) for n in range(60)]}) == []


def test_what_a_process_takes_at_its_start_does_not_count():
    assert not_flat({"engine": [Held(90.0, 9, 4)] * 10 + FLAT}) == []


@pytest.mark.parametrize(
    ("leak", "said"),
    [
        (lambda n: Held(100.0 + n, 13, 45), "engine: mib from 122"),
        (lambda n: Held(100.0, 13 + n // 10, 45), "engine: descriptors from"),
        (lambda n: Held(100.0, 13, 45 + n), "engine: threads from"),
        (lambda n: Held(100.0 if n < 44 else 140.0, 13, 45), "engine: mib from 100 to 140, above 20 more"),
    ],
)
def test_what_grows_is_named(leak, said):
    values = [leak(n) for n in range(60)]
    found = not_flat({"site": FLAT, "engine": values}, Held(20.0, 2, 16))
    assert len(found) == 1 and found[0].startswith(said)
    assert not_flat({"site": FLAT, "engine": values[:1] * 60}, Held(20.0, 2, 16)) == []


def test_a_soak_that_is_too_short_says_nothing():
    with pytest.raises(ValueError, match="say nothing"):
        not_flat({"engine": FLAT[: FEWEST - 1]})


def test_an_engine_frees_messages_as_they_end_and_gives_memory_back_once_none_does():
    done = []
    tidier = Tidier(lambda: done.append("collect"), lambda: done.append("trim"))
    tidier.note(LARGE - 1)
    tidier.tidy()
    assert done == []
    for _ in range(2):
        tidier.note(LARGE)
        tidier.note(0)
        tidier.tidy()
    assert done == ["collect", "collect"]
    tidier.tidy()
    tidier.tidy()
    assert done == ["collect", "collect", "trim"]


def test_a_message_that_refers_to_itself_is_freed():
    class Task:
        def __init__(self):
            self.data, self.handle = bytearray(LARGE), self

    tidier = Tidier()
    gc.disable()
    try:
        tidier.begin()
        Task()
        assert any(type(each) is Task for each in gc.get_objects())
        tidier.note(LARGE)
        tidier.tidy()
        assert not any(type(each) is Task for each in gc.get_objects())
    finally:
        gc.unfreeze()
        gc.enable()


def test_trimming_is_left_out_where_the_library_has_no_such_function(monkeypatch):
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    trim()
