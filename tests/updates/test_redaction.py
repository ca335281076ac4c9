"""Two hundred planted strings: none leaves its client under any failure, in any file of the run or on any stream.

They are in the training rows of clients (instruction, context, response) and in the texts of exceptions; the search
covers plain text, base64 and hex. Held-out rows, which a report shows on purpose, contain none.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shepherd.cli.main import main
from shepherd.clients import cohort
from shepherd.rng import stream

WARDS = tuple(f"ward-{letter}" for letter in "abcdefgh")
HELD = ["What is two and two?", "Name a colour.", "Where do sheep live?", "Is water wet?"]


def secrets(count: int = 200) -> list[str]:
    """Unique words of 16 letters."""
    rng = stream(0, "secrets")
    return ["".join(rng.choice(list("bcdfghjklmnpqrstvwxz"), 16)) for _ in range(count)]


def disguises(secret: str) -> Iterator[bytes]:
    """The string itself and the cores of its base64, at each of three offsets, and its hex."""
    raw = secret.encode()
    yield raw
    yield raw.hex().encode()
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + raw)[4:-4]


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path, dict[str, list[str]]]:
    """Files of training and held-out rows, and who holds which of the 200 strings: 25 each, in 9 rows."""
    every, held_by, rows = secrets(), {}, []
    for index, ward in enumerate(WARDS):
        mine = held_by[ward] = every[25 * index : 25 * index + 25]
        for i in range(9):
            a, b, c = (mine[(3 * i + j) % 25] for j in range(3))
            rows.append({"instruction": f"Say {a}.", "context": f"We know {b}.", "response": c, "category": ward})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held = [{"instruction": q, "response": "Yes.", "category": WARDS[i % 8]} for i, q in enumerate(HELD)]
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, held)))
    return tmp_path / "train.jsonl", tmp_path / "held.jsonl", held_by


@pytest.fixture
def failing(planted, monkeypatch) -> set[str]:
    """Six of eight clients fail, each differently, with a text that quotes their rows."""
    held_by, drawn = planted[2], cohort.next_rows
    kinds = (ValueError, KeyError, RuntimeError, UnicodeDecodeError, MemoryError, OSError)
    kind_of = dict(zip(WARDS[1:7], kinds, strict=True))

    def raising(tokens, client, *arguments):
        if client not in kind_of:
            return drawn(tokens, client, *arguments)
        text = " ".join(held_by[client])
        if kind_of[client] is UnicodeDecodeError:
            raise UnicodeDecodeError("utf-8", text.encode(), 0, 1, text)
        if kind_of[client] is OSError:
            raise OSError(2, text, f"/{text}")
        raise kind_of[client](text, text.encode().hex()) from ValueError(base64.b64encode(text.encode()))

    monkeypatch.setattr(cohort, "next_rows", raising)
    return set(kind_of)


def settings(planted, model: Path, out: Path, *more: str) -> list[str]:
    train, held, _ = planted
    pairs = [
        f"model.base={model}", "model.dtype=float32", "model.device=cpu", "run.threads=1", f"run.out={out}",
        f"data.source={train}", f"data.held_out_source={held}", "data.max_length=192", "data.rows_per_category=0",
        "lora.r=2", "federation.rounds=2", "training.local_steps=1", "training.batch_size=2", "evaluation.generate=2",
        "evaluation.max_new_tokens=3", "evaluation.arms=base,federated", *more,
    ]  # fmt: skip
    return [word for pair in pairs for word in ("--set", pair)]


def found(where: dict[str, bytes]) -> list[str]:
    """`place: string` for every planted string in the given bytes, in any disguise."""
    patterns = {pattern: secret for secret in secrets() for pattern in disguises(secret)}
    any_of = re.compile(b"|".join(map(re.escape, patterns)), re.IGNORECASE)
    return [f"{place}: {patterns.get(hit, hit)!r}" for place, data in where.items() for hit in any_of.findall(data)]


def everything(out: Path, streams: tuple[str, str]) -> dict[str, bytes]:
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    return files | {"stdout": streams[0].encode(), "stderr": streams[1].encode()}


def test_the_search_finds_what_is_planted_in_every_disguise():
    secret = secrets()[7]
    for data in (f"x{secret}y", secret.upper(), f"{secret}".encode().hex(), *(
        base64.b64encode(b"z" * n + secret.encode() + b"w" * 5).decode() for n in range(6)
    )):  # fmt: skip
        assert found({"here": data.encode()}), data


@pytest.mark.parametrize("output", ["--json", ""])
def test_no_planted_string_leaves_its_client(planted, failing, model_folder, tmp_path, capfd, output):
    command = ["run", *settings(planted, model_folder("llama"), tmp_path / "runs"), *([output] if output else [])]
    assert main(command) == 0
    out = tmp_path / "runs"
    places = everything(out, capfd.readouterr())
    names = {name.split("/")[-1] for name in places}
    assert {"journal.jsonl", "rounds.jsonl", "summary.json", "report.html", "adapter_model.safetensors"} <= names
    assert found(places) == []
    (rounds,) = out.glob("*/rounds.jsonl")
    first = json.loads(rounds.read_text().splitlines()[0])
    assert {r["client"] for r in first["rejected"]} == failing
    assert {r["code"] for r in first["rejected"]} == {
        "error:ValueError", "error:KeyError", "error:RuntimeError", "error:UnicodeDecodeError", "out-of-memory",
        "error:FileNotFoundError",
    }  # fmt: skip
    assert set(first["weights"]) == {"ward-a", "ward-h"}


def test_no_planted_string_is_in_the_error_of_a_run_that_ends(planted, failing, model_folder, tmp_path, capfd):
    more = ("federation.min_updates=3",)
    assert main(["run", *settings(planted, model_folder("llama"), tmp_path / "runs", *more)]) == 6
    streams = capfd.readouterr()
    assert "ward-b: error:ValueError" in streams.err and "--debug" in streams.err
    assert found(everything(tmp_path / "runs", streams)) == []
    (journal,) = (tmp_path / "runs").glob("*/journal.jsonl")
    assert "ward-b: error:ValueError" in journal.read_text()


def test_the_texts_are_on_stderr_when_requested(planted, failing, model_folder, tmp_path, capfd):
    logger = logging.getLogger("shepherd")
    try:
        assert main(["--debug", "run", *settings(planted, model_folder("llama"), tmp_path / "runs")]) == 0
    finally:
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
    streams = capfd.readouterr()
    assert found({"stderr": streams.err.encode()})
    assert found({k: v for k, v in everything(tmp_path / "runs", streams).items() if k != "stderr"}) == []


def test_the_planted_rows_were_trained_on(planted, model_folder, tmp_path, capfd):
    """Without training on the strings, the other tests would prove nothing."""
    assert main(["run", *settings(planted, model_folder("llama"), tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    table = json.loads((run / "partition.json").read_text())
    assert sum(map(len, table["clients"].values())) == 72 and len(table["clients"]) == 8
    record = json.loads((run / "rounds.jsonl").read_text().splitlines()[0])
    assert len(record["weights"]) == 8 and np.isfinite(list(record["train_loss"].values())).all()
    assert found(everything(tmp_path / "runs", capfd.readouterr())) == []
