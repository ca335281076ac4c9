"""The store: run directories on disk, the interface between commands.

In: bytes, rows, folders. Out: files that appear atomically, and rounds that are committed or absent after any crash,
power cut or full disk. `run.py` is the directory, `rounds.py` commits and verifies checkpoints, `lines.py` appends to
journal and metrics, `lock.py` admits one writer, `state.py` saves a server state, `records.py` a round.
Add a file of a run with a method of `RunDirectory` and a class in `updates/privacy/publication.py`; write through
`disk.py`, so that tests can break every operation.
"""

from shepherd.store.disk import Disk
from shepherd.store.folders import commit_folder
from shepherd.store.lines import Journal, read_journal
from shepherd.store.lock import Writer, writer_of
from shepherd.store.manifest import MANIFEST, check_sealed
from shepherd.store.reading import open_run, read_json
from shepherd.store.rounds import Checkpoint, Found, Rejected, Rounds, checkpoint_name
from shepherd.store.run import Recovered, RunDirectory

__all__ = [
    "MANIFEST", "Checkpoint", "Disk", "Found", "Journal", "Recovered", "Rejected", "Rounds", "RunDirectory", "Writer",
    "check_sealed", "checkpoint_name", "commit_folder", "open_run", "read_journal", "read_json", "writer_of",
]  # fmt: skip
