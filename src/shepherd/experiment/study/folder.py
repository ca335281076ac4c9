"""The folder of a study, which several processes may share.

design.json, .gitignore, runs/RUN/ (a run directory), results/RUN/RUN.json (what the study keeps of it) or
results/RUN/ERROR.json, base/KEY.safetensors (losses of the base), and the outputs. One lock per run, in results/RUN.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shepherd.errors import DataError, UsageError
from shepherd.experiment.study.design import Planned, Study, changes
from shepherd.experiment.study.losses import problem_of
from shepherd.store import Writer, read_json, writer_of
from shepherd.store.disk import DISK, make_folders, write_whole
from shepherd.store.lock import locked
from shepherd.updates.privacy.publication import place_of

DESIGN, RECORD, ERROR = "design.json", "RUN.json", "ERROR.json"
_IGNORED = "runs/\nbase/\n.lock\n.writer.json\n"
_RESTORE = "put the study file back and give the same --set, or give another folder with --out"

State = Literal["finished", "failed", "running", "stopped", "waiting"]


@dataclass(frozen=True)
class Progress:
    """Where one run stands. detail: who carries it out, how far it got, or the first line of its error."""

    planned: Planned
    state: State
    detail: str = ""


@dataclass(frozen=True)
class StudyFolder:
    """Paths of a study's folder."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def base(self) -> Path:
        return self.path / "base"

    def run(self, planned: Planned) -> Path:
        """The run directory."""
        return self.runs / planned.name

    def results(self, planned: Planned) -> Path:
        """The folder of what is kept of the run."""
        return self.path / "results" / planned.name

    def open(self, study: Study) -> None:
        """Create the folder, or check that it holds this study. Raises UsageError with what differs."""
        self.check(study)
        file = self.path / DESIGN
        if not file.exists():
            make_folders(DISK, self.path)
            write_whole(DISK, file, _encoded(study.document))
            if not (self.path / ".gitignore").exists():
                write_whole(DISK, self.path / ".gitignore", _IGNORED.encode())

    def check(self, study: Study) -> None:
        """Raise UsageError where the folder holds a study with another design."""
        file = self.path / DESIGN
        if not file.exists():
            return
        document = json.loads(json.dumps(study.document))
        if differing := changes(read_json(file), document):
            shown = "\n".join(f"  {line}" for line in differing[:20])
            more = f"\n  and {len(differing) - 20} more" if len(differing) > 20 else ""
            raise UsageError(f"{self.path} holds a study with another design:\n{shown}{more}", hint=_RESTORE)

    @contextmanager
    def held(self, planned: Planned) -> Iterator[bool]:
        """Hold the lock of a run within the block; gives False where another process holds it."""
        folder = self.results(planned)
        make_folders(DISK, folder)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(folder, patience=0.3))
            except UsageError:
                yield False
                return
            yield True

    def record(self, planned: Planned) -> Mapping[str, Any] | None:
        """The RUN.json of a run; None where it has none. Raises UsageError where that is of other settings."""
        file = self.results(planned) / RECORD
        if not file.exists():
            return None
        found = read_json(file)
        try:
            digest, settings = found["digests"]["config"], found["config"]
            assert isinstance(settings, dict) and isinstance(found["arms"], dict) and isinstance(found["rows"], dict)
        except (KeyError, TypeError, AssertionError):
            raise DataError(
                f"{file} is not the record of a run", hint="restore it from a copy, or delete it: the run is repeated"
            ) from None
        if digest != planned.digest:
            lines = changes(settings, json.loads(json.dumps(planned.settings))) or ["its digest is another one"]
            shown = "\n".join(f"  {line}" for line in lines[:20])
            raise UsageError(
                f"{file} is of a run with other settings than the study has now:\n{shown}",
                hint="put the settings back, or take another folder with --out",
            )
        if problem := problem_of(found):
            raise DataError(
                f"{file} is damaged: {problem}", hint="restore it from a copy, or delete it: the run is repeated"
            )
        return found

    def write_record(self, planned: Planned, record: bytes) -> None:
        """Write the RUN.json of a run, with which the study has finished it."""
        write_whole(DISK, self.results(planned) / RECORD, record)
        (self.results(planned) / ERROR).unlink(missing_ok=True)

    def error(self, planned: Planned) -> Mapping[str, Any] | None:
        """How the last attempt at a run failed."""
        file = self.results(planned) / ERROR
        return read_json(file) if file.exists() else None

    def write_error(self, planned: Planned, message: str, hint: str, status: int) -> None:
        found = {"message": message, "hint": hint, "exit_status": status, "time": time.time()}
        write_whole(DISK, self.results(planned) / ERROR, _encoded(found))

    def progress(self, planned: Planned) -> Progress:
        """Where a run stands."""
        if self.record(planned) is not None:
            return Progress(planned, "finished")
        writer = writer_of(self.results(planned)) if self.results(planned).is_dir() else None
        rounds = self._rounds(planned)
        far = f"{rounds} of {planned.variant.config.federation.rounds} rounds" if rounds else ""
        if writer is not None:
            return Progress(planned, "running", "; ".join(filter(None, [_named(writer), far])))
        if (error := self.error(planned)) is not None:
            return Progress(planned, "failed", first_line(error["message"]))
        return Progress(planned, "stopped", far) if rounds else Progress(planned, "waiting")

    def _rounds(self, planned: Planned) -> int:
        file = place_of(self.run(planned), "rounds.jsonl")
        return file.read_bytes().count(b"\n") if file.exists() else 0


def first_line(message: str) -> str:
    """The first line of an error's message."""
    return message.strip().split("\n")[0] if message.strip() else "no message"


def _named(writer: Writer) -> str:
    return str(writer)


def _encoded(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
