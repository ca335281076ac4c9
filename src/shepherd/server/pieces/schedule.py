"""Training schedules, the factors that a client trains and sends: round -> (trains, sends) of its ClientModel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shepherd.registry import Registry

schedules = Registry("training schedule")


@dataclass(frozen=True)
class Schedule:
    """A training schedule: of(round) -> (trains, sends).

    sends: the factors sent over the rounds, for exactness and bytes. local: the factor that is trained and never sent.
    """

    of: Callable[[int], tuple[tuple[str, ...], str]]
    sends: tuple[str, ...]
    name: str = ""
    local: str = ""

    @property
    def one_factor(self) -> bool:
        """Whether only one factor moves in a round, so that the mean of factors is the mean of products."""
        return not self.local and all(part in ("A", "B", "core") for part in self.sends)

    @property
    def in_turn(self) -> bool:
        """Whether the local steps of a round train different parts."""
        return len(set(self.of(1)[0])) > 1


@schedules
def AB() -> Schedule:
    """Both factors, always."""
    return Schedule(lambda round_number: (("AB",), "AB"), ("AB",))


@schedules
def A() -> Schedule:
    """A alone; B keeps its initial value, which must not be zero."""
    return Schedule(lambda round_number: (("A",), "A"), ("A",))


@schedules
def B() -> Schedule:
    """B alone; A keeps its initial value, the same for all clients (FFA-LoRA)."""
    return Schedule(lambda round_number: (("B",), "B"), ("B",))


@schedules
def by_round() -> Schedule:
    """B in odd rounds, A in even ones (RoLoRA); B is first because A has no gradient while B is zero."""

    def of(round_number: int) -> tuple[tuple[str, ...], str]:
        part = "B" if round_number % 2 else "A"
        return (part,), part

    return Schedule(of, ("B", "A"))


@schedules
def by_step() -> Schedule:
    """Alternating local steps of B and A (LA-LoRA); both are sent."""
    return Schedule(lambda round_number: (("B", "A"), "AB"), ("AB",))


@schedules
def core() -> Schedule:
    """The small core between fixed bases (Fed-SB, Ravan)."""
    return Schedule(lambda round_number: (("B",), "core"), ("core",))


@schedules
def share_A() -> Schedule:
    """Both factors; A is sent, B stays local to each client (FedSA-LoRA)."""
    return Schedule(lambda round_number: (("AB",), "A"), ("A",), local="B")
