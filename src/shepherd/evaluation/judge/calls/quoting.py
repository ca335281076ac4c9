"""Quoted material in a prompt: delimiters that its author cannot know, escapes, and a limit of length.

    quoted("ANSWER-A", text, mark, limit=8000)
    # <<<5f0c…:ANSWER-A>>>
    # …
    # <<<5f0c…:END>>>

The mark of a call is drawn from a secret of the judging folder and from the call's key, so that a repeated command
writes the same prompt, and no author of an answer can know its mark. Whether this keeps a judge from following an
answer is measured by the probes, never assumed.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

SECRET = "quoting.secret"
PLACEHOLDER = "MARK"
"""Stands for the mark where a prompt is hashed: keys of calls do not depend on the secret."""

_RUN_OF_BRACKETS = re.compile("<{3,}")


def secret_of(folder: Path) -> bytes:
    """The secret of a judging folder, made at the first call, readable by its owner only. Not a key to anything."""
    file = folder / SECRET
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32) + "\n")
    return file.read_bytes().strip() or secrets.token_bytes(32)


def mark_of(secret: bytes, key: str) -> str:
    """The mark of a call, 16 hexadecimal digits: HMAC-SHA-256 of its key."""
    return hmac.digest(secret, key.encode(), "sha256").hex()[:16]


def quoted(name: str, text: str, mark: str, limit: int | None = None) -> str:
    """The text between two delimiters, with what looks like a delimiter escaped and a note where it was cut.

    limit: most characters shown.
    """
    shown = text if limit is None or len(text) <= limit else text[:limit]
    note = "" if shown == text else f"\n<<<{mark}:CUT, {len(shown)} of {len(text)} characters are shown>>>"
    return f"<<<{mark}:{name}>>>\n{escaped(shown)}{note}\n<<<{mark}:END>>>"


def encodable(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON may hold and UTF-8 does not: ? in their place."""
    return text.encode("utf-8", "replace").decode()


def escaped(text: str) -> str:
    """Text without runs of three or more `<`, with which every delimiter begins: ‹ in their place."""
    return _RUN_OF_BRACKETS.sub(lambda run: "‹" * len(run[0]), text)
