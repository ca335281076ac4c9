"""Messages between two processes of one machine: heads of JSON and bytes, and the end of either."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection

import pytest

from network_sites import until
from shepherd.federation.transports.bridge import MOST_HEAD_BYTES, Bridge, Gone, pair


def bridges(one, other, threads=0):
    ends = pair()
    return Bridge(ends.ours, one, threads), Bridge(Connection(ends.theirs.detach()), other, threads)


def echo(head, data):
    return {"you said": head["say"], "bytes": len(data)}


def test_calls_of_both_sides_are_answered_with_their_own_answers():
    one, other = bridges(echo, echo)
    answers = {}

    def call(bridge, number):
        answers[bridge, number] = bridge.call({"say": number}, bytes(number * 1000), timeout=10)

    threads = [threading.Thread(target=call, args=[bridge, n]) for n in range(20) for bridge in (one, other)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for (_, number), answer in answers.items():
        assert (answer["you said"], answer["bytes"]) == (number, number * 1000)
    one.close()


def test_a_large_message_arrives_whole():
    received = []
    one, other = bridges(echo, lambda head, data: received.append((head, data)))
    data = bytes(range(256)) * 40_000
    one.post({"do": "keep"}, data)
    until(lambda: received)
    assert received == [({"do": "keep"}, data)]
    other.close()


def test_a_slow_answer_keeps_no_other_waiting_where_there_are_threads():
    def slow(head, data):
        time.sleep(head["say"])
        return {"after": head["say"]}

    one, other = bridges(echo, slow, threads=4)
    thread = threading.Thread(target=one.call, args=[{"say": 0.5}], kwargs={"timeout": 5})
    thread.start()
    begin = time.monotonic()
    assert one.call({"say": 0.0}, timeout=5)["after"] == 0.0
    assert time.monotonic() - begin < 0.4
    thread.join()
    other.close()


def test_an_answer_that_does_not_come_is_an_error_in_time():
    one, other = bridges(echo, lambda head, data: time.sleep(0.3))
    with pytest.raises(TimeoutError):
        one.call({"say": 1}, timeout=0.05)
    other.close()


def test_the_end_of_one_side_is_seen_at_the_other_and_ends_its_calls():
    held = threading.Event()
    one, other = bridges(echo, lambda head, data: held.wait(5) and None)
    threading.Timer(0.1, other.close).start()
    with pytest.raises(Gone):
        one.call({"say": 1}, timeout=5)
    held.set()
    until(one.closed.is_set)
    with pytest.raises(Gone):
        one.post({"say": 2})


def test_bytes_that_are_not_a_head_end_the_bridge_and_nothing_is_unpickled(tmp_path):
    import os
    import pickle

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    for bad in (pickle.dumps(Harm()), b"x" * (MOST_HEAD_BYTES + 1)):
        ends = pair()
        bridge = Bridge(ends.ours, echo)
        theirs = Connection(ends.theirs.detach())
        with suppress(OSError):  # it may be closed already
            theirs.send_bytes(bad)
            theirs.send_bytes(b"")
        until(bridge.closed.is_set)
        theirs.close()
    assert not (tmp_path / "harm").exists()
