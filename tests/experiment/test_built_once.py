"""What a run is made of is built once and handed on."""

from __future__ import annotations

from collections import Counter

import shepherd
from shepherd.data import sources
from shepherd.experiment import division, identity, method, plan
from shepherd.server import methods


def test_method_personalization_rows_and_plan_are_made_once_in_a_run(small_config, tmp_path, monkeypatch):
    calls: Counter[str] = Counter()

    def counted(room, name):
        inner = getattr(room, name)

        def count(*arguments, **options):
            calls[name] += 1
            return inner(*arguments, **options)

        return count

    for room, name in (
        (method, "prepare_method"), (method, "prepare_personal"), (division, "read_rows"), (sources, "load_examples"),
        (plan, "prepare_plan"), (methods, "build_method"),
    ):  # fmt: skip
        spy = counted(room, name)
        for module in {room, method, division}:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, spy)
    from shepherd.experiment import inputs

    monkeypatch.setattr(inputs, "prepare_plan", plan.prepare_plan)
    config = small_config("federation.rounds=1", "training.local_steps=1", "evaluation.generate=0")
    shepherd.run(config, out_dir=tmp_path)
    # The check of names builds the method too; what it builds is not kept.
    assert calls == {
        "prepare_method": 1, "prepare_personal": 1, "read_rows": 1, "load_examples": 1, "prepare_plan": 1,
        "build_method": 2,
    }  # fmt: skip


def test_the_digest_of_the_code_covers_every_file_of_the_package(tmp_path, monkeypatch):
    from pathlib import Path
    from shutil import copytree

    from shepherd import _version

    root = Path(shepherd.__file__).parent
    copy = copytree(root, tmp_path / "shepherd", ignore=lambda _, names: {n for n in names if n == "__pycache__"})
    monkeypatch.setattr(_version, "__file__", str(copy / "_version.py"))
    digest = identity.code_digest.__wrapped__
    assert digest() == identity.code_digest(), "the copy is the package that runs"
    files = sorted(copy.rglob("*.py"))
    assert {path.parent.name for path in files} >= {"shepherd", "experiment", "server", "clients", "data", "report"}
    before = digest()
    for path in files:
        text = path.read_bytes()
        path.write_bytes(text + b"#")
        assert digest() != before, path
        path.write_bytes(text)
    assert digest() == before
