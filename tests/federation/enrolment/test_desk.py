"""Which requests are granted: with which proof, how often, until when, in which name; and what others learn."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from federation_kits import Authority, key
from shepherd.errors import ResourceError, UsageError
from shepherd.federation.enrolment import FederationFolder, Invitation, invite, new_federation, remove, renew, request
from shepherd.federation.enrolment import members as lists
from shepherd.federation.enrolment.authority import (
    BadRequest,
    check_certificate,
    check_request,
    issue,
    make_request,
    names_of,
    sign,
)
from shepherd.federation.enrolment.desk import approve, confirm, grant
from shepherd.federation.enrolment.invitation import proof_of, verifier_of
from shepherd.federation.enrolment.refusals import Refused
from shepherd.federation.enrolment.requests import (
    Answer,
    Confirmation,
    Request,
    encoded,
    read,
    renewal_message,
    to_bytes,
)
from shepherd.store.disk import temporary
from signing_requests import signing_request

Invited = Callable[..., Invitation]


def request_of(folder: FederationFolder, code: str, data: bytes | None = None, **changed: str) -> bytes:
    """A request with the proof of a code."""
    data = signing_request() if data is None else data
    fields = {
        "kind": "enrol", "federation": folder.name, "fingerprint": folder.fingerprint, "site": "hospital-a",
        "request": encoded(data), "proof": proof_of(verifier_of(code), data), **changed,
    }  # fmt: skip
    return to_bytes(Request.model_validate(fields))


def refusal(folder: FederationFolder, data: bytes) -> str:
    with pytest.raises(Refused) as found:
        grant(folder, data)
    return found.value.code


def test_only_the_code_of_the_newest_invitation_is_a_proof(federation: FederationFolder, invited: Invited) -> None:
    old, new = invited("hospital-a"), invited("hospital-a")
    assert refusal(federation, request_of(federation, old.code)) == "proof"
    assert (
        refusal(federation, request_of(federation, new.code, proof=proof_of(verifier_of(new.code), b"other")))
        == "proof"
    )
    assert refusal(federation, request_of(federation, new.code, site="hospital-b")) == "proof"
    assert refusal(federation, request_of(federation, new.code, fingerprint="0" * 64)) == "federation"
    assert refusal(federation, request_of(federation, new.code, federation="lab-2")) == "federation"
    assert federation.members["hospital-a"].invitation.tries == 2


def test_ten_wrong_codes_close_an_invitation_for_the_right_one_too(
    federation: FederationFolder, invited: Invited
) -> None:
    invitation = invited("hospital-a")
    for tries in range(1, 15):
        assert refusal(federation, request_of(federation, "0" * 40)) == "proof"
        assert federation.members["hospital-a"].invitation.tries == min(tries, 10)
        assert federation.members["hospital-a"].awaited(lists.now()) is (tries < 10)
    assert refusal(federation, request_of(federation, invitation.code)) == "closed"
    assert (federation.path / "enrolment.jsonl").read_text().count('"closed"') == 1
    assert read(Answer, grant(federation, _right(federation, invited("hospital-a")))).site == "hospital-a"


def _right(federation: FederationFolder, invitation: Invitation) -> bytes:
    """A request that the tool made."""
    folder = federation.path.parent / "site"
    path = request(invitation, folder, federation.path.parent)
    return path.read_bytes()


def test_an_expired_or_taken_back_invitation_is_refused(
    federation: FederationFolder, invited: Invited, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = invited("hospital-a", days=1)
    with monkeypatch.context() as later:
        later.setattr("shepherd.federation.enrolment.desk.now", lambda: lists.now() + timedelta(days=1))
        assert refusal(federation, request_of(federation, invitation.code)) == "expired"
        assert refusal(federation, request_of(federation, "0" * 40)) == "proof"
    remove(federation, "hospital-a")
    assert refusal(federation, request_of(federation, invitation.code)) == "proof"
    assert federation.allowed() == frozenset()


def test_a_site_gets_no_certificate_but_its_own(federation: FederationFolder, invited: Invited) -> None:
    invitation = invited("hospital-a")
    small = rsa.generate_private_key(65537, 1024)
    hostile = {
        "other name": (signing_request(names=("hospital-b",)), "name"),
        "two names": (signing_request(names=("hospital-a", "server")), "name"),
        "no name": (signing_request(names=()), "name"),
        "another file": (signing_request("hospital-b"), "name"),
        "a server": (signing_request(facts={"kind": "server", "cert_type": "server"}), "name"),
        "an administrator": (signing_request(facts={"kind": "user", "cert_type": "lead"}), "name"),
        "another federation": (signing_request(facts={"project": "lab-2"}), "federation"),
        "elliptic key": (signing_request(private=ec.generate_private_key(ec.SECP256R1())), "key"),
        "Edwards key": (signing_request(private=ed25519.Ed25519PrivateKey.generate()), "key"),
        "short key": (signing_request(private=small), "key"),
        "a bomb": (signing_request(files={"request.json": b" " * 10**6}), "format"),
        "many files": (signing_request(files={str(n): b"" for n in range(20)}), "name"),
        "no zip": (b"PK\x03\x04" + bytes(100), "format"),
        "nothing": (b"", "format"),
    }
    found = {
        what: refusal(federation, request_of(federation, invitation.code, data)) for what, (data, _) in hostile.items()
    }
    assert found == {what: code for what, (_, code) in hostile.items()}
    assert federation.members["hospital-a"].state == "invited"
    assert not list(federation.authority.glob(".tmp-*"))


def test_damaged_signing_requests_are_refused_by_a_code() -> None:
    data, draw = signing_request(), random.Random(0)
    check_request(data, "lab", "hospital-a")
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        cut = bytes(damaged[: draw.randrange(len(damaged))] if draw.random() < 0.2 else damaged)
        with contextlib.suppress(BadRequest):  # and no other error
            check_request(cut, "lab", "hospital-a")


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def certified(authority: Authority, subject: x509.Name) -> bytes:
    """A certificate of an authority for hospital-a as its only DNS name, and any subject."""
    builder = (
        x509.CertificateBuilder(authority.certificate.subject, subject, key("stranger").public_key())
        .serial_number(1)
        .not_valid_before(lists.now())
        .not_valid_after(lists.now() + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hospital-a")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    return pem_of(builder.sign(key("ours/"), hashes.SHA256()))


@pytest.mark.parametrize("site", ["yes", "1", "1e5", "null", "a" * 64])
def test_a_name_that_yaml_takes_for_something_else_is_a_name(
    federation: FederationFolder, tmp_path: Path, site: str
) -> None:
    data = make_request(tmp_path, "lab", site)
    check_request(data, "lab", site)
    assert names_of(issue(federation.authority, data, federation="lab", name=site, days=90)) == [site]


def test_a_certificate_of_another_kind_is_not_used(federation: FederationFolder, tmp_path: Path) -> None:
    """Should NVFlare read in a zip file what `check_request` did not, its certificate is judged again."""
    data = make_request(tmp_path, "lab", "hospital-a")
    pem = issue(federation.authority, data, federation="lab", name="hospital-a", days=90)
    check_certificate(pem, federation.certificate, "hospital-a", 90)
    foreign = pem_of(Authority("other").certificate)
    server = (federation.kit / "startup" / "server.crt").read_bytes()
    for certificate, authority, name, days in [
        (pem, federation.certificate, "hospital-b", 90), (pem, federation.certificate, "hospital-a", 89),
        (pem, foreign, "hospital-a", 90), (server, federation.certificate, "hospital-a", 90),
        (federation.certificate, federation.certificate, "lab", 9999), (b"", federation.certificate, "hospital-a", 90),
    ]:  # fmt: skip
        with pytest.raises(ResourceError, match="issued another certificate for"):
            check_certificate(certificate, authority, name, days)
    ours = Authority("ours")
    for role, right in ("client", True), ("lead", False), ("server", False):
        subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in [
            (NameOID.COMMON_NAME, "hospital-a"), (NameOID.UNSTRUCTURED_NAME, role)]])  # fmt: skip
        with contextlib.nullcontext() if right else pytest.raises(ResourceError):
            check_certificate(certified(ours, subject), pem_of(ours.certificate), "hospital-a", 90)
    with pytest.raises(ResourceError, match="issued another certificate for hospital-b"):
        issue(federation.authority, data, federation="lab", name="hospital-b", days=90)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("server", "is a name of the server"), ("Localhost", "is a name of the server"), ("", "cannot be the name"),
        ("a/b", "cannot be the name"), ("a" * 65, "cannot be the name"), ("-a", "cannot be the name"),
        ("hospital-a\n", "cannot be the name"), ("Hospital-A", "there is hospital-a"),
    ],
)  # fmt: skip
def test_names_that_no_site_may_have(federation: FederationFolder, invited: Invited, name: str, reason: str) -> None:
    invited("hospital-a")
    with pytest.raises(UsageError, match=reason):
        invite(federation, name)
    assert set(federation.members) == {"hospital-a"}


def test_a_renewal_needs_the_present_key_and_is_in_the_members_name(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    grant(federation, _right(federation, invited("hospital-a")))
    renew(federation, "hospital-a")
    present = (federation.path.parent / "site" / "enrolment" / "pending" / "key").read_bytes()
    data = signing_request()

    def renewal(by: bytes, message: bytes, **more: str) -> bytes:
        return request_of(federation, "0" * 40, data, kind="renew", proof=encoded(sign(by, message)), **more)

    other = Authority("other")
    other.put(tmp_path / "other", "hospital-a")
    foreign = (tmp_path / "other" / "startup" / "client.key").read_bytes()
    assert refusal(federation, renewal(foreign, renewal_message(data))) == "key-proof"
    assert refusal(federation, renewal(present, data)) == "key-proof"
    assert refusal(federation, renewal(present, renewal_message(b"other"))) == "key-proof"
    assert refusal(federation, renewal(present, renewal_message(data), site="hospital-b")) == "key-proof"
    with pytest.raises(Refused, match="format"):
        grant(federation, request_of(federation, "0" * 40, data, kind="renew", proof="not base64"))
    other_name = signing_request(names=("hospital-b",))
    proof = encoded(sign(present, renewal_message(other_name)))
    assert refusal(federation, request_of(federation, "0" * 40, other_name, kind="renew", proof=proof)) == "name"
    remove(federation, "hospital-a")
    assert refusal(federation, renewal(present, renewal_message(data))) == "removed"


def test_only_the_confirmation_of_the_same_request_ends_the_repetition(
    federation: FederationFolder, invited: Invited
) -> None:
    data = _right(federation, invited("hospital-a"))
    grant(federation, data)
    confirm(federation, to_bytes(Confirmation(site="hospital-a", digest="0" * 64)))
    confirm(federation, to_bytes(Confirmation(site="hospital-b", digest="0" * 64)))
    assert federation.members["hospital-a"].awaited(lists.now())
    confirm(federation, to_bytes(Confirmation(site="hospital-a", digest=read(Request, data).digest)))
    assert not federation.members["hospital-a"].awaited(lists.now())


def test_without_the_authoritys_key_or_with_a_damaged_list_nothing_is_granted(
    federation: FederationFolder, invited: Invited
) -> None:
    invitation = invited("hospital-a")
    key = federation.authority / "rootCA.key"
    key.rename(federation.path / "away")
    assert refusal(federation, request_of(federation, invitation.code)) == "authority"
    federation.prepare()  # the server's certificate is still valid
    (federation.path / "away").rename(key)
    (federation.path / "members.json").write_text('{"schema": 1, "members": {"hospital-a": {"state": "member"}}}')
    assert refusal(federation, request_of(federation, invitation.code)) == "busy"
    with pytest.raises(UsageError, match="its content is damaged"):
        federation.allowed()


def test_a_federation_has_a_usable_name_host_and_ports(tmp_path: Path, federation: FederationFolder) -> None:
    for name, host, port, reason in [
        ("a b", "localhost", 1, "the name 'a b'"), ("lab", "no host", 1, "the host 'no host'"),
        ("lab", "localhost", 70000, "the port 70000"), ("lab", "localhost", 2, "are both 2"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=reason):
            new_federation(tmp_path / "new" / name, host=host, port=port, enrolment_port=2)
    with pytest.raises(UsageError, match="exists already"):
        new_federation(federation.path, host="other", port=1, enrolment_port=2)
    with pytest.raises(UsageError, match="there is no federation in"):
        FederationFolder(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_current_folder_is_not_part_of_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvflare", "yaml", "cryptography"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shepherd.federation.enrolment.authority.subprocess", subprocess)
    make_request(tmp_path / "made", "lab", "a")
    assert not (tmp_path / "ran").exists()


def test_a_link_that_another_person_has_put_in_a_shared_folder_is_not_followed(
    federation: FederationFolder, invited: Invited, tmp_path: Path
) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    victim.write_text("kept")
    file = shared / "a.request"
    file.write_bytes(_right(federation, invited("a")))
    temporary(shared / "a.signed").symlink_to(victim)
    with pytest.raises(OSError, match=r"a\.signed"):
        approve(federation, file)
    assert victim.read_text() == "kept"
