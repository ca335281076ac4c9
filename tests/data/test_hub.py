"""Models and data from a hub on the loopback, by the command line: what comes, what stays, what is refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import SMALL_RUN
from fake_hub import FakeHub

pytestmark = pytest.mark.timeout(180)
SOURCES = Path(__file__).parents[2] / "src"
NAME = "lab/tiny"


class Said(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def hub():
    with FakeHub() as running:
        yield running


@pytest.fixture
def shell(hub, tmp_path):
    """shell("model", "pull", "lab/tiny") -> the output of a new process with a separate cache and no other network."""

    def environment() -> dict[str, str]:
        ours = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        return ours | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "SHEPHERD_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(SOURCES), "OMP_WAIT_POLICY": "PASSIVE",
        }  # fmt: skip

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "shepherd", *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
        )

    def call(*arguments: str) -> Said:
        with start(*arguments) as process:
            out, err = process.communicate()
        return Said(process.returncode, out, err)

    call.start = start
    return call


@pytest.fixture
def files(model_folder) -> dict[str, bytes]:
    """A tiny model as the hub has it: every repository there has a .gitattributes, which no pull wants."""
    model = {path.name: path.read_bytes() for path in model_folder("llama").iterdir() if path.is_file()}
    return model | {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


def weights(hub, method="GET") -> int:
    return sum(verb == method and path.endswith("model.safetensors") for verb, path in hub.asked)


def same(folder: str, files: dict[str, bytes]) -> bool:
    found = {path.name: path.read_bytes() for path in Path(folder.strip()).iterdir()}
    return found == {name: content for name, content in files.items() if name in found} and "config.json" in found


def partial(tmp_path: Path) -> list[Path]:
    """Files of an unfinished download, and snapshots that hold weights."""
    root = tmp_path / "hf" / "hub"
    return [*root.rglob("*.incomplete"), *root.rglob("snapshots/*/*.safetensors")]


def test_a_model_is_pulled_by_id_and_a_run_then_needs_no_hub(hub, shell, files, tmp_path):
    hub.add(NAME, files | {"unasked.h5": b"x", "onnx/model.onnx": b"x"}, "main")
    pulled = shell("model", "pull", NAME)
    assert pulled.status == 0 and same(pulled.out, files), pulled.err
    assert not any("unasked" in path or "onnx" in path for _, path in hub.asked if "/resolve/" in path)
    assert NAME in shell("model", "list").out
    hub.down, before = True, len(hub.asked)
    settings = [*SMALL_RUN, "federation.rounds=1", "evaluation.arms=base,federated", "evaluation.generate=0"]
    run = shell("run", "--model", NAME, "--out", "runs", *(f"--set={setting}" for setting in settings))
    assert run.status == 0, run.err
    assert len(hub.asked) == before, "a run asks no hub"
    assert json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())["model"]["name"] == NAME


def test_a_revision_is_the_requested_one_and_each_stays_in_the_cache(hub, shell, files):
    old = {**files, "README.md": b"old"}
    commit = hub.add(NAME, old, "v1")
    hub.add(NAME, {**files, "README.md": b"new"}, "main")
    folders = {r: shell("model", "pull", NAME, *(["--revision", r] if r else [])).out for r in ("v1", "", commit)}
    assert (Path(folders["v1"].strip()) / "README.md").read_bytes() == b"old"
    assert (Path(folders[""].strip()) / "README.md").read_bytes() == b"new"
    assert folders["v1"] == folders[commit]
    absent = shell("model", "pull", NAME, "--revision", "v9")
    assert absent.status == 4 and f"no {NAME} at revision 'v9'" in absent.err
    assert weights(hub) == 1, "the same bytes are fetched once"


@pytest.mark.parametrize("kind", ["missing", "private"])
def test_a_missing_or_private_repository_is_reported_as_one_of_the_two(hub, shell, files, kind):
    if kind == "private":
        hub.add(NAME, files, "main")
        hub.private.add(NAME)
    said = shell("model", "pull", NAME)
    assert said.status == 4 and f"the hub has no {NAME}, or you may not see it" in said.err
    assert "hf auth login" in said.err and "Traceback" not in said.err


def test_the_error_for_a_gated_model_names_the_page_on_which_to_accept_its_terms(hub, shell, files, tmp_path):
    hub.add(NAME, files, "main")
    hub.gated.add(NAME)
    said = shell("model", "pull", NAME)
    assert said.status == 4 and f"{NAME} asks you to accept its terms" in said.err and f"/{NAME}" in said.err
    assert partial(tmp_path) == []


def test_a_hub_that_does_not_answer_is_a_network_error(hub, shell, files):
    hub.down = True
    said = shell("model", "pull", NAME)
    assert said.status == 7 and f"{NAME} cannot be downloaded" in said.err and "HF_ENDPOINT" in said.err


def test_a_download_that_breaks_off_goes_on_near_where_it_stopped(hub, shell, files):
    large = files | {"model.safetensors": os.urandom(25_000_000)}  # what is resumed is in pieces of 10 MB
    hub.add(NAME, large, "main")
    hub.cut["model.safetensors"] = 1
    said = shell("model", "pull", NAME)
    assert said.status == 0 and same(said.out, large), said.err
    (asked,) = hub.ranges
    assert 0 < int(asked.removeprefix("bytes=").removesuffix("-")) <= 12_500_000 and weights(hub) == 2


def test_a_pull_that_was_killed_halfway_is_not_taken_for_a_model_and_the_next_one_mends_it(hub, shell, files):
    hub.add(NAME, files, "main")
    hub.stall = "model.safetensors"
    with shell.start("model", "pull", NAME) as process:
        assert hub.stalled.wait(60)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    said = shell("check", "--model", NAME)
    assert said.status == 4 and f"shepherd model pull {NAME}" in said.err
    hub.go.set()
    again = shell("model", "pull", NAME)
    assert again.status == 0 and same(again.out, files), again.err


def test_a_model_with_pickled_weights_only_is_refused_and_they_are_not_even_fetched(hub, shell, files, tmp_path):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    pickled = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
    hub.add(NAME, pickled | {"pytorch_model.bin": pickle.dumps(Bomb())}, "main")
    said = shell("model", "pull", NAME)
    assert said.status == 4 and "no safetensors weights" in said.err and "can hold code" in said.err
    assert not any("pytorch_model.bin" in path for _, path in hub.asked)
    assert shell("check", "--model", NAME).status == 4 and not canary.exists()


def test_code_beside_a_model_is_not_fetched_and_a_model_that_needs_it_is_refused(hub, shell, files, tmp_path):
    canary = tmp_path / "canary"
    config = json.loads(files["config.json"]) | {
        "model_type": "sheepdog",
        "auto_map": {"AutoConfig": "code.SheepConfig", "AutoModelForCausalLM": "code.SheepForCausalLM"},
    }
    code = f"open({str(canary)!r}, 'w')\n".encode()
    hub.add(NAME, files | {"config.json": json.dumps(config).encode(), "code.py": code}, "main")
    pulled = shell("model", "pull", NAME)
    assert pulled.status == 0 and not (Path(pulled.out.strip()) / "code.py").exists()
    said = shell("check", "--model", NAME)
    assert said.status == 4 and "it needs code of its own, which is never run" in said.err
    assert not canary.exists() and not any("code.py" in path for _, path in hub.asked)


ROWS = [{"instruction": f"Q{i}", "context": "", "response": f"A{i}", "category": "ab"[i % 2]} for i in range(6)]
CARD = b"---\nlicense: cc-by-sa-3.0\n---\n# Rows\n"


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def inspect(hub, shell, files, tmp_path):
    """inspect("hub:lab/rows") -> what `data inspect --json` says, with a tiny tokenizer and the package datasets."""
    pytest.importorskip("datasets")
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    for name, content in files.items():
        (tiny / name).write_bytes(content)
    return lambda source: shell("data", "inspect", source, "--model", str(tiny), "--json")


def test_rows_of_the_hub_come_with_their_split_and_the_licence_on_their_card(hub, inspect):
    hub.add("datasets/lab/rows", {"README.md": CARD, "train.jsonl": lines(ROWS), "test.jsonl": lines(ROWS[:2])}, "main")
    said = inspect("hub:lab/rows")
    facts = json.loads(said.out)
    assert said.status == 0 and (facts["rows"], facts["licence"]) == (6, "cc-by-sa-3.0"), said.err
    assert "examples/s" not in said.err  # no progress bar where nobody looks
    assert "not read: the split test (2 rows); --set data.held_out_source=hub:lab/rows@test" in facts["notes"][0]
    assert json.loads(inspect("hub:lab/rows@test").out)["rows"] == 2
    hub.down = True
    again = json.loads(inspect("hub:lab/rows").out)
    assert again == facts  # what was fetched is there without the hub too


def test_a_dataset_without_a_card_has_an_unknown_licence(hub, inspect):
    hub.add("datasets/lab/bare", {"train.jsonl": lines(ROWS)}, "main")
    assert json.loads(inspect("hub:lab/bare").out)["licence"] == "unknown"


def test_a_dataset_that_needs_custom_code_or_is_pickled_is_refused_and_nothing_runs(hub, inspect, tmp_path):
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\n".encode()
    hub.add("datasets/lab/script", {"script.py": code, "train.jsonl": lines(ROWS)}, "main")
    said = inspect("hub:lab/script")
    assert said.status == 3 and "script.py" in said.err

    class Bomb:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    hub.add("datasets/lab/pickled", {"train.pkl": pickle.dumps(Bomb())}, "main")
    assert inspect("hub:lab/pickled").status == 7
    assert not canary.exists()


def test_a_set_that_is_not_there_or_closed_is_named_with_what_to_do(hub, inspect):
    hub.add("datasets/lab/rows", {"train.jsonl": lines(ROWS)}, "main")
    hub.add("datasets/lab/closed", {"train.jsonl": lines(ROWS)}, "main")
    hub.gated.add("datasets/lab/closed")
    for source, status, words in (
        ("hub:lab/nothing", 7, "doesn't exist on the Hub"),
        ("hub:lab/closed", 7, "gated"),
        ("hub:lab/rows@dev", 3, "Unknown split"),
    ):
        said = inspect(source)
        assert (said.status, source in said.err, words in said.err) == (status, True, True), said.err
        assert "hint: check the name and the network" in said.err


def test_a_folder_of_the_same_name_is_not_taken_for_the_hub(hub, inspect, tmp_path):
    hub.add("datasets/lab/rows", {"train.jsonl": lines(ROWS)}, "main")
    (tmp_path / "lab" / "rows").mkdir(parents=True)
    (tmp_path / "lab" / "rows" / "train.jsonl").write_bytes(lines(ROWS[:1]))
    said = inspect("hub:lab/rows")
    assert said.status == 3 and "lab/rows exists in this folder" in said.err
