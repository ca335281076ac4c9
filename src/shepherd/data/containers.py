"""Files and folders as clients and parts of the data.

Each file or sub-folder of a folder is a client, and so is each list of a JSON object. Lists named train and test are
parts instead: train is for training, test (else validation) is held out. Parts may be nested in clients and clients in
parts:

    train.jsonl, test.jsonl             hospital-a.jsonl, hospital-b.jsonl        north/train.jsonl, north/test.jsonl
    train/north.jsonl, test/north.jsonl     local_training_0.json, global_test.json     {"train": [...], "test": [...]}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shepherd.data.builtins import RawRows
from shepherd.data.files import ACCEPTED, CONVERSIONS, PICKLES, SUFFIXES, read, stem_of, suffix_of, unreadable
from shepherd.data.progress import Emit
from shepherd.data.trees import PARTS, Tree, kind_of, unsharded
from shepherd.data.values import missing
from shepherd.errors import DataError, plural

Parts = Literal["held out", "ignored", "clients"]
"""Use of test and validation parts: held out, ignored in favour of other held-out rows, or clients like others."""

DEPTH = 2
"""Levels of folders below the given one: clients and parts, in either order."""
ALL_CLIENTS = "--set partition.name=files makes a client of each"
_BOOKKEEPING = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes along with rows."""
_ENDING = re.compile(rf"(.+?)[-_. ]({'|'.join(PARTS)})", re.IGNORECASE)
"""A client with a part: `client_1_train`."""
_LOCAL = re.compile(r"local_training_\w+", re.IGNORECASE)
"""A client's file in the layout of the original Shepherd, with global_training.json and global_test.json."""


@dataclass(frozen=True)
class Batch:
    """One list of rows with its client and its part of the data, "" if it has none."""

    tree: Tree
    name: str
    client: str = ""
    part: str = ""


def read_path(path: Path, parts: Parts = "held out", emit: Emit | None = None) -> RawRows:
    """The rows of a file or folder. Raises DataError for what cannot be read and for contradictory names."""
    tree = _folder(path, emit) if path.is_dir() else replace(read(path, emit), place=str(path))
    name = path.name or path.resolve().name
    root = "" if tree.branches else stem_of(path)
    notes: list[str] = list(_unread(tree))
    batches = list(_batches(tree, Batch(tree, root), parts, notes))
    for batch in batches:
        if not batch.tree.rows:
            raise DataError(f"{batch.tree.place or batch.name} has no rows", hint="fill it, or remove it")
    held, ignored = _held_out(batches)
    train = [batch for batch in batches if batch.part not in ("test", "validation")]
    found = _rows(name, train, tuple(notes))
    if parts == "clients" or not (held or ignored):
        return found
    note = _held_out_note(held, ignored, parts)
    out = None if parts == "ignored" else _rows(name, held)
    return replace(found, held_out=out, notes=(note, *found.notes))


def clients_of(path: Path) -> tuple[str, ...]:
    """The clients that a file or folder names, or () for fewer than two.

    Only JSON objects are read for it. Unreadable files give (); reading the rows reports them.
    """
    try:
        if path.is_dir():
            tree = _folder(path, names_only=True)
        elif suffix_of(path).startswith((".json", ".ndjson")) and path.is_file() and _one_object(path):
            tree = read(path)
        else:
            return ()
        names = tuple(dict.fromkeys(b.client for b in _batches(tree, Batch(tree, ""), "held out", []) if b.client))
    except (DataError, OSError):
        return ()
    return names if len(names) > 1 else ()


# Folders


def _folder(path: Path, emit: Emit | None = None, *, names_only: bool = False) -> Tree:
    tree = _entries(path, 0, emit, names_only)
    if not tree.branches:
        held = f"; it holds {', '.join(tree.unread[:8])}" if tree.unread else ""
        raise DataError(f"{path} holds no data files{held}", hint=f"one file per client: {ACCEPTED}")
    return tree


def _entries(path: Path, depth: int, emit: Emit | None, names_only: bool) -> Tree:
    """A folder's files and sub-folders with rows, by name. Names that differ only in the suffix keep it."""
    branches: dict[str, Tree] = {}
    unread: list[str] = []
    entries = sorted(p for p in path.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX")
    files = [p for p in entries if p.is_file() and suffix_of(p) in SUFFIXES and p.name not in _BOOKKEEPING]
    stems = Counter(stem_of(p).casefold() for p in [*files, *(p for p in entries if p.is_dir())])
    for entry in entries:
        if entry.is_dir():
            inner = _entries(entry, depth + 1, emit, names_only) if depth < DEPTH else Tree(folder=True)
            if inner.branches:
                branches[entry.name] = inner
            else:
                unread.append(f"{entry.name}/")
        elif entry in files:
            name = entry.name if stems[stem_of(entry).casefold()] > 1 else stem_of(entry)
            if names_only:
                branches[name] = Tree([(1, {})])
                continue
            branches[name] = read(entry, emit)
            branches[name].place = str(entry)
        elif suffix_of(entry) in (*CONVERSIONS, *PICKLES, *SUFFIXES) and not entry.is_file():
            raise DataError(f"{entry} is {'a broken link' if entry.is_symlink() else 'not a file'}")
        elif suffix_of(entry) in (*CONVERSIONS, *PICKLES):  # most likely a client, which must not vanish silently
            raise unreadable(entry)
        else:
            unread.append(entry.name)
    return Tree(branches=branches, place=str(path), folder=True, unread=tuple(unread))


def _unread(tree: Tree, within: str = "") -> Iterator[str]:
    """A sentence on ignored entries for each folder or object."""
    if tree.folder and tree.unread:
        where = f" in {within}" if within else ""
        yield f"not data, so not read{where}: {', '.join(tree.unread)}"
    elif tree.unread:
        yield from tree.unread
    for name, branch in tree.branches.items():
        yield from _unread(branch, f"{within}{name}/")


def _one_object(path: Path) -> bool:
    """Whether a text may be a single JSON object: its first line is not an object in itself, or is the only line."""
    import gzip
    import json

    with gzip.open(path) if suffix_of(path).endswith(".gz") else path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
        more = any(line.strip() for line in file)
    if not first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return False
    try:
        return not (more and json.loads(first.decode("utf-8-sig")))
    except (ValueError, RecursionError):
        return True


# Clients and parts


def _batches(tree: Tree, at: Batch, parts: Parts, notes: list[str]) -> Iterator[Batch]:
    """The lists of rows in `tree` with their clients and parts."""
    if not tree.branches:
        yield replace(at, tree=tree)
        return
    if parts != "clients" and not at.part and not at.client:
        tree = _pairs(tree, notes)
    kinds = _kinds(tree, at, notes) if parts != "clients" and not at.part else {}
    (name, only), *more = tree.branches.items()
    has_parts = only.folder and any(map(kind_of, only.branches))  # data/train-00000-of-00002.parquet
    if not more and (has_parts or (only.folder and not at.client and len(only.branches) > 1 and parts != "clients")):
        if not has_parts:  # a single client is not a federation
            notes.append(f"{name}/ is the only entry of the folder, so each file or folder in it is a client")
        yield from _batches(only, at, parts, notes)
        return
    for name, branch in tree.branches.items():
        below = replace(at, name=f"{at.name}/{name}" if at.name else name)
        if name in kinds:
            if kinds[name] == "union":
                continue
            below = replace(below, part=kinds[name])
        elif not at.client:
            below = replace(below, client=name if parts == "clients" else unsharded(name))
        elif not tree.folder:  # the lists of an object are not joined
            below = replace(below, client=f"{at.client}/{name}")
        yield from _batches(branch, below, parts, notes)


def _pairs(tree: Tree, notes: list[str]) -> Tree:
    """`a_train` and `a_test` as parts of a client `a`, if all names have this form and each client has a train."""
    found = {name: match for name in tree.branches if (match := _ENDING.fullmatch(name))}
    if len(found) == len(tree.branches):
        clients: dict[str, dict[str, Tree]] = {}
        for name, match in found.items():
            clients.setdefault(match[1], {})[match[2]] = tree.branches[name]
        kinds = [set(map(kind_of, inner)) for inner in clients.values()]
        if all("train" in some for some in kinds) and any(len(some) > 1 for some in kinds):
            pairs = {name: Tree(branches=inner, place=tree.place, folder=True) for name, inner in clients.items()}
            return replace(tree, branches=pairs)
    lower = {name.casefold(): name for name in tree.branches}
    if tests := [name for low, name in lower.items() if low[4:] and low[:4] == "test" and f"train{low[4:]}" in lower]:
        notes.append(
            f"{_few(tests)} is treated as a client, although there is a train of that name; if it is a test set, "
            "name the files <client>_train and <client>_test, or move them to folders train and test"
        )
    return tree


def _kinds(tree: Tree, at: Batch, notes: list[str]) -> Mapping[str, str]:
    """Branch -> its part of the data ("union" if it repeats the others), for branches that are parts."""
    kinds = {name: kind for name in tree.branches if (kind := kind_of(name))}
    others = [name for name in tree.branches if name not in kinds]
    unions = [name for name in kinds if name.casefold().replace("-", "_").startswith("global_train")]
    train = [name for name, kind in kinds.items() if kind == "train"]
    where = f"{tree.place or 'the object'}"
    if others and set(train) - set(unions):
        one = min(set(train) - set(unions))
        raise DataError(
            f"{where} holds {one} next to {_few(others)}, which is ambiguous: "
            f"{one} may be a client, or repeat the rows of all",
            hint=f"remove {one} if it repeats the others; {ALL_CLIENTS}",
        )
    if others and unions:
        notes.append(f"{_few(unions)} is the union of {_few(others)}, so it is ignored ({ALL_CLIENTS})")
        kinds |= dict.fromkeys(unions, "union")
    named = any(name.casefold().replace("-", "_").startswith("global_") for name in kinds)
    if train or (others and (named or all(map(_LOCAL.fullmatch, others)))):
        return kinds
    if kinds and others and not at.client:
        # By its name alone: a run that goes on elsewhere, by the absolute path, has to note the same.
        folder = Path(tree.place).resolve().name if tree.place else "the object"
        notes.append(
            f"{_few(kinds)} in {folder} is treated as a client, as there is no train next to it; if it is a test set, "
            "move it elsewhere and use --set data.held_out_source=<its path>"
        )
    return {}


def _held_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """(the held-out lists: test, else validation; the ignored ones of the two)."""
    tests = [batch for batch in batches if batch.part == "test"]
    validation = [batch for batch in batches if batch.part == "validation"]
    return (tests, validation) if tests else (validation, [])


def _held_out_note(held: Sequence[Batch], ignored: Sequence[Batch], parts: Parts) -> str:
    count = sum(len(batch.tree.rows) for batch in held)
    if parts == "ignored":
        return (
            f"{_few([b.name for b in (*held, *ignored)])} is a test or validation part and ignored: "
            "data.held_out_source provides the held-out rows"
        )
    note = f"{_few([b.name for b in held])} is held out ({plural(count, 'row')}), not trained on"
    if ignored:
        note += f"; {_few([b.name for b in ignored])} is ignored (data.held_out_source can select it)"
    return f"{note}; {ALL_CLIENTS}"


def _few(names: Sequence[str] | Mapping[str, Any], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _rows(name: str, batches: Sequence[Batch], notes: tuple[str, ...] = ()) -> RawRows:
    rows, places, hidden = [], [], 0
    for batch in batches:
        source = {"source": batch.client} if batch.client else {}
        hidden += sum(not missing(row.get("source")) for _, row in batch.tree.rows) if batch.client else 0
        rows += [(f"{batch.name}:{number}", row | source) for number, row in batch.tree.rows]
        places.append((batch.tree.place or batch.name, len(batch.tree.rows)))
    if hidden:
        notes = (*notes, f"the column source ({plural(hidden, 'row')}) is ignored: the source of a row is its client")
    return RawRows(name, rows, notes=notes, places=tuple(places))
