"""Codes of a site's answer to a run card, a task or a measure. The code leaves the site, the text does not."""

from __future__ import annotations

from collections.abc import Mapping

ADMITTED = "admitted"
WAITING = "approval"
DECLINED = "declined"

VERDICTS: Mapping[str, str] = {
    ADMITTED: "the site takes part",
    WAITING: "a person at the site has not approved the card yet",
    DECLINED: "a person at the site has declined the card",
    "card": "the card cannot be read",
    "card-changed": "the run had another card before",
    "version": "the site runs another version",
    "base": "the site has another base model, or its policy allows another one only",
    "tokenizer": "the site has another tokenizer or chat template",
    "method": "the policy does not allow the method, or it is none of the built-in ones",
    "optimizer": "the server optimizer is none of the built-in ones",
    "personalization": "the policy does not allow the personalization, or it is none of the built-in ones",
    "transform": "the policy does not allow a transform of updates, or it is none of the built-in ones",
    "outside-code": "the message names code from outside the package",
    "rounds": "more rounds than the policy allows",
    "runs": "more runs than the policy allows the site to keep",
    "trainings": "more tasks in a run than the policy allows",
    "measures": "more measures in a run than the policy allows",
    "steps": "more local steps than the policy allows",
    "rates": "a learning rate above the limit of the policy",
    "rows": "a task goes through more rows, or fewer, than the policy allows",
    "size": "an adapter with more parameters, or a larger message, than the policy allows",
    "cohort": "fewer sites in a round than the policy allows",
    "require": "a protection that the policy requires is missing",
    "window": "outside the hours of the policy",
    "no-rows": "the site has no usable rows",
    "few-rows": "the site has fewer usable rows than its policy asks for",
    "many-rows": "the site states more rows than a run can have",
    "rows-changed": "the rows are others than at the start of the run",
    "not-admitted": "the site does not take part in the run",
    "left": "the site has left the run",
    "stale": "the round or attempt is over",
    "other-site": "the message is for another site",
    "task": "the task cannot be read, or does not fit the card",
    "few-held-out": "the site has fewer held-out rows than its policy shows",
    "cannot": "the site cannot do this",
}
"""Every verdict of a site and its meaning."""


class Refused(Exception):
    """A task or measure that the site does not take: a code of VERDICTS."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict
