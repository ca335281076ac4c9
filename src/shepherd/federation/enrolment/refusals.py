"""Why a signing request is refused: a code on the wire, a sentence at the site, a sentence at the coordinator.

No text crosses the network in either direction: each end prints sentences of this file, with names that it knows.
"""

from __future__ import annotations

from typing import NamedTuple


class Why(NamedTuple):
    """A refusal at the site, how to mend it, at the coordinator; `later`: the same request may succeed later."""

    site: str
    hint: str
    coordinator: str
    later: bool = False


_NEW = "get a new invitation from the coordinator (`shepherd federation invite`)"
REFUSALS = {
    "format": Why("the request cannot be read", "both ends need the same version of Shepherd", "no readable request"),
    "federation": Why(
        "the coordinator's federation is another one than the invitation's", _NEW, "a request for another federation"
    ),
    "proof": Why(
        "no open invitation of this site has this code: it was replaced or taken back, or is another site's",
        _NEW,
        "a request without the code of an open invitation",
    ),
    "used": Why("the invitation has been used by another request", _NEW, "an invitation that was used before"),
    "expired": Why("the invitation has expired", _NEW, "an invitation that has expired"),
    "closed": Why(
        "the invitation is closed: too many requests came with another code",
        _NEW,
        "an invitation that is closed after too many wrong codes",
    ),
    "removed": Why(
        "the site was removed from the federation", "ask the coordinator", "a request of a site that was removed"
    ),
    "name": Why(
        "the request is for another name than the invitation's",
        "remove the folder `enrolment` and join again",
        "a request for a certificate in another name",
    ),
    "key": Why(
        "the key of the request is not RSA of 2048 to 4096 bits",
        "remove the folder `enrolment` and join again",
        "a request with a key of another kind",
    ),
    "not-due": Why(
        "the certificate has too much time left to be renewed",
        "the coordinator can allow it earlier: `shepherd federation renew`",
        "a renewal that is not due",
    ),
    "late": Why(
        "its certificate expired more than 14 days ago",
        "the coordinator can allow it again: `shepherd federation renew`",
        "a renewal more than 14 days after the end of the certificate",
    ),
    "key-proof": Why(
        "the renewal is not signed by the key of the site's present certificate",
        "restore the folder of the site from its backup, or ask the coordinator for an invitation in another name",
        "a renewal that the site's present key did not sign",
    ),
    "authority": Why(
        "the coordinator cannot issue certificates at present: the authority's key is not there",
        "ask the coordinator",
        "the authority's key is not there, or its tool fails",
        later=True,
    ),
    "busy": Why("the coordinator cannot answer at present", "try again", "the folder cannot be changed", later=True),
}


class Refused(Exception):
    """A request that is not granted, by its code in REFUSALS."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail  # for the coordinator only

    @property
    def why(self) -> Why:
        return REFUSALS[self.code]
