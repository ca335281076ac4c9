"""A small model of the rules of a federation: what counts, from what really happened on the wire.

Written from the design (sites: states, rules) and not from the code: it imports nothing but the reader of messages. It
follows questions, arrivals, presence and commits, and predicts each outcome, the next model and each private state.
Numbers stand for tensors: a model is a whole number below P, a site's private state another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

P = 1009
ROWS = {"a": 4, "b": 5, "c": 6, "d": 7}
"""Rows of each site, as it stated them: also its weight, and the rows of its task."""


def moved(client: str, number: int, model: int, private: int) -> int:
    """What a site's training adds to the model: it depends on all that may be confused with something else."""
    return (7 * model + 13 * private + 31 * number + 101 * ord(client)) % P


def kept(client: str, number: int, model: int, private: int) -> int:
    """The private state of a site after a round."""
    return (1 + 5 * private + 3 * model + number + ord(client)) % P


@dataclass
class Attempt:
    """One question of a round, and what each site did about it."""

    number: int
    round: int
    clients: tuple[str, ...] = ()
    usable: dict[str, int] = field(default_factory=dict)  # in the order of arrival
    final: dict[str, str] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)
    gate: set[str] = field(default_factory=set)

    def outcome(self, client: str, present: set[str]) -> str:
        """The outcome of a site when the wait is over."""
        if client in self.gate:
            return "rejected"
        if client in self.usable:
            return "trained"
        if client in self.final:
            return self.final[client]
        if client in self.spoilt:
            return "rejected"
        return "late" if client in present else "lost"


@dataclass
class Rules:
    """The federation as it has to be."""

    model: int = 1
    round: int = 0
    private: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROWS, 0))
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROWS, 0))
    counted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROWS, 0))
    attempt: Attempt | None = None
    attempts: int = 0
    strikes: dict[str, int] = field(default_factory=dict)
    asked: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """(round, private state to start from) of each question to each site."""
    trained: dict[str, int] = field(default_factory=dict)

    def asks(self, number: int) -> None:
        """A question for a round: the attempt before, if it was not committed, has not happened."""
        assert number > self.attempts, "attempts only grow"
        self.attempts = number
        self.attempt = Attempt(number, self.round + 1)

    def asks_also(self, client: str) -> dict[str, int]:
        """One more site of the attempt: what its task has to say."""
        assert self.attempt is not None
        self.attempt.clients = (*self.attempt.clients, client)
        self.asked[client, self.attempt.number] = self.attempt.round, self.private[client]
        return {"round": self.round + 1, "first_row": self.rows[client], "counted": self.counted[client]}

    def trains(self, client: str, attempt: int, number: int, private: int) -> None:
        """A site trains: from the state that counted at the question, and nothing older than what it trained last."""
        assert attempt >= self.trained.get(client, 0), f"{client} trains attempt {attempt}, which is over"
        self.trained[client] = attempt
        asked_in, state = self.asked[client, attempt]
        assert number == asked_in
        assert private == state, f"attempt {attempt}: {client} starts from {private}, what counted is {state}"

    def arrives(self, client: str, answer: dict | None, holds_lease: bool) -> None:
        """An answer at the coordinator while it waits; None: bytes without a message."""
        now = self.attempt
        if now is None or client not in now.clients or client in now.usable or client in now.final:
            return
        if answer is None:
            now.spoilt.add(client)
            return
        if answer["run"] != "demo" or answer["attempt"] != now.number or not holds_lease:
            return
        if answer["code"]:
            now.final[client] = {"refused": "lost", "diverged": "failed"}.get(
                answer["code"].partition(":")[0], "failed"
            )
        elif answer["rows"] != ROWS[client]:
            now.spoilt.add(client)
        else:
            now.usable[client] = answer["moved"]
            if not answer["finite"]:
                now.gate.add(client)

    def commits(self, present: set[str]) -> dict[str, str]:
        """The round is committed: the outcome of each site."""
        now = self.attempt
        assert now is not None
        outcomes = {client: now.outcome(client, present) for client in now.clients}
        added = 0
        for client, outcome in sorted(outcomes.items()):
            if outcome == "trained":
                added += ROWS[client] * now.usable[client]
                self.private[client] = kept(client, now.round, self.model, self.private[client])
                self.rows[client] += ROWS[client]
                self.counted[client] = now.round
                self.strikes.pop(client, None)
            elif outcome in ("failed", "rejected"):
                self.strikes[client] = self.strikes.get(client, 0) + 1
        self.model = (self.model + added) % P
        self.round, self.attempt = now.round, None
        return outcomes


def ideal(counted: list[list[str]]) -> tuple[int, dict[str, int]]:
    """(model, private states) of a federation without faults in which these sites counted in each round."""
    model, private = 1, dict.fromkeys(ROWS, 0)
    for number, clients in enumerate(counted, 1):
        added = sum(ROWS[c] * moved(c, number, model, private[c]) for c in clients)
        private |= {c: kept(c, number, model, private[c]) for c in clients}
        model = (model + added) % P
    return model, private
