"""Fill the disk under runs, give the space back, resume: a program for test_full_disk.py.

    python full_disk_runs.py '{"recipe": "...", "folder": "...", "how": "limit", "sizes": [4096, 65536]}'

how: "limit", no file may grow beyond so many bytes; "volume", the run's folder is a volume of that size (the program
must then be allowed to mount one: `unshare -Urm`). Prints {"whole": ending, "runs": [{"size", "status", "said",
"left", "broken", "again", "ending"}]}: what the full disk left visible, what of it is broken, how going on ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import traceback
from pathlib import Path

from kill_runs import ending, import_noted, note_imports


def broken(run: Path) -> list[str]:
    """Visible files of a run directory that are not whole."""
    from shepherd.model.adapter import load_adapter
    from shepherd.store import Rounds
    from shepherd.store.state import load_state

    found = [f"{name}: {reason}" for name, reason in Rounds(run / "checkpoints").check_all()[1]]
    for path in sorted(run.rglob("*")):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                assert path.read_bytes()[-1:] in (b"", b"\n")  # with no line yet it is whole
                [json.loads(line) for line in path.read_bytes().splitlines()]
            elif path.name == "report.html":
                assert path.read_text().rstrip().endswith("</html>")
            elif path.name.startswith("round-"):
                load_state(path)
            elif path == run / "adapter":
                load_adapter(path)
        except Exception as error:
            found.append(f"{path.relative_to(run)}: {type(error).__name__}")
    return found


def command(arguments: list[str], log: Path, limit: int = 0) -> int:
    """The exit status of `shepherd …` in a process of its own; its talk goes to `log`."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        talk = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(talk, 1)
        os.dup2(talk, 2)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        from shepherd.cli.main import main
        from shepherd.experiment import inputs

        inputs.MARGIN = float("inf")  # what fills the disk comes after the run has looked at it

        status = main(arguments)
        if not (noted := log.with_name("imported")).exists():
            note_imports(noted)
    except BaseException:
        traceback.print_exc()
        status = 99
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "shepherd-test", str(folder)], check=True)


def main() -> None:
    spec = json.loads(sys.argv[1])
    import torch

    from shepherd.experiment import run as experiment
    from shepherd.recipe import load
    from shepherd.report import html  # noqa: F401

    torch.set_num_threads(1)
    root, log = Path(spec["folder"]), Path(spec["folder"]) / "log"
    name = load(spec["recipe"]).run.name
    start = ["run", spec["recipe"], "--plain", "--out"]
    assert command([*start, str(root / "whole")], log) == 0, log.read_text()
    import_noted(root / "imported")  # so that no run that is forked later imports it again
    assert experiment.resume(root / "whole" / name).path
    result = {"whole": ending(root / "whole" / name), "runs": []}
    for size in spec["sizes"]:
        out = root / str(size)
        out.mkdir()
        if spec["how"] == "volume":
            mount(out, f"size={size}")
        run = out / name
        status = command([*start, str(out)], log, size if spec["how"] == "limit" else 0)
        told = {"size": size, "status": status, "said": log.read_text(), "broken": broken(run)}
        told["left"] = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
        if spec["how"] == "volume":
            mount(out, "remount,size=64m")
        if (run / "identity.json").exists():
            again = command(["resume", str(run), "--plain"], log)
        else:
            run = run.with_name("again")
            again = command([*start, str(out), "--name", "again"], log)
        told |= {"again": again, "then": log.read_text(), "ending": ending(run) if again == 0 else None}
        told["report"] = (run / "report.html").exists()
        if spec["how"] == "volume":
            subprocess.run(["umount", str(out)], check=True)
        result["runs"].append(told)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
