"""The goldens can fail: a changed byte shows, where bytes may differ a changed number does, and no mask hides more."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from golden import record
from golden.command import shepherd
from golden.record import MASKED, entry_of, masked, problems, without_numbers

OLD = Path(__file__).parent / "old_run" / "finished"
VALUES = np.random.default_rng(0).normal(0, 0.5, 150).astype(np.float32)
TOLERANCE = 1e-5
PLACE = "/tmp/shepherd"
"""Where the old run ran."""


def tensors(values: np.ndarray, name: str = "layer.A") -> dict[str, dict]:
    data = save({name: values.reshape(10, 15), "count": np.array([3])})
    return {"x.safetensors": entry_of("x.safetensors", data)}


def lines(values: np.ndarray, key: str = "loss") -> dict[str, dict]:
    data = json.dumps({"round": 1, "of": {f"c{i}": {key: float(v)} for i, v in enumerate(values)}}) + "\n"
    return {"x.jsonl": entry_of("x.jsonl", data.encode())}


KINDS = pytest.mark.parametrize("kind", [tensors, lines])


@KINDS
def test_equal_files_are_equal_in_both_ways(kind):
    assert problems(kind(VALUES), kind(VALUES)) == problems(kind(VALUES), kind(VALUES), TOLERANCE) == []


def test_one_changed_byte_shows():
    kept = {"x": entry_of("x", bytes(100))}
    for at in range(100):
        now = {"x": entry_of("x", bytes(at) + b"\1" + bytes(99 - at))}
        assert problems(kept, now) == ["x: other bytes, other keys, texts or shapes"]


@KINDS
def test_a_number_that_is_off_by_one_in_a_thousand_shows_wherever_it_stands(kind):
    kept = kind(VALUES)
    for at in range(len(VALUES)):
        for off in (1e-3, -1e-3):
            changed = VALUES.astype(np.float64)
            changed[at] += off * max(1.0, abs(changed[at]))
            (found,) = problems(kept, kind(changed.astype(np.float32)), TOLERANCE)
            assert "numbers off by" in found


@pytest.mark.parametrize("size", [1.0, 400.0])
def test_a_large_number_shows_by_its_relative_change(size):
    kept = lines(np.full(100, size))
    for at in (0, 63, 64, 99):
        for off, shows in ((2e-3, True), (1e-7, False)):
            changed = np.full(100, size)
            changed[at] *= 1 + off
            assert bool(problems(kept, lines(changed), TOLERANCE)) is shows


@KINDS
def test_rounding_does_not_show_but_in_the_bytes(kind):
    kept, noise = kind(VALUES), np.random.default_rng(1).normal(0, 1e-7, len(VALUES))
    for changed in (VALUES + 1e-7, VALUES - 1e-7, VALUES + noise):
        now = kind(changed.astype(np.float32))
        assert problems(kept, now, TOLERANCE) == []
        assert problems(kept, now) != []


@KINDS
def test_numbers_that_changed_places_show(kind):
    kept = kind(VALUES)
    for at in (0, 62, 63, 64, 148):
        changed = VALUES.copy()
        changed[[at, at + 1]] = changed[[at + 1, at]]
        assert abs(VALUES[at] - VALUES[at + 1]) > 1e-3 and problems(kept, kind(changed), TOLERANCE)


@KINDS
def test_what_is_not_a_number_shows(kind):
    for odd in (np.nan, np.inf, -np.inf):
        changed = VALUES.copy()
        changed[17] = odd
        assert problems(kind(VALUES), kind(changed), TOLERANCE) and problems(kind(changed), kind(changed)) == []


def test_other_keys_shapes_whole_numbers_and_files_show():
    one = "other keys, texts or shapes"
    assert one in problems(tensors(VALUES), tensors(VALUES, "layer.B"), TOLERANCE)[0]
    assert one in problems(tensors(VALUES), tensors(VALUES[:140].repeat(2)[:150]) | tensors(VALUES[::-1], "b"), 1.0)[0]
    assert one in problems(lines(VALUES), lines(VALUES, "los"), TOLERANCE)[0]
    assert one in problems(lines(VALUES), lines(VALUES[:-1]), TOLERANCE)[0]
    kept = {"a.json": entry_of("a.json", b'{"rows": 3, "who": "x"}')}
    for other in (b'{"rows": 4, "who": "x"}', b'{"rows": 3, "who": "y"}', b'{"who": "x", "rows": 3}'):
        assert one in problems(kept, {"a.json": entry_of("a.json", other)}, TOLERANCE)[0]
    for tolerance in (None, TOLERANCE):
        assert problems(kept, {}, tolerance) == ["a.json: is no longer written"]
        assert problems({}, kept, tolerance) == ["a.json: is new"]


def test_of_two_factors_with_another_sign_the_product_is_the_same():
    A, B = VALUES[:60].reshape(2, 30), VALUES[60:120].reshape(30, 2)

    def entry(A: np.ndarray, B: np.ndarray) -> dict[str, dict]:
        data = save({"q.lora_A.weight": A, "q.lora_B.weight": B})
        return {"x.safetensors": entry_of("x.safetensors", data, products=True)}

    assert problems(entry(A, B), entry(-A, -B), TOLERANCE) == []
    assert problems(entry(A, B), entry(A, -B), TOLERANCE)
    assert problems(entry(A, B), entry(A + np.float32(0.01), B), TOLERANCE)


def test_a_text_without_its_numbers_keeps_its_words():
    assert without_numbers("run.txt", "loss 6.037, 8 rows") == without_numbers("run.txt", "loss 6.038, 8 rows")
    assert without_numbers("run.txt", "loss 6.037") != without_numbers("run.txt", "losses 6.037")
    page = "<h2>Result</h2><p>6.03</p>"
    assert without_numbers("a.html", page) != without_numbers("a.html", page.replace("Result", "Results"))


# What is masked


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory that tests may change and put back."""
    return shutil.copytree(OLD, tmp_path_factory.mktemp("masked") / "runs" / "finished")


def of(run: Path) -> dict[str, bytes]:
    """The masked files, as they are after `shepherd report`, which a run ends with."""
    assert shepherd(run.parents[1], "report", run).status == 0
    return masked(run, run.parents[1])


def reseal(run: Path) -> None:
    """Let the manifests say what the files now are, as whoever writes them would."""
    for path in run.rglob("MANIFEST.json"):
        manifest = json.loads(path.read_text())
        for name in manifest["files"]:
            data = (path.parent / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, fact in manifest.get("facts", {}).items():
            lines = (run / name).read_bytes().splitlines(keepends=True)[: manifest["round"]]
            data = b"".join(lines)
            manifest["facts"][name] = {key: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}[key]
                                       for key in fact}  # fmt: skip
        path.write_text(json.dumps(manifest, indent=1) + "\n")


def changed(value):
    """The value with each leaf changed."""
    if isinstance(value, dict):
        return {key: changed(old) for key, old in value.items()}
    return [changed(old) for old in value] if isinstance(value, list) else value + 1.5


@pytest.mark.parametrize("file", MASKED)
def test_a_key_that_is_masked_does_not_show_and_each_other_does(file, run):
    path, before = run / file, of(run)
    raw = path.read_bytes()
    whole = file.endswith(".json")
    values = [json.loads(raw)] if whole else [json.loads(line) for line in raw.splitlines()]
    for key, old in values[0].items():
        other = copy.deepcopy(values)
        number = isinstance(old, int | float) and not isinstance(old, bool)
        seconds = key == "seconds"
        other[0][key] = changed(old) if seconds else old + 1 if number else f"{old}!"
        text = json.dumps(other[0], indent=1) + "\n" if whole else "".join(json.dumps(line) + "\n" for line in other)
        path.write_text(text)
        reseal(run)
        try:
            if key in MASKED[file]:
                assert of(run) == before, f"{key} is masked"
            else:
                now = _without_page(run)
                assert now[file] != before[file], f"{key} is not masked"
        finally:
            path.write_bytes(raw)
    reseal(run)


def _without_page(run: Path) -> dict[str, bytes]:
    """The masked files of a run that no page can be made of any more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "_report", lambda *places: b"")
        return masked(run, run.parents[1])


def test_a_manifest_that_does_not_say_what_its_files_are_is_told(run):
    weights = run / "adapter" / "adapter_model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    try:
        with pytest.raises(AssertionError, match="does not say what adapter_model"):
            of(run)
    finally:
        weights.write_bytes(raw)


def _shown(run: Path, file: str) -> bytes | str:
    try:
        return _without_page(run)[file]
    except AssertionError as error:
        return str(error)


def test_the_way_in_which_json_is_written_shows(run):
    path, before = run / "summary.json", _shown(run, "summary.json")
    raw = path.read_text()
    value = json.loads(raw)
    others = (
        raw.rstrip("\n"), raw.replace(",\n", ", \n", 1), json.dumps(value) + "\n", json.dumps(value, indent=2) + "\n",
        json.dumps(value, indent=1, sort_keys=True) + "\n",
    )  # fmt: skip
    for other in others:
        path.write_text(other)
        assert _shown(run, "summary.json") != before
    path.write_text(raw)
    assert _shown(run, "summary.json") == before


def test_the_folder_of_a_run_does_not_show(tmp_path):
    shown = []
    for place in (tmp_path / "a", tmp_path / "another" / "place"):
        copy = shutil.copytree(OLD, place / "runs" / "finished")
        for path in copy.rglob("*.*"):
            path.write_bytes(path.read_bytes().replace(PLACE.encode(), str(place).encode()))
        assert f'"{place}/base"' in (copy / "config.toml").read_text()
        reseal(copy)
        shown.append(of(copy))
    assert shown[0] == shown[1] and f"{record.PLACE}/base".encode() in shown[0]["config.toml"]
