"""NVFlare's own files for a parent process: around the certificates that are in `startup/` already.

    write_server_kit(folder, federation="lab", host="lab.example.org", port=7100)
    write_site_kit(folder, federation="lab", site="hospital-a", host="lab.example.org", port=7100)

`startup/` has rootCA.pem, server.crt and server.key, or client.crt and client.key. The name of a certificate (CN) is
`server`, or that of the site; the server's one is valid for the host (SAN). Keys are RSA: NVFlare signs with them.
Nobody may submit a job, and no store is there for it. No class but ours is made from a message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERVER = "server"
"""The name of the server's certificate, and of its cell; no site has it."""
PART = "shepherd.federation.transports.nvflare"
FRAME = 4 * 2**20
"""Bytes of a frame on the wire: a chunk of a stream is 1 MiB. A larger frame ends its connection."""
RETRY = 10.0
"""Seconds for which a reply is sent again, nobody waits for longer; its receiver keeps a thread that long and 5 s."""
ROLES = ("project_admin", "org_admin", "lead", "member")
RIGHTS = ("submit_job", "clone_job", "manage_job", "download_job", "operate", "shell_commands", "byoc", "view")


def write_server_kit(folder: Path, *, federation: str, host: str, port: int) -> None:
    """The files of the coordinator's parent. It listens at the port of the host, and else on loopback only."""
    server = {
        "name": federation,
        "service": {"target": f"{host}:{port}", "scheme": "grpc"},
        "admin_host": "127.0.0.1",
        "admin_port": 0,
        "ssl_private_key": "server.key",
        "ssl_cert": "server.crt",
        "ssl_root_cert": "rootCA.pem",
        "connection_security": "mtls",
        "heart_beat_timeout": 60,
        "max_num_clients": 1000,
        "admin_storage": "transfer",
    }
    _write(folder / "startup" / "fed_server.json", {"format_version": 2, "servers": [server]})
    _write_local(folder, {"id": "shepherd", "path": f"{PART}.ServerPart", "args": {}})


def write_site_kit(folder: Path, *, federation: str, site: str, host: str, port: int) -> None:
    """The files of a site's parent, which opens a connection to the coordinator's host."""
    server = {"name": federation, "service": {"target": f"{host}:{port}", "scheme": "grpc"}, "identity": SERVER}
    client = {
        "ssl_private_key": "client.key",
        "ssl_cert": "client.crt",
        "ssl_root_cert": "rootCA.pem",
        "connection_security": "mtls",
        "fqsn": site,
        "is_leaf": True,
        "site_config": {},  # nothing about the site leaves at its registration
    }
    _write(folder / "startup" / "fed_client.json", {"format_version": 2, "servers": [server], "client": client})
    _write_local(folder, {"id": "shepherd", "path": f"{PART}.SitePart", "args": {}})


def write_limits(folder: Path, largest: int) -> None:
    """The limits of the wire, read when a parent starts. largest: bytes of a message."""
    options = [["grpc.max_send_message_length", FRAME], ["grpc.max_receive_message_length", FRAME]]
    loopback = {"host": "localhost", "listen_host": "127.0.0.1", "connection_security": "clear"}
    limits = {
        "allow_adhoc_conns": False,
        "internal": {"scheme": "tcp", "resources": loopback},
        "grpc": {"max_workers": 1000, "options": options},  # a thread for each connection of a site
        "streaming_max_blob_size": largest,
        "streaming_retry_timeout": RETRY,
        "max_message_size": FRAME,
    }
    _write(folder / "local" / "comm_config.json", limits)


def read_address(folder: Path) -> tuple[str, int]:
    """The host and port in a kit. Raises OSError, ValueError or LookupError where it is damaged."""
    startup = folder / "startup"
    file = startup / "fed_server.json"
    settings = json.loads((file if file.exists() else startup / "fed_client.json").read_text())
    host, _, port = settings["servers"][0]["service"]["target"].rpartition(":")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether the engine listens on loopback only for this host."""
    return host in ("localhost", "::1") or host.startswith("127.")


def read_site(folder: Path) -> str:
    """The name of the site in its kit. Raises OSError, ValueError or LookupError where it is damaged."""
    return str(json.loads((folder / "startup" / "fed_client.json").read_text())["client"]["fqsn"])


def _write_local(folder: Path, part: Mapping[str, Any]) -> None:
    resources = {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [f"{PART}.ServerPart", f"{PART}.SitePart"],
        "allow_log_streaming": False,
        "components": [part],
    }
    _write(folder / "local" / "resources.json", resources)
    nothing = {role: dict.fromkeys(RIGHTS, "none") for role in ROLES}
    _write(folder / "local" / "authorization.json", {"format_version": "1.0", "permissions": nothing})
    logging = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"level": "INFO", "handlers": ["stderr"]},
    }
    _write(folder / "local" / "log_config.json", logging)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
