"""The run directory: the interface between commands. In: bytes, rows, folders. Out: files that appear whole or not
at all, and rounds that are committed or absent, whatever is cut off, full or broken.

`run.py` is the directory; `rounds.py` commits and verifies rounds; `lines.py` holds journal and metrics; `lock.py`
keeps the second writer out; everything is written through `disk.py`, so that tests can break any operation.
"""

from shepherd.store.disk import Disk
from shepherd.store.folders import commit_folder
from shepherd.store.lines import Journal, read_journal
from shepherd.store.lock import Writer, writer_of
from shepherd.store.manifest import MANIFEST, check_sealed
from shepherd.store.rounds import Checkpoint, Found, Rejected, Rounds, checkpoint_name
from shepherd.store.run import Recovered, RunDirectory, open_run, read_json

__all__ = [
    "MANIFEST", "Checkpoint", "Disk", "Found", "Journal", "Recovered", "Rejected", "Rounds", "RunDirectory", "Writer",
    "check_sealed", "checkpoint_name", "commit_folder", "open_run", "read_journal", "read_json", "writer_of",
]  # fmt: skip
