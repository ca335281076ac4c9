"""Every row belongs to exactly one client, by seed: promises that every registered partitioner joins."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shepherd import rng
from shepherd.data.names import safe_names
from shepherd.data.partition import (
    divide,
    hold_out,
    load_partition,
    partitioners,
    save_partition,
    short_categories,
    table,
)
from shepherd.data.sources import digest
from shepherd.errors import DataError, UsageError
from shepherd.testing import check_partitioner
from shepherd.testing.partitioners import check_division, counts_itself, examples
from shepherd.types import Example, Message

ALL = [*partitioners, "by_length_partitioner:by_length"]


@pytest.mark.parametrize("name", ALL)
def test_a_partitioner_keeps_the_promises_of_a_division(name):
    check_partitioner(name)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 90), clients=st.integers(1, 20), keys=st.integers(1, 6), seed=st.integers(0, 3))
def test_its_promises_hold_for_any_number_of_rows_clients_and_keys(name, rows, clients, keys, seed):
    check_division(name, rows, clients, keys, seed)


def test_only_files_sets_the_number_of_clients_alone():
    assert [name for name in ALL if counts_itself(name)] == ["files"]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 80),
    clients=st.integers(1, 40),
    categories=st.integers(1, 6),
    alpha=st.sampled_from([5e-324, 1e-9, 1e-3, 0.1, 1.0, 100.0, 1e9, 1.7e308]),
    balanced=st.booleans(),
    min_size=st.integers(1, 4),
)
def test_dirichlet_ends_for_any_size_and_alpha_with_the_minimum_kept_or_an_error(
    rows, clients, categories, alpha, balanced, min_size
):
    options = {"alpha": alpha, "balanced": balanced, "min_size": min_size}
    try:
        partition = divide(examples(rows, categories), "dirichlet", options, clients, 0)
    except DataError:
        assert clients * min_size > rows
        return
    sizes = [len(ids) for ids in partition.clients.values()]
    assert sum(sizes) == rows and min(sizes) >= min_size
    if balanced:
        assert max(sizes) - min(sizes) <= max(1, min_size)


def skew(partition, data):
    """Mean share of a client's largest category."""
    _, _, counts = table(partition, data)
    return float((counts.max(1) / counts.sum(1)).mean())


@pytest.mark.parametrize("balanced", [False, True])
def test_a_small_alpha_gives_each_client_nearly_one_category_and_a_large_one_the_mix_of_all(balanced):
    data = [
        Example(f"x:{i}", (Message("user", f"{i}"), Message("assistant", "a")), category=f"c{i % 4}")
        for i in range(2000)
    ]
    few, some, many, all_alike = (
        skew(divide(data, "dirichlet", {"alpha": alpha, "balanced": balanced}, 10, 0), data)
        for alpha in (0.01, 1.0, 1000.0, 1.7e308)
    )
    assert few > 0.8 and 0.3 < some < few
    assert max(many, all_alike) < 0.32  # 4 equal categories: 0.25 where all are alike


def test_shards_bound_the_categories_of_a_client():
    # 4 categories of 100 rows, 10 clients × 2 shards of 20: every shard lies inside one category.
    data = [Example(f"x:{i}", examples(1)[0].messages, category=f"c{i % 4}") for i in range(400)]
    _, _, counts = table(divide(data, "shards", {"per_client": 2}, 10, 0), data)
    assert ((counts > 0).sum(1) <= 2).all()
    assert (counts.sum(1) == 40).all() and set(counts.flatten().tolist()) <= {0, 20, 40}
    one = divide(data, "shards", {"per_client": 1}, 4, 0)
    assert skew(one, data) == 1.0
    with pytest.raises(DataError, match="3 clients × 2 shards are more than the 5 rows"):
        divide(data[:5], "shards", {}, 3, 0)


def test_by_key_makes_a_client_of_each_category_with_its_name_and_all_its_rows():
    data = examples(40)
    partition = divide(data, "by_key", {}, 0, 0)
    assert set(partition.clients) == {"c0", "c1", "c2", "c3"}
    assert all({e.category for e in data if e.id in ids} == {name} for name, ids in partition.clients.items())
    assert set(divide(data, "by_key", {"key": "source"}, 0, 0).clients) == {"site-0", "site-1", "site-2"}


def test_by_key_joins_the_smallest_keys_for_fewer_clients_and_splits_the_largest_for_more():
    data = examples(40)  # c0: 20, c1: 10, c2: 5, c3: 5
    fewer = divide(data, "by_key", {}, 2, 0)
    assert {n: len(ids) for n, ids in fewer.clients.items()} == {"c0": 20, "c1-c2-c3": 20}
    more = divide(data, "by_key", {}, 6, 0)
    assert {n: len(ids) for n, ids in more.clients.items()} == {
        "c0-1-of-2": 10, "c0-2-of-2": 10, "c1-1-of-2": 5, "c1-2-of-2": 5, "c2": 5, "c3": 5,
    }  # fmt: skip
    assert list(more.labels.values()) == ["c0 (1 of 2)", "c0 (2 of 2)", "c1 (1 of 2)", "c1 (2 of 2)", "c2", "c3"]
    assert fewer.label("c1-c2-c3") == "c1 + c2 + c3"


def test_by_source_and_files_need_rows_that_name_their_source():
    data = [*examples(4), Example("y:1", examples(1)[0].messages)]
    for name, options in (("by_key", {"key": "source"}), ("files", {})):
        with pytest.raises(DataError, match="1 of 5 rows have no source") as error:
            divide(data, name, options, 0, 0)
        assert "--columns source=" in error.value.hint
    with pytest.raises(DataError, match="3 files are 3 clients, not 2"):
        divide(examples(9), "files", {}, 2, 0)


def test_quantity_skew_follows_its_law():
    sizes = [len(ids) for ids in divide(examples(550), "linear", {}, 10, 0).clients.values()]
    assert sizes == [10 * (i + 1) for i in range(10)]
    sizes = [len(ids) for ids in divide(examples(1100), "power_law", {"exponent": 1.0}, 3, 0).clients.values()]
    assert sizes == [600, 300, 200]  # 1 : 1/2 : 1/3
    sizes = [len(ids) for ids in divide(examples(40), "power_law", {"exponent": 9.0}, 8, 0).clients.values()]
    assert sizes == [33, 1, 1, 1, 1, 1, 1, 1]
    sizes = [len(ids) for ids in divide(examples(40), "power_law", {"exponent": 0}, 8, 0).clients.values()]
    assert sizes == [5] * 8


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("dirichlet", {"alpha": 0}, "alpha must be a number above 0"),
        ("dirichlet", {"alpha": float("inf")}, "alpha must be a number above 0"),
        ("dirichlet", {"min_size": 0}, "min_size must be at least 1"),
        ("dirichlet", {"alhpa": 1}, "Did you mean 'alpha'"),
        ("shards", {"per_client": 0}, "per_client must be at least 1"),
        ("by_key", {"key": "colour"}, "key must be 'category' or 'source'"),
        ("power_law", {"exponent": -1}, "exponent must be"),
        ("dirichlett", {}, "Did you mean 'dirichlet'"),
    ],
)
def test_options_out_of_range_are_usage_errors(name, options, text):
    with pytest.raises(UsageError, match=text):
        divide(examples(20), name, options, 2, 0)


def test_more_clients_than_rows_and_no_number_of_clients_are_data_errors_with_a_remedy():
    with pytest.raises(DataError, match="9 clients are more than the 8 rows") as error:
        divide(examples(8), "iid", {}, 9, 0)
    assert "at most 8" in error.value.hint and error.value.exit_code == 3
    with pytest.raises(DataError, match="iid needs a number of clients"):
        divide(examples(8), "iid", {}, 0, 0)
    with pytest.raises(DataError, match="need 6, there are 5"):
        divide(examples(5), "dirichlet", {"min_size": 3}, 2, 0)
    with pytest.raises(DataError, match="x:1 is both held out and trained on"):
        divide(examples(5), "iid", {}, 2, 0, held_out=examples(2)[1:])
    with pytest.raises(DataError, match="no rows are left"):
        divide([], "iid", {}, 1, 0)


@pytest.mark.parametrize(
    ("assigned", "text"),
    [
        ({"a": ("x:0", "x:1"), "b": ("x:1", "x:2")}, "assigned x:1 to 2 clients; rows not in exactly one client: 1"),
        ({"a": ("x:0",), "b": ("x:1",)}, "assigned x:2 to 0 clients; rows not in exactly one client: 1"),
        ({"a": ("x:0", "x:1", "x:2"), "b": ()}, "left 1 of 2 clients without rows: b"),
        ({"a": ("x:0", "x:1", "x:2", "x:3")}, "a row that does not exist: x:3"),
    ],
)
def test_a_partitioner_that_breaks_its_promise_is_caught(assigned, text, tmp_path, monkeypatch):
    (tmp_path / "broken_rules.py").write_text(
        f"def broken():\n    return lambda examples, clients, rng: {assigned!r}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_rules", raising=False)
    with pytest.raises(DataError, match=text):
        divide(examples(3), "broken_rules:broken", {}, 2, 0)


@given(st.lists(st.text(max_size=80), max_size=12))
def test_client_names_are_safe_for_files_and_differ_in_more_than_case(values):
    names = safe_names(values)
    assert len({n.casefold() for n in names}) == len(values)
    assert all(1 <= len(n) <= 64 and n.isascii() and n[0] not in ".-" for n in names)
    assert all(set(n) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") for n in names)


def test_readable_names_are_kept():
    mark = hashlib.sha256(b"open_QA\0").hexdigest()[:4]
    assert safe_names(["open_qa", "Open QA", "open_QA", "日本語", "../x", "Üniversität"]) == [
        "open_qa", "Open-QA", f"open_QA.{mark}", "client-003", "x", "Universitat",
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(0, 60), per_category=st.integers(0, 8), prompts=st.integers(1, 60), seed=st.integers(0, 3))
def test_held_out_rows_never_share_a_question_with_training_rows_nor_take_more_than_half(
    rows, per_category, prompts, seed
):
    data = [
        Example(
            f"x:{i}",
            (
                # Alike but for case, white space, and the accent in one character or two.
                Message("user", f"Qu\u00e9stion  {i % prompts}" if i % 2 else f"que\u0301stion {i % prompts}"),
                Message("assistant", "a"),
            ),
            category=f"c{i * i % 3}",
        )
        for i in range(rows)
    ]
    train, out = hold_out(data, per_category, seed)
    assert sorted(e.id for e in [*train, *out]) == sorted(e.id for e in data)
    assert [e.id for e in data if e in train] == [e.id for e in train]
    assert not {e.messages[0].content.casefold().split()[1] for e in train} & {
        e.messages[0].content.casefold().split()[1] for e in out
    }
    have, took = Counter(e.category for e in data), Counter(e.category for e in out)
    for category, count in have.items():
        assert took[category] <= min(per_category, count // 2)
        if prompts >= rows:  # all prompts differ: exactly per_category
            assert took[category] == min(per_category, count // 2)
    assert (train, out) == hold_out(data, per_category, seed)
    short = short_categories(data, out, per_category)
    assert short == {c: (took[c], n) for c, n in have.items() if took[c] < per_category}


def test_another_seed_holds_out_other_rows():
    data = examples(80)
    assert hold_out(data, 5, 0)[1] != hold_out(data, 5, 1)[1]
    assert hold_out(data, 0, 0) == (tuple(data), ())


def test_the_context_is_a_part_of_the_question():
    ask = (Message("user", "Summarise."), Message("assistant", "a"))
    data = [Example(f"x:{i}", ask, context=f"text {i}") for i in range(20)]
    assert len(hold_out(data, 10, 0)[1]) == 10


def test_partition_json_brings_back_the_same_partition_and_refuses_other_data(tmp_path):
    data = examples(40)
    train, out = hold_out(data, 2, 0)
    partition = divide(train, "dirichlet", {"alpha": 0.3}, 4, 7, out)
    assert partition.dataset_digest == digest(data)
    path = tmp_path / "partition.json"
    save_partition(path, partition, data)
    assert load_partition(path) == load_partition(path, digest(data)) == partition
    document = json.loads(path.read_text())
    assert document["settings"] == {"name": "dirichlet", "clients": 4, "seed": 7, "alpha": 0.3}
    assert np.sum(document["table"]["counts"]) == len(train)
    assert [p.name for p in tmp_path.iterdir()] == ["partition.json"]
    with pytest.raises(DataError, match="divides other data"):
        load_partition(path, digest(data[1:]))
    path.write_text('{"clients": 3}')
    with pytest.raises(DataError, match="is not a partition"):
        load_partition(path)
    with pytest.raises(DataError, match="no partition at"):
        load_partition(tmp_path / "none.json")


def test_the_table_counts_each_clients_rows_by_category():
    data = examples(8)  # c0 c1 c0 c2 c0 c1 c0 c3
    partition = divide(data, "by_key", {"key": "source"}, 0, 0)
    clients, categories, counts = table(partition, data)
    assert (clients, categories) == (["site-0", "site-1", "site-2"], ["c0", "c1", "c2", "c3"])
    assert counts.tolist() == [[2, 0, 1, 0], [1, 1, 0, 1], [1, 1, 0, 0]]


def test_numbers_come_from_the_stream_alone():
    data = examples(50)
    build = partitioners.build("iid")
    np.random.seed(0)
    first = build(data, 5, rng.stream(3, "partition", "iid"))
    np.random.seed(1)
    assert build(data, 5, rng.stream(3, "partition", "iid")) == first


def test_dividing_data_needs_neither_torch_nor_transformers():
    code = (
        "import sys, shepherd.data.partition, shepherd.data.audit; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'jinja2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
