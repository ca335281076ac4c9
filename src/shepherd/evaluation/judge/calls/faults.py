"""What can go wrong with one call: the reason, whether another try may help, and the error that ends a command."""

from __future__ import annotations

import re
from typing import Literal

from shepherd.errors import NetworkError

Reason = Literal["key", "unknown", "quota", "limit", "server", "silence", "cut", "unreachable", "request", "reply"]
"""key: refused (401, 403). unknown: no such address or model (404). quota: the account has nothing left. limit: too
many requests (429). server: 5xx. silence: no reply in time. cut: the connection ended early. unreachable: no
connection. request: refused for what it contains (another 4xx). reply: not a chat completion."""
FINAL: frozenset[Reason] = frozenset({"key", "unknown", "quota", "unreachable"})
"""Reasons that concern every call: the command ends at the first one."""
AGAIN: frozenset[Reason] = frozenset({"limit", "server", "silence", "cut", "unreachable"})
"""Reasons for another try."""
SHOWN = 200
"""Most characters of a server's own words in a message."""


class CallError(NetworkError):
    """A call without a usable reply, after all its tries (exit status 7).

    tries: requests made. wait: seconds that the server asks for before the next one, None where it does not say.
    """

    def __init__(self, message: str, hint: str = "", *, reason: Reason, wait: float | None = None) -> None:
        super().__init__(message, hint)
        self.reason: Reason = reason
        self.wait = wait
        self.tries = 1


def without_secret(text: str, secret: str) -> str:
    """A server's words, short and on one line, with the key and what looks like one blotted out."""
    if secret:
        text = text.replace(secret, "[key]")
    text = re.sub(r"(?i)\b(?:(?:sk|pk|key)[-_]|bearer )[\w*.-]{6,}", "[key]", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
