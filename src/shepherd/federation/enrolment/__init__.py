"""Enrolment: how a machine becomes a member of a federation, remains one, and is removed.

In: at the coordinator a folder with the authority, `folder.py`; at a site an invitation and a folder. Out: certificates
in the kits of NVFlare, and the list of members. Keys are made where they are used and never leave. `desk.py` decides
for the coordinator, `listener.py` is its door to the network, `joining.py` is the site; NVFlare's own tool issues.
"""

import importlib.util

from shepherd.errors import missing_extra

if importlib.util.find_spec("cryptography") is None:
    raise missing_extra("cryptography", "federation")

from shepherd.federation.enrolment.desk import approve, invite, remove, renew
from shepherd.federation.enrolment.folder import FederationFolder, new_federation
from shepherd.federation.enrolment.invitation import Invitation, read_invitation
from shepherd.federation.enrolment.joining import complete, enrol, renew_site, request
from shepherd.federation.enrolment.listener import listener
from shepherd.federation.enrolment.members import Member
from shepherd.federation.enrolment.place import Membership, is_unsettled, membership, renewal_due, settle

__all__ = [
    "FederationFolder", "Invitation", "Member", "Membership", "approve", "complete", "enrol", "invite", "is_unsettled",
    "listener", "membership", "new_federation", "read_invitation", "remove", "renew", "renew_site", "renewal_due",
    "request", "settle",
]  # fmt: skip
