"""How much one member may send, which is nothing to the others."""

from __future__ import annotations

from shepherd.federation.transports.guard import BURST, OPEN, PER_SECOND, SETTLED, STALE, Guard


def test_messages_above_a_rate_are_dropped_and_others_come_through():
    guard = Guard(100)
    assert [guard.admits("a", 0.0) for _ in range(int(BURST) + 5)] == [True] * int(BURST) + [False] * 5
    assert guard.admits("b", 0.0)
    assert sum(guard.admits("a", 1.0) for _ in range(1000)) == PER_SECOND
    assert sum(guard.admits("a", 1000.0) for _ in range(1000)) == BURST


def test_two_messages_of_the_largest_size_may_be_on_their_way():
    guard, held = Guard(100), {1, 2}
    collects = lambda member, stream, size, now=0.0: guard.collects(member, stream, size, now, held.__contains__)  # noqa: E731
    assert not collects("a", 1, 100)
    assert not collects("a", 2, 100)
    assert collects("a", 3, 1) == "too much is on its way"
    assert not collects("a", 1, 100)  # its next part
    assert not collects("b", 1, 100)
    assert collects("a", 3, 100, SETTLED + 1) == "too much is on its way"  # whatever was said of their end
    held.remove(1)
    assert not collects("a", 3, 100, SETTLED + 1)


def test_a_message_that_our_process_has_counts_no_more():
    guard, held = Guard(100), {1, 2}
    collects = lambda stream, now=0.0: guard.collects("a", stream, 100, now, held.__contains__)  # noqa: E731
    assert not collects(1) and not collects(2)
    guard.done("b", 1)
    guard.done("a", 7)
    assert collects(3) == "too much is on its way"
    guard.done("a", 1)
    assert not collects(3)
    assert collects(1) == "too much is on its way", "its stream anew is another message"


def test_a_message_counts_for_a_moment_though_the_engine_does_not_hold_it_yet():
    guard, nothing = Guard(100), lambda stream: False
    assert not any(guard.collects("a", number, 1, 0.0, nothing) for number in range(OPEN))
    assert guard.collects("a", OPEN, 1, SETTLED, nothing) == "too many are on their way"
    assert not guard.collects("a", OPEN, 1, SETTLED + 0.1, nothing)


def test_each_message_counts_at_its_first_part_whatever_its_number():
    guard, nothing = Guard(100), lambda stream: False
    codes = [guard.collects("a", number, 0, 100.0 + number / 1e3, nothing) for number in range(300)]
    assert "there are too many" not in codes[: int(BURST)]
    assert codes[-1] == "there are too many"


def test_a_message_that_stopped_coming_is_to_be_dropped():
    guard, held = Guard(100), lambda stream: True
    assert not guard.collects("a", 1, 100, 0.0, held)
    assert not guard.collects("a", 2, 100, STALE, held)
    assert guard.stale(STALE) == []
    assert guard.collects("a", 3, 100, STALE, held)
    assert guard.stale(STALE + 1) == [("a", 1)]
    assert not guard.collects("a", 3, 100, STALE + 1, held)
