"""Which files and lists are clients, which are held out, and that nothing of a folder or object vanishes unsaid."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shepherd.data import files
from shepherd.data.containers import clients_of
from shepherd.data.progress import LoopProgress
from shepherd.data.sources import Dataset, load_examples
from shepherd.errors import DataError
from shepherd.experiment.division import divide_rows, read_held_out, read_rows, remarks
from shepherd.recipe import load


def rows(name: str, count: int = 3, **more: Any) -> list[dict[str, Any]]:
    return [{"instruction": f"{name} asks {i}", "output": f"{name} answers {i}"} | more for i in range(count)]


def write(folder: Path, contents: dict[str, Any]) -> str:
    """Files by path: a list as JSON lines, any other value as JSON, bytes as they are."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content).encode()
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, indent=1).encode())
    return str(folder)


def sources(data: Dataset | None) -> dict[str, int] | None:
    return None if data is None else dict(Counter(e.source for e in data.examples))


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, int] | None]] = {
    "a file per client": ({"a.jsonl": rows("a"), "b.jsonl": rows("b")}, {"a": 3, "b": 3}, None),
    "parts alone": ({"Train.jsonl": rows("a"), "TEST.jsonl": rows("b", 2)}, {"": 3}, {"": 2}),
    "validation is held out where no test is": ({"train.jsonl": rows("a"), "dev.jsonl": rows("b")}, {"": 3}, {"": 3}),
    "test is held out where both are": (
        {"train.jsonl": rows("a"), "test.jsonl": rows("b", 2), "validation.jsonl": rows("c", 4)}, {"": 3}, {"": 2},
    ),
    "shards as the hub writes them": (
        {f"data/{part}-0000{i}-of-00002.jsonl": rows(f"{part}{i}") for part in ("train", "test") for i in range(2)},
        {"": 6}, {"": 6},
    ),
    "the original Shepherd's": (
        {"local_training_0.json": rows("a"), "local_training_1.json": rows("b"), "global_test.json": rows("t", 2),
         "global_training.json": [*rows("a"), *rows("b")]},
        {"local_training_0": 3, "local_training_1": 3}, {"": 2},
    ),
    "a folder per client": (
        {"north/ward 1.jsonl": rows("n1"), "north/ward 2.jsonl": rows("n2"), "south/x.json": rows("s")},
        {"north": 6, "south": 3}, None,
    ),
    "parts inside clients": (
        {"north/train.jsonl": rows("n"), "north/test.jsonl": rows("nt", 1), "south/train.jsonl": rows("s")},
        {"north": 3, "south": 3}, {"north": 1},
    ),
    "clients inside parts": (
        {"train/north.jsonl": rows("n"), "train/south.jsonl": rows("s"), "test/north.jsonl": rows("nt", 1)},
        {"north": 3, "south": 3}, {"north": 1},
    ),
    "parts of clients by the ends of their names": (
        {"c1_train.json": rows("1"), "c1_test.json": rows("t", 1), "c2_train.json": rows("2")},
        {"c1": 3, "c2": 3}, {"c1": 1},
    ),
    "a name that begins like a part is a client": (
        {"test-hospital.jsonl": rows("t"), "train-hospital.jsonl": rows("u")},
        {"test-hospital": 3, "train-hospital": 3}, None,
    ),
    "an object of clients": ({"x.json": {"a": rows("a"), "b": rows("b")}}, {"x/a": 3, "x/b": 3}, None),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_determine_the_client_and_the_part_of_each_row(layout, tmp_path):
    contents, train, held_out = LAYOUTS[layout]
    if layout == "an object of clients":  # beside another file, its lists keep the file's name before theirs
        contents, train = contents | {"y.jsonl": rows("y")}, train | {"y": 3}
    data = load_examples(write(tmp_path, contents))
    assert (sources(data), sources(data.held_out)) == (train, held_out)
    named = [name for name in train if name]
    assert [*clients_of(tmp_path)] == (["x", "y"] if layout == "an object of clients" else named)
    everyone = load_examples(str(tmp_path), parts="clients")
    assert everyone.held_out is None and len(everyone.examples) == sum(map(_count, contents.values()))
    assert len({e.id for e in everyone.examples}) == len(everyone.examples)


def _count(content: Any) -> int:
    return len(content) if isinstance(content, list) else sum(map(len, content.values()))


OBJECTS: dict[str, tuple[Any, dict[str, int], dict[str, int] | None]] = {
    "FedLLM-Bench's clients": ({"client_0": rows("a"), "client_1": rows("b")}, {"client_0": 3, "client_1": 3}, None),
    "data and test": ({"version": 2, "data": rows("a"), "test": rows("b", 1)}, {"": 3}, {"": 1}),
    "train and test": ({"train": rows("a"), "test": rows("b", 1)}, {"": 3}, {"": 1}),
    "instances of LMFlow": ({"type": "text2text", "instances": rows("a")}, {"": 3}, None),
    "clients with parts": (
        {"a": {"train": rows("a"), "test": rows("t", 1)}, "b": {"train": rows("b")}}, {"a": 3, "b": 3}, {"a": 1}
    ),
    "LEAF's users": ({"users": ["u", "v"], "num_samples": [3, 3], "user_data": {"u": rows("u"), "v": rows("v")}},
                     {"u": 3, "v": 3}, None),
    "LEAF's users by column": (
        {"users": ["u", "v"], "user_data": {u: {"prompt": [u, u + u], "completion": ["x", "y"]} for u in "uv"}},
        {"u": 2, "v": 2}, None,
    ),
    "a table by columns": ({"instruction": ["a", "b"], "output": ["c", "d"]}, {"": 2}, None),
    "pandas by columns": ({"instruction": {"0": "a", "1": "b"}, "output": {"0": "c", "1": "d"}}, {"": 2}, None),
    "pandas by index": ({"0": rows("a")[0], "1": rows("b")[0]}, {"": 2}, None),
    "one row alone": ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
                      {"": 1}, None),
}  # fmt: skip


@pytest.mark.parametrize("layout", OBJECTS)
@pytest.mark.parametrize("indent", [None, 1])
def test_the_lists_of_a_json_object_are_clients_or_parts(layout, indent, tmp_path):
    document, train, held_out = OBJECTS[layout]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document, indent=indent))
    if layout == "one row alone" and indent:
        with pytest.raises(DataError, match="no list of rows"):
            load_examples(str(path))
        return
    data = load_examples(str(path))
    assert (sources(data), sources(data.held_out)) == (train, held_out)
    assert [*clients_of(path)] == [name for name in train if name]
    if layout == "data and test":
        assert "ignored keys of x.json: version" in data.notes


def test_parts_held_out_or_ignored_and_unions_are_reported_in_one_line_each(tmp_path):
    contents = {"train.jsonl": rows("a"), "test.jsonl": rows("b", 2), "val.jsonl": rows("c")}
    (note,) = load_examples(write(tmp_path / "parts", contents)).notes
    assert note == (
        "test is held out (2 rows), not trained on; val is ignored (data.held_out_source can select it); "
        "--set partition.name=files makes a client of each"
    )
    notes = load_examples(write(tmp_path / "old", LAYOUTS["the original Shepherd's"][0])).notes
    assert notes[0].startswith("global_test is held out (2 rows)")
    assert notes[1].startswith("global_training is the union of local_training_0, local_training_1, so it is ignored")
    contents = {"test.jsonl": rows("t"), "north.jsonl": rows("n"), "data/deep/er/still/x.jsonl": rows("x")}
    notes = load_examples(write(tmp_path / "odd", contents)).notes
    assert notes[0] == "not data, so not read: data/"
    assert "test in " in notes[1] and "is treated as a client, as there is no train next to it" in notes[1]


def test_data_are_the_same_by_a_relative_and_by_an_absolute_path(tmp_path, monkeypatch):
    contents = {"test.jsonl": rows("t"), "north.jsonl": rows("n"), "data/deep/er/still/x.jsonl": rows("x")}
    folder = write(tmp_path / "odd", contents)
    by_absolute = load_examples(folder)
    assert str(tmp_path) not in "".join(by_absolute.notes) and "test in odd is treated" in by_absolute.notes[1]
    monkeypatch.chdir(tmp_path)
    assert load_examples("odd") == by_absolute
    monkeypatch.chdir(folder)
    assert load_examples(".") == by_absolute


def test_a_train_beside_other_clients_may_be_either_so_it_is_refused_unless_all_are_clients(tmp_path):
    folder = write(tmp_path, {"train.jsonl": rows("t"), "north.jsonl": rows("n"), "south.jsonl": rows("s")})
    with pytest.raises(DataError, match="holds train next to north, south") as error:
        load_examples(folder)
    assert "partition.name=files" in error.value.hint
    assert len(load_examples(folder, parts="clients")) == 9


def test_a_file_or_list_without_a_usable_row_is_an_error_that_names_its_columns(tmp_path):
    other = [{"frage": "a", "antwort": "b"}] * 2
    folder = write(tmp_path / "f", {"a.jsonl": rows("a"), "c.jsonl": other})
    with pytest.raises(DataError, match=r"c\.jsonl: none of its 2 rows can be used") as error:
        load_examples(folder)
    assert "c:1, c:2" in error.value.message and "frage, antwort" in error.value.message
    write(tmp_path, {"x.json": {"a": rows("a"), "c": other}})
    with pytest.raises(DataError, match=r"x\.json: c: none of its 2 rows"):
        load_examples(str(tmp_path / "x.json"))
    write(tmp_path, {"x.json": {"train": rows("a"), "test": other}})
    with pytest.raises(DataError, match="the columns match no known format"):
        load_examples(str(tmp_path / "x.json"))
    write(tmp_path, {"x.json": {"a": rows("a"), "c": []}})
    with pytest.raises(DataError, match=r"x\.json: c has no rows"):
        load_examples(str(tmp_path / "x.json"))


@pytest.mark.parametrize("name", ["b.xlsx", "b.jsonl.zst", "b.zip", "b.arrow", "b.tar.gz", "b.pkl"])
def test_a_client_s_file_that_is_not_read_ends_the_reading_and_does_not_vanish(name, tmp_path):
    folder = write(tmp_path, {"a.jsonl": rows("a"), name: b"x"})
    with pytest.raises(DataError, match=rf"{name}: cannot read") as error:
        load_examples(folder)
    expected = {"b.pkl": "save it as JSON lines with the program that wrote it: reading a pickle executes its content"}
    assert error.value.hint == expected[name] if name in expected else str(tmp_path / name) in error.value.hint
    with pytest.raises(DataError, match="cannot read"):
        load_examples(str(tmp_path / name))


def test_usual_companions_of_data_files_are_not_clients(tmp_path):
    beside = {
        "README.md": b"# x", "LICENSE": b"x", ".DS_Store": b"\0", "._a.jsonl": b"\0", "dataset_infos.json": {"x": {}},
        "__MACOSX/._a.jsonl": b"\0", "images/1.png": b"x",
    }  # fmt: skip
    data = load_examples(write(tmp_path, {"a.JSONL": rows("a"), "b.jsonl": rows("b")} | beside))
    assert sources(data) == {"a": 3, "b": 3}
    assert data.notes == ("not data, so not read: LICENSE, README.md, dataset_infos.json, images/",)
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"c\.jsonl is a broken link"):
        load_examples(str(tmp_path))


def test_a_column_split_is_respected_and_one_with_other_values_is_not(tmp_path):
    parts = [*rows("a", 3, split="train"), *rows("b", 2, split="Test"), *rows("c", 1, split=None)]
    data = load_examples(write(tmp_path, {"x.jsonl": parts}) + "/x.jsonl")
    assert (len(data), len(data.held_out)) == (3, 2)
    assert data.notes == (
        "2 rows of the split test are held out, not trained on (column 'split')",
        "1 row without a value in the column 'split' are ignored",
    )
    path = str(tmp_path / "x.jsonl")
    assert len(load_examples(path, parts="clients")) == 6
    assert len(load_examples(path, columns={"category": "split"})) == 6
    apart = load_examples(path, parts="ignored")
    assert (len(apart), apart.held_out) == (3, None) and "2 rows of the split test are ignored" in apart.notes[0]
    write(tmp_path, {"x.jsonl": rows("a", 3, split="east") + rows("b", 2, split="west")})
    assert len(load_examples(path)) == 5 and load_examples(path).held_out is None


def test_held_out_rows_of_the_user_replace_the_test_part(tmp_path):
    folder = write(tmp_path / "f", {"train.jsonl": rows("a", 8), "test.jsonl": rows("b", 2)})
    write(tmp_path, {"mine.jsonl": rows("m", 5)})
    config = load("own-data", [f"data.source={folder}", f"data.held_out_source={tmp_path / 'mine.jsonl'}"])
    data = read_rows(config)
    assert data.held_out is None and data.notes[0].startswith("test is a test or validation part and ignored")
    assert len(read_held_out(config, data).examples) == 5
    config = load("own-data", [f"data.source={folder}"])
    data = read_rows(config)
    train, held_out, _ = divide_rows(config, data.examples, read_held_out(config, data).examples)
    assert (len(train), len(held_out)) == (8, 2)
    assert len(read_rows(load("own-data", [f"data.source={folder}", "partition.name=files"])).examples) == 10


def test_packed_text_is_read_within_bounds(tmp_path, monkeypatch):
    lines = "".join(json.dumps(row) + "\n" for row in rows("a", 50)).encode()
    table = b"instruction\toutput\n" + b"".join(b"a%d\tb\n" % i for i in range(4))
    folder = write(tmp_path, {"a.jsonl.gz": gzip.compress(lines), "B.TSV.GZ": gzip.compress(table)})
    assert sources(load_examples(folder)) == {"B": 4, "a": 50}
    monkeypatch.setattr(files, "UNPACKED_BYTES", 100)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b" " * 1_000_000))
    with pytest.raises(DataError, match="unpack to more than"):
        load_examples(str(bomb))
    for broken in (gzip.compress(lines)[:-20], b"\x1f\x8bno", lines):
        bomb.write_bytes(broken)
        with pytest.raises(DataError, match="cannot be unpacked"):
            load_examples(str(bomb))


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("https://huggingface.co/datasets/org/name/resolve/main/a.jsonl", "--data hub:org/name"),
        ("hf://datasets/org/name", "--data hub:org/name"),
        ("https://example.org/d/a.jsonl?x=1", "curl -L -o 'a.jsonl' 'https://example.org/d/a.jsonl?x=1'"),
        ("s3://bucket/a.jsonl", "download it, then --data a.jsonl"),
        ("file:///tmp/a.jsonl", "--data /tmp/a.jsonl"),
    ],
)
def test_an_address_is_answered_with_what_to_do(address, hint):
    with pytest.raises(DataError, match="is an address") as error:
        load_examples(address)
    assert hint in error.value.hint


def test_a_long_reading_reports_its_progress_at_growing_intervals(tmp_path, monkeypatch):
    # A row takes a second: lines after 2, 3 (= 1.5 · 2), 5 (from 4.5), 8 (from 7.5) and 12 seconds.
    said, seconds = [], iter(range(99))
    progress = LoopProgress(said.append, "reading x", 14, clock=lambda: next(seconds))
    for row in range(14):
        progress.at(row)
    assert said == [f"reading x: {row} of 14 rows" for row in (1, 2, 4, 7, 11)]
    path = write(tmp_path, {"a.jsonl": rows("a"), "b.jsonl": rows("b" * 1000, 3)})
    said.clear()
    monkeypatch.setattr(files, "LARGE", 5000)
    load_examples(path, emit=said.append)
    assert said == ["reading b.jsonl (0 MB)"]


def test_a_category_per_row_leaves_rows_to_evaluate_with_and_one_line(tmp_path):
    many = [row | {"category": f"c{i:03d}"} for i, row in enumerate(rows("a", 500))]
    write(tmp_path, {"x.jsonl": many})
    config = load("own-data", [f"data.source={tmp_path / 'x.jsonl'}"])
    data = read_rows(config)
    train, held_out, partition = divide_rows(config, data.examples, None)
    assert (len(train), len(held_out), len(partition.clients)) == (490, 10, 4)
    ((line, cases),) = remarks(config, data, data.examples, held_out, partition).items()
    assert line.startswith("fewer than data.held_out_per_category = 10 rows held out of 500 categories: c000 ")
    assert line.endswith(", and 495 more") and len(cases) == 500
    config = load("own-data", [f"data.source={tmp_path / 'x.jsonl'}", "partition.name=by_key"])
    with pytest.raises(DataError, match="no category has more than one row"):  # as clients, each needs its only row
        divide_rows(config, data.examples, None)


def test_a_key_without_a_usable_row_and_names_that_look_alike_are_reported(tmp_path):
    sites = ["North", "north", "NОRTH ", "north\N{EN DASH}2", "north 2", "East"]  # the third has a Cyrillic О
    many = [row | {"site": site} for site in sites for row in rows(site, 4)]
    write(tmp_path, {"x.jsonl": [*many, {"instruction": "a", "output": "", "site": "West"}]})
    keys = ["partition.name=by_key", "partition.key=site", "data.held_out_per_category=1"]
    config = load("own-data", [f"data.source={tmp_path / 'x.jsonl'}", *keys])
    data = read_rows(config)
    _, held_out, partition = divide_rows(config, data.examples, None)
    assert sorted(partition.labels.values()) == sorted({site.strip() for site in sites})
    assert list(remarks(config, data, data.examples, held_out, partition)) == [
        "no row of 1 site can be used, so nothing of it is learned: West (1 row)",
        "names of a site that look alike and are kept apart: 'North' = 'NОRTH' = 'north', 'north 2' = 'north–2'",
    ]


@pytest.mark.parametrize("column", ["site", "category"])
def test_rows_without_a_key_are_counted_under_the_users_column_with_a_remedy(tmp_path, column):
    write(tmp_path, {"x.jsonl": rows("a", 4, **{column: "n"}) + rows("b", 2, **{column: math.nan})})
    key = f"partition.key={column}"
    config = load("own-data", [f"data.source={tmp_path / 'x.jsonl'}", "partition.name=by_key", key])
    with pytest.raises(DataError, match=f"2 of 6 rows have no value in the column '{column}'") as error:
        divide_rows(config, read_rows(config).examples, None)
    assert "x:5, x:6" in error.value.message and "'unknown'" in error.value.hint


def test_a_folder_that_holds_all_clients_is_descended_into_with_a_note(tmp_path):
    write(tmp_path, {"data/local_0.jsonl": rows("a", 2), "data/local_1.jsonl": rows("b", 2)})
    data = load_examples(str(tmp_path))
    assert {e.source for e in data.examples} == {"local_0", "local_1"}
    assert data.notes == ("data/ is the only entry of the folder, so each file or folder in it is a client",)
    assert clients_of(tmp_path) == ("local_0", "local_1")


def test_by_key_without_any_key_is_one_client_with_a_note(tmp_path):
    write(tmp_path, {"x.jsonl": [{"instruction": f"Ask {i}", "output": f"Say {i}"} for i in range(8)]})
    config = load("own-data", [f"data.source={tmp_path / 'x.jsonl'}", "partition.name=by_key"])
    data = read_rows(config)
    _, held_out, partition = divide_rows(config, data.examples, None)
    assert len(partition.clients) == 1
    said = list(remarks(config, data, data.examples, held_out, partition))
    assert any("no row has a value in the column 'category', so by_key makes one client" in line for line in said)
    iid = load("own-data", [f"data.source={tmp_path / 'x.jsonl'}"])
    assert not any("by_key" in line for line in remarks(iid, data, data.examples, held_out, partition))
