"""The table `privacy` of a run card: the mechanism that all sites agree on, and in words who is trusted with what.

Its noise multiplier is a number, fixed before the first round: a site computes ε from it, and from nothing that the
coordinator says of ε.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shepherd.federation.document import Document
from shepherd.updates.privacy.adaptive_clip import LEAST_CLIP, MOST_CLIP, QUANTILE, RATE

TRUST = {
    "client": "The coordinator is trusted: it sees the clipped update of each site, draws the cohorts and adds the "
    "noise. A site cannot see whether it does. The guarantee is against all others.",
    "example": "Nobody but the site is trusted: it adds the noise before anything leaves it, and keeps the account.",
}
"""Unit -> what a person who approves a card has to know."""
LARGEST_NORMAL = 8.8
"""Above every number that updates/privacy/noise.py can draw."""


class PrivacyCard(Document):
    """Differential privacy of a run over sites.

    Unit client: N sites of the first round, each in a round independently with probability q. Unit example: DP-SGD at
    every site, whose q follows from its own rows.
    """

    unit: Literal["client", "example"]
    mechanism: Literal["poisson-gaussian"] = "poisson-gaussian"
    clip: float = Field(ge=LEAST_CLIP, le=MOST_CLIP)
    """C: of an update, or of the gradient of one row."""
    adaptive_clip: bool = False
    noise_multiplier: float = Field(ge=0, le=1e6)
    """z: the standard deviation of the noise over the clip."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    epsilon: float = Field(0.0, ge=0)
    """The budget of the recipe, 0 for none. A site computes its own."""
    sites: int = Field(0, ge=0, le=10**6)
    """N of unit client: the fewest sites at the first round, after which their number is fixed."""
    sampling_rate: float = Field(0.0, ge=0, le=1)
    """q of unit client."""
    noise: Literal["secret", "repeatable"] = "secret"
    """Whether it is drawn from the randomness of the system. A run with repeatable noise is not private."""
    drawn_by: Literal["coordinator", "site"]
    """Who draws the noise."""
    trust: str = Field(max_length=400)
    """`TRUST` of the unit."""

    @model_validator(mode="after")
    def _one_mechanism(self) -> PrivacyCard:
        of_clients = self.unit == "client"
        fits = (
            self.trust == TRUST[self.unit]
            and self.drawn_by == ("coordinator" if of_clients else "site")
            and of_clients == (self.sites > 0) == (self.sampling_rate > 0)
            and (of_clients or not (self.adaptive_clip or self.epsilon))
        )
        if not fits:
            raise ValueError("the keys are not those of one mechanism")
        return self

    @property
    def cohort(self) -> float:
        """qN of unit client: the mean number of sites in a round, if no more than N take part."""
        return self.sampling_rate * self.sites

    def largest_move(self, round_number: int) -> float:
        """The most by which ln C of a round can differ from that of the first, by the rule of adaptive clipping.

        In a round the count of clipped updates moves b̄ by at most 1/(2q), and its noise by LARGEST_NORMAL/20.
        """
        if not self.adaptive_clip:
            return 0.0
        return (round_number - 1) * RATE * (QUANTILE / self.sampling_rate + LARGEST_NORMAL / 20)


def shown_cohort(found: PrivacyCard | None, sampled: int) -> int:
    """The number of sites that a task states: those sampled, or the mean where who is sampled is a secret."""
    return sampled if found is None or found.unit == "example" else max(1, round(found.cohort))
