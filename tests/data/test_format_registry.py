"""Formats are a registry: the promises that each joins, and formats from outside the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shepherd.data.examples import format_of
from shepherd.data.formats import Format, format_named, format_problem, formats, in_order
from shepherd.data.sources import load_examples
from shepherd.errors import DataError, UsageError
from shepherd.types import Message

DOCS = Path(__file__).parents[2] / "docs/data.md"
TICKET = '''
from shepherd.data.formats import Format
from shepherd.types import Message

def ticket():
    """A customer's question and the reply of the desk."""
    def read(row):
        return [Message("user", row.text("asked")), Message("assistant", row.text("replied"))], row.text("product")
    return Format(("asked", "replied"), ("product",), read)

def broken():
    return "no format"
'''


@pytest.fixture
def my_lab(tmp_path, monkeypatch) -> str:
    """A module outside the package with a format."""
    name = f"rows_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(TICKET)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def rows(tmp_path, *written) -> str:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", sorted(formats))
def test_a_format_is_the_one_that_its_required_fields_identify(name):
    form = format_named(name)
    assert form.required and format_of(dict.fromkeys(form.required, "x"), in_order()) == (name, True)
    assert formats.describe(name) and not formats.options(name), "a line in shepherd list, and no options"


@pytest.mark.parametrize("name", sorted(formats))
def test_the_fields_of_a_format_are_documented(name):
    page = DOCS.read_text(encoding="utf-8")
    assert [field for field in format_named(name).required if f"`{field}`" not in page] == []


def test_a_format_of_a_module_reads_all_rows_and_its_fields_can_be_mapped(tmp_path, my_lab):
    row = {"asked": "Where is it?", "replied": "In the post.", "product": "a lamp", "id": 3}
    data = load_examples(rows(tmp_path, row), format=f"{my_lab}:ticket")
    (example,) = data.examples
    assert example.messages == (Message("user", "Where is it?"), Message("assistant", "In the post."))
    assert (example.context, data.format) == ("a lamp", f"{my_lab}:ticket")
    assert data.unread == "not read: the column id (1 row)"
    other = {"Frage": "Where is it?", "replied": "In the post.", "Ware": "a lamp"}
    mapped = load_examples(
        rows(tmp_path, other), format=f"{my_lab}:ticket", columns={"asked": "Frage", "product": "Ware"}
    )
    assert mapped.examples[0].messages == example.messages and mapped.examples[0].context == "a lamp"
    with pytest.raises(DataError, match="asked, replied"):
        load_examples(rows(tmp_path, {"prompt": "a", "completion": "b"}), format=f"{my_lab}:ticket")


def test_a_registered_format_is_detected_after_the_built_in_ones(tmp_path, monkeypatch):
    def ticket():
        def read(row):
            return [Message("user", row.text("asked")), Message("assistant", row.text("replied"))], ""

        return Format(("asked", "replied"), (), read)

    monkeypatch.setattr(formats, "_factories", {**formats._factories, "ticket": ticket})
    both = {"asked": "A?", "replied": "B.", "prompt": "C?", "completion": "D."}
    path = rows(tmp_path, {"asked": "A?", "replied": "B."}, both)
    data = load_examples(path)
    assert [e.messages[0].content for e in data.examples] == ["A?", "C?"]
    assert "rows of 2 formats" in data.notes[0] and in_order()[-1] == "ticket"
    with pytest.raises(DataError, match="ticket: asked, replied"):
        load_examples(rows(tmp_path, {"nothing": 1}))


@pytest.mark.parametrize(
    ("name", "problem"),
    [("alpacca", "Did you mean 'alpaca'? Known: auto, messages, "), ("no_such_module:rows", "cannot be imported"),
     ("{}:nothing", "cannot be imported"), ("{}:broken", "returns no Format: 'no format'")],
)  # fmt: skip
def test_a_format_that_is_none_is_explained(my_lab, name, problem):
    assert problem in format_problem(name.format(my_lab))


def test_known_formats_have_no_problem(my_lab):
    assert [name for name in ("auto", *formats, f"{my_lab}:ticket") if format_problem(name)] == []
    with pytest.raises(UsageError):
        format_named("auto")
