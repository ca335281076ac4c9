"""Availability traces."""

from __future__ import annotations

import json

import pytest

from pools import CLIENTS, JSON, pool, trace
from shepherd.clients.pool import Draw
from shepherd.clients.selection import build_selection
from shepherd.errors import UsageError
from shepherd.rng import stream

CSV = "client,from,to\nc00,1,2\nc00,4,\nc02,3,3\nc01,9,9\n"


@pytest.mark.parametrize(
    "text, name", [(JSON, "t.json"), (CSV, "t.csv"), ("\ufeff" + CSV.replace("\n", "\r\n"), "t.CSV")]
)
def test_only_clients_available_in_the_round_are_drawn(text, name, tmp_path):
    select = build_selection("availability", {"trace": trace(tmp_path, text, name), "then": "everyone"})
    expected = {1: ("c00",), 2: ("c00",), 3: ("c02",), 4: ("c00",), 99: ("c00",)}
    for number, clients in expected.items():
        given = pool(number=number, clients=("c00", "c01", "c02"))
        assert select.draw(given, 3, stream(0, "select", number)).clients == clients


def test_a_star_in_a_trace_applies_to_all_other_clients(tmp_path):
    select = build_selection("availability", {"trace": trace(tmp_path, '{"c00": [[2, 2]], "*": [[1, 1]]}')})
    assert select.draw(pool(number=1), 20, stream(0, "s")).clients == CLIENTS[1:]
    assert select.draw(pool(number=2), 20, stream(0, "s")).clients == ("c00",)
    empty = select.draw(pool(number=3), 20, stream(0, "s"))
    assert empty == Draw(()) and select.may_be_empty
    select.check(CLIENTS, 5)


def test_weights_are_renormalised_over_the_available_clients(tmp_path):
    path = trace(tmp_path, json.dumps({c: [[1, None]] for c in CLIENTS[:10]} | {"*": []}))
    select = build_selection("availability", {"trace": path, "then": "poisson", "q": 0.5})
    assert select.fixed and select.weighs and select.goes_with == ("examples", "uniform")
    draw = select.draw(pool("uniform"), 5, stream(0, "s"))
    assert set(draw.clients) <= set(CLIENTS[:10])
    assert list(draw.weights.values()) == pytest.approx([1 / (0.5 * 10)] * len(draw.clients))


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("{", "t.json", "t.json, line 1 column 2 is not valid JSON"),
        ("[1]", "t.json", "holds a list, not a table of clients"),
        ('{"a": 3}', "t.json", "client 'a': expected a list of [from, to], got a number"),
        ('{"a": [[1, 2, 3]]}', "t.json", "client 'a', interval 1: expected [from, to], got [1, 2, 3]"),
        ('{"a": [[1, 2], [3, 2]]}', "t.json", "interval 2: an interval goes from a round ≥ 1"),
        ('{"a": [[0, 2]]}', "t.json", "got 0 to 2"),
        ('{"a": [[1.5, 2]]}', "t.json", "rounds are whole numbers, got 1.5 to 2"),
        ('{"a": [[true, 2]]}', "t.json", "rounds are whole numbers, got True to 2"),
        ('{"a": [], "a": []}', "t.json", "names the client 'a' twice"),
        ("{}", "t.json", "names no client"),
        ("[" * 100_000, "t.json", "is not valid JSON"),
        ("client,start,end\n", "t.csv", "line 1: the columns are client, from, to, got client, start, end"),
        ("client,from,to\na,1,2\na,x,3\n", "t.csv", "line 3: rounds are whole numbers, got 'x' to 3"),
        ("client,from,to\na,1\n", "t.csv", "line 2: expected 3 columns, got 2"),
        ("client,from,to\na,,3\n", "t.csv", "line 2: rounds are whole numbers, got None to 3"),
        ("", "t.csv", "got nothing"),
    ],
)
def test_a_broken_trace_is_refused_with_the_position_and_the_format(text, name, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        build_selection("availability", {"trace": trace(tmp_path, text, name)})
    assert message in caught.value.message and caught.value.hint


def test_a_missing_or_binary_trace_is_refused(tmp_path):
    trace(tmp_path, JSON, "phones.json")
    with pytest.raises(UsageError, match=r"not found: .*Did you mean 'phones.json'"):
        build_selection("availability", {"trace": str(tmp_path / "phone.json")})
    with pytest.raises(UsageError, match="cannot be read"):
        build_selection("availability", {"trace": str(tmp_path)})
    (tmp_path / "t.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        build_selection("availability", {"trace": str(tmp_path / "t.json")})


def test_a_trace_of_other_clients_is_refused_with_their_names(tmp_path):
    select = build_selection("availability", {"trace": trace(tmp_path, '{"c000": [[1, 2]]}')})
    with pytest.raises(UsageError, match=r"names 'c000', which is not a client. Did you mean 'c00'"):
        select.check(CLIENTS, 5)
    select = build_selection("availability", {"trace": trace(tmp_path, JSON)})
    with pytest.raises(UsageError, match="has no entry for 'c03' and 16 more") as caught:
        select.check(CLIENTS, 5)
    assert '"*": [[1, null]]' in caught.value.hint
