"""How much one member may send, which is nothing to the others."""

from __future__ import annotations

from shepherd.federation.transports.guard import BURST, PER_SECOND, STALE, Guard


def test_messages_above_a_rate_are_dropped_and_others_come_through():
    guard = Guard(100)
    assert [guard.admits("a", 0.0) for _ in range(int(BURST) + 5)] == [True] * int(BURST) + [False] * 5
    assert guard.admits("b", 0.0)
    assert sum(guard.admits("a", 1.0) for _ in range(1000)) == PER_SECOND
    assert sum(guard.admits("a", 1000.0) for _ in range(1000)) == BURST


def test_two_messages_of_the_largest_size_may_be_on_their_way():
    guard = Guard(100)
    assert guard.collects("a", "one", 100, 40, 0.0)
    assert guard.collects("a", "two", 100, 40, 0.0)
    assert not guard.collects("a", "three", 1, 1, 0.0)
    assert guard.collects("a", "one", 100, 40, 0.0)  # its next part
    assert guard.collects("b", "one", 100, 40, 0.0)
    assert not guard.collects("a", "three", 100, 40, 0.0)
    assert guard.collects("a", "one", 100, 20, 0.0)
    assert guard.collects("a", "three", 100, 40, 0.0)


def test_messages_whose_last_part_overtakes_another_one_leave_nothing_on_the_way():
    guard = Guard(100)
    for stream in range(10):
        assert all(guard.collects("a", str(stream), 100, part, 0.0) for part in (40, 20, 40)), stream


def test_a_message_that_stopped_coming_is_forgotten():
    guard = Guard(100)
    assert guard.collects("a", "one", 100, 40, 0.0)
    assert guard.collects("a", "two", 100, 40, STALE)
    assert not guard.collects("a", "three", 100, 40, STALE)
    assert guard.collects("a", "three", 100, 40, STALE + 1)
