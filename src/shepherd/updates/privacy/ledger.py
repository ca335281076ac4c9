"""The privacy ledger: a line for every release, on the medium before its noise is drawn; ε is that of the lines.

    ledger = Ledger(read_releases(path), write)      # write(line) returns when the line is durable
    ledger.enter(release)                            # then, and only then, the noise may be drawn
    ledger.epsilon(delta)

A release that was entered counts, whether or not its round was committed: after a crash the round has a new cohort and
new noise, and both lines stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from shepherd.errors import DataError
from shepherd.updates.privacy.accountant import Epsilons, Rounds, combined, epsilons

FILE, MECHANISM, VERSION = "privacy.jsonl", "poisson-gaussian", 1
CUT = "the privacy account was cut; this run cannot go on as private"
"""The end of a refusal that --force does not lift."""


class Line(Protocol):
    """A line of a ledger, a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def round(self) -> int:
        """The round of the run."""
        ...

    @property
    def noise(self) -> str:
        """Whether it is "secret" or "repeatable"."""
        ...

    @property
    def noise_multiplier(self) -> float:
        """z."""
        ...

    @property
    def clip(self) -> float:
        """C."""
        ...

    @property
    def rounds(self) -> Rounds:
        """The line as the accountant takes it. Raises ValueError where it is of no known mechanism."""
        ...


@dataclass(frozen=True)
class Release:
    """One line: the noised sum of a round, and of adaptive clipping its count.

    clients: N. sampling_rate: q. noise_multiplier: z of all that the round releases. clip: C. count_noise: σ_b, 0
    without a count. noise: "secret", or "repeatable" where it follows from run.seed.
    """

    attempt: int
    round: int
    clients: int
    sampling_rate: float
    noise_multiplier: float
    clip: float
    count_noise: float = 0.0
    noise: str = "secret"
    unit: str = "client"
    relation: str = "zero-out"
    mechanism: str = MECHANISM
    version: int = VERSION

    @property
    def rounds(self) -> Rounds:
        """The release as the accountant takes it. Raises ValueError where the line is of no known mechanism."""
        known = (self.unit, self.relation, self.mechanism, self.version) == ("client", "zero-out", MECHANISM, VERSION)
        if not known or self.noise not in ("secret", "repeatable"):
            raise ValueError("another mechanism, or a newer version")
        return Rounds(self.sampling_rate, self.noise_multiplier)


class Ledger:
    """The releases of a run, or of a client, in order.

    write: makes a line durable; it returns, or raises and nothing may be drawn. name: of the file, for messages.
    """

    def __init__(
        self,
        releases: Iterable[Line] = (),
        write: Callable[[Mapping[str, Any]], None] = lambda line: None,
        name: str = FILE,
    ) -> None:
        self._releases, self._write, self.name = [*releases], write, name

    @property
    def releases(self) -> tuple[Line, ...]:
        """All lines so far."""
        return tuple(self._releases)

    def enter(self, release: Line) -> None:
        """Add a line, durably."""
        self._write(asdict(release))
        self._releases.append(release)

    def attempt(self, round_number: int) -> int:
        """The number of the next attempt at a round, from 1."""
        return 1 + sum(release.round == round_number for release in self._releases)

    def epsilon(self, delta: float, more: Iterable[Line] = ()) -> Epsilons:
        """ε of all lines, and of `more` after them."""
        return epsilons(combined(release.rounds for release in (*self._releases, *more)), delta)

    @property
    def private(self) -> bool:
        """Whether every release has noise that nobody can draw again."""
        return all(r.noise == "secret" and r.noise_multiplier > 0 for r in self._releases)

    def mark(self) -> dict[str, Any]:
        """The number of lines and their sha256, for the manifest of a round."""
        return {"lines": len(self._releases), "sha256": _digest(self._releases)}

    def check(self, mark: Mapping[str, Any] | None) -> None:
        """Raise DataError where lines are missing, or others than when a round was committed with this `mark`.

        More lines are those of attempts that were not committed; they count.
        """
        if mark is None:
            return
        count = mark["lines"]
        if len(self._releases) < count:
            raise DataError(
                f"{self.name} has {len(self._releases)} of the {count} lines that the last round was committed with: "
                + CUT
            )
        if _digest(self._releases[:count]) != mark["sha256"]:
            raise DataError(f"{self.name} was changed after the last round was committed: {CUT}")


def noise_of(lines: Iterable[Line]) -> str:
    """Whether the noise of all lines is "secret", or that of some "repeatable"."""
    return "secret" if all(line.noise == "secret" for line in lines) else "repeatable"


def span(values: Iterable[Any]) -> Any:
    """The one value of all lines, or [the least, the most] where the recipe was changed between them."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else [found[0], found[-1]]


def read_releases(file: Path, kind: type[Line] = Release) -> list[Line]:
    """The lines of a ledger, of one `kind`. Raises DataError for one that is none: no ε can be computed without it.

    A last line without its end was not durable, so no noise was drawn for it, and it does not count. Nor does one with
    a zero byte: no JSON holds one, so a power cut left a sector unwritten (store.lines.append cuts it off).
    """
    return releases_in(file.read_bytes() if file.exists() else b"", kind, str(file))


def releases_in(data: bytes, kind: type[Line], name: str) -> list[Line]:
    """The same for the bytes of a ledger. name: of its file, for messages."""
    *lines, _unfinished = data.split(b"\n")
    if lines and b"\0" in lines[-1]:
        lines.pop()
    releases = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            if values.keys() != {field.name for field in fields(kind)}:
                raise ValueError("other keys")
            releases.append(release := kind(**values))
            _ = release.rounds
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number} is not a release ({error}): {CUT}") from None
    return releases


def _digest(releases: Iterable[Line]) -> str:
    text = "".join(json.dumps(asdict(release), sort_keys=True) + "\n" for release in releases)
    return hashlib.sha256(text.encode()).hexdigest()
