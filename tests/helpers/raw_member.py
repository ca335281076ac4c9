"""A process with a member's certificate that speaks NVFlare's own language, for tests of what a hostile one can do.

python raw_member.py KIT PORT [ENDPOINT]     # then a line of JSON for each request, and one for each answer
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.sec.authn import set_add_auth_headers_filters
from nvflare.fuel.utils.config_service import ConfigService
from nvflare.private.defs import CellMessageHeaderKeys, ClientType, new_cell_message
from nvflare.private.fed.authenticator import Authenticator
from nvflare.private.fed.utils.fed_utils import fobs_initialize


class Member:
    """A cell with the certificate of a kit."""

    def __init__(self, kit: Path, port: int, endpoint: str) -> None:
        ConfigService.initialize(section_files={}, config_path=[str(kit)], parsed_args=None, var_dict={})
        fobs_initialize()
        self.name, self.startup = endpoint, kit / "startup"
        file = lambda name: str(self.startup / name)  # noqa: E731
        credentials = {
            DriverParams.CA_CERT.value: file("rootCA.pem"),
            DriverParams.CLIENT_CERT.value: file("client.crt"),
            DriverParams.CLIENT_KEY.value: file("client.key"),
            DriverParams.CONNECTION_SECURITY.value: "mtls",
        }
        self.cell = Cell(
            fqcn=endpoint, root_url=f"grpc://localhost:{port}", secure=True, credentials=credentials,
            create_internal_listener=False, auth_identity=endpoint, auth_identity_map={"server": "server"},
        )  # fmt: skip
        self.cell.start()

    def register(self, project: str = "lab", session: str = "") -> dict:
        """Register as NVFlare's client does."""
        file = lambda name: str(self.startup / name)  # noqa: E731
        authenticator = Authenticator(
            cell=self.cell, project_name=project, client_name=self.name, client_type=ClientType.REGULAR,
            expected_sp_identity="server", secure_mode=True, root_cert_file=file("rootCA.pem"),
            private_key_file=file("client.key"), cert_file=file("client.crt"), msg_timeout=3.0, retry_interval=0.5,
            timeout=4.0,
        )  # fmt: skip
        context = FLContext()
        context.set_prop("__identity_name__", self.name, private=False, sticky=True)
        context.set_prop("shepherd_session", session, private=False, sticky=True)
        try:
            self.token, self.signature, ssid, _ = authenticator.authenticate(context, Signal())
        except Exception as error:
            return {"code": "refused", "why": str(error)}
        set_add_auth_headers_filters(self.cell, self.name, self.token, self.signature, ssid)
        return {"code": "ok"}

    def send(self, size: int = 0, headers: dict | None = None, forged: dict | None = None, **how: object) -> dict:
        """A request. forged: headers that a filter sets last, over those of NVFlare; core: past the streaming."""
        core, fobs = how.pop("core", False), how.pop("fobs", False)
        how = {"channel": "shepherd", "topic": "hello", "target": "server", "timeout": 4.0, **how}
        if forged is not None:
            self.forged = forged
            self.cell.core_cell.add_outgoing_request_filter("*", "*", self._forge)
        request = new_cell_message(dict(headers or {}), {"an": "object"} if fobs else bytes(size))
        send = self.cell.core_cell.send_request if core else self.cell.send_request
        reply = send(request=request, optional=True, **how)
        self.forged = {}
        payload = reply.payload
        return {
            "code": str(reply.get_header(MessageHeaderKey.RETURN_CODE)),
            "why": str(reply.get_header(MessageHeaderKey.ERROR) or ""),
            "payload": bytes(payload).decode(errors="replace") if isinstance(payload, bytes | bytearray | memoryview)
            else str(payload),
        }  # fmt: skip

    def flood(self, count: int) -> dict:
        """Many small messages at once, without waiting for an answer."""
        for _ in range(count):
            message = new_cell_message({"session": "one"}, b"")
            self.cell.fire_and_forget(channel="shepherd", topic="progress", targets=["server"], message=message)
        return {"code": "ok"}

    def _forge(self, message: object) -> None:
        names = {
            "origin": MessageHeaderKey.ORIGIN, "name": CellMessageHeaderKeys.CLIENT_NAME,
            "token": CellMessageHeaderKeys.TOKEN, "signature": CellMessageHeaderKeys.TOKEN_SIGNATURE,
        }  # fmt: skip
        for name, value in self.forged.items():
            message.set_header(names[name], value)


def main(kit: str, port: str, endpoint: str = "") -> None:
    member = Member(Path(kit), int(port), endpoint or Path(kit).name)
    print(json.dumps({"code": "started"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(member, request.pop("do"))(**request)
        except Exception as error:
            answer = {"code": "raised", "why": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
