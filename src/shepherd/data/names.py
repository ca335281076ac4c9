"""Client names: safe ids for paths and messages, and names that are easily confused."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from shepherd.types import ClientId

LONGEST = 64
_LATIN = str.maketrans("авекмнорстухіјѕһԁԛԝαβεζηικμνορτυχı", "abekmhopctyxijshdqwabezhikmnoptyxi")
"""Letters of Cyrillic and Greek, in lower case, that resemble a Latin one (Unicode TR39)."""
_DASHES = re.compile(r"[\s_\-\u00ad\u058a\u2010-\u2015\u2043\u2212\ufe58\ufe63\uff0d]+")
_INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufe00-\ufe0f]")


def safe_names(labels: Sequence[str]) -> list[ClientId]:
    """Client ids of at most 64 ASCII letters, digits, `.`, `_`, `-`, distinct regardless of case, as they name files.

    A label that already is such an id is kept. Others lose their accents; one that would lose most of its letters is
    numbered. If an id is taken, `.` and four hexadecimal digits of the label's sha256 follow, unlike any numbered part.
    """
    ids: dict[int, ClientId] = {}
    taken: set[str] = set()
    plain = [_plain(label) or f"client-{number:03d}" for number, label in enumerate(labels)]
    for number in sorted(range(len(labels)), key=lambda n: plain[n] != labels[n]):  # labels that are ids go first
        name, digits, label = plain[number], 4, labels[number]
        while name.casefold() in taken:
            mark = hashlib.sha256(f"{label}\0{number if digits > 16 else ''}".encode("utf-8", "replace")).hexdigest()
            name = f"{plain[number][: LONGEST - 1 - digits]}.{mark[:digits]}"
            digits += 1
        taken.add(name.casefold())
        ids[number] = name
    return [ids[number] for number in range(len(labels))]


def _plain(label: str) -> str:
    letters = unicodedata.normalize("NFKD", label)
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip(".-")[:LONGEST]
    kept, given = (sum(map(str.isalnum, text)) for text in (plain, letters[:LONGEST]))
    return plain if 2 * kept >= given else ""


def look_alikes(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of labels that differ only in case, width, dashes, spaces, invisible characters or look-alike letters."""
    groups: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        groups.setdefault(_skeleton(label), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _skeleton(label: str) -> str:
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", label)).casefold()
    return _DASHES.sub(" ", text.translate(_LATIN)).strip()
