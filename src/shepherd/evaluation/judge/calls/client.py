"""Chat completions of an OpenAI-compatible endpoint, through `openai` (extra `judge`).

    endpoint = Endpoint.named("http://127.0.0.1:8000/v1", model="judge")
    complete = connected(endpoint)
    complete([{"role": "user", "content": "Why is the sky blue?"}], Decoding(max_tokens=64)).text

The key comes from an environment variable. It is in no file and in no message. One endpoint may be used by several
threads at once.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from shepherd.errors import UsageError, missing_extra
from shepherd.evaluation.judge.calls.faults import CallError, Reason, without_secret
from shepherd.evaluation.judge.calls.quoting import encodable
from shepherd.evaluation.judge.calls.retry import Retries, seconds_of, with_retries

OPENAI = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    """An address and a model there.

    key_variable: the environment variable with the key; an endpoint on this machine needs none. timeout: seconds
    without a byte after which a request is given up.
    """

    url: str
    model: str
    key_variable: str = KEY_VARIABLE
    timeout: float = 120.0

    @classmethod
    def named(cls, url: str, model: str, key_variable: str = KEY_VARIABLE, timeout: float = 120.0) -> Endpoint:
        """Raises UsageError for a malformed address, or one that holds a password or a query, where keys hide."""
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018, raises for a malformed port
        except ValueError as error:
            raise UsageError(f"not the address of an endpoint: {error}", hint=f"for example {OPENAI}") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError(
                f"the address of the endpoint at {parts.hostname} holds a password or a query, which would be recorded",
                hint=f"put the key into the environment variable {key_variable}",
            )
        readable = url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or not parts.hostname or not readable:
            raise UsageError(f"not the address of an endpoint: {url!r}", hint=f"for example {OPENAI}")
        if not model:
            raise UsageError("the endpoint needs the name of a model")
        return cls(url.rstrip("/"), model, key_variable, timeout)

    @property
    def host(self) -> str:
        """Host and port, for reports."""
        return urlsplit(self.url).netloc

    @property
    def on_this_machine(self) -> bool:
        """Whether the host is a loopback address."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def key(self) -> str:
        """The key, "" for an endpoint on this machine without one. Raises UsageError where it is missing."""
        key = os.environ.get(self.key_variable, "").strip()
        if not key and not self.on_this_machine:
            raise UsageError(
                f"no key for {self.host}: the environment variable {self.key_variable} is not set",
                hint=f"export {self.key_variable}=…, or name another variable",
            )
        if not (key.isascii() and key.isprintable()):
            raise UsageError(f"the environment variable {self.key_variable} holds no key: it has characters that "
                             "no key has")  # fmt: skip
        return key


@dataclass(frozen=True)
class Decoding:
    """How a reply is drawn. temperature: None leaves it to the model, some of which refuse any other. extra: further
    fields of the request, such as top_p or reasoning_effort."""

    max_tokens: int = 512
    temperature: float | None = 0.0
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def to_row(self) -> dict[str, Any]:
        """For keys and records."""
        return {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed, **self.extra}


@dataclass(frozen=True)
class Completion:
    """A reply. model: the name in the reply. refused: the endpoint or its filter declined; text is then its words.
    finish: "stop", "length" where the text was cut, or as the endpoint says. tokens: None where it did not count.
    ignored: parameters that it evidently did not honour."""

    text: str
    model: str = ""
    refused: bool = False
    finish: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    ignored: tuple[str, ...] = ()
    seconds: float = 0.0
    tries: int = 1


Messages = Sequence[Mapping[str, str]]
Complete = Callable[[Messages, Decoding], Completion]
"""Messages {"role", "content"} and decoding to a completion. Raises CallError."""


def connected(endpoint: Endpoint, retries: Retries | None = None) -> Complete:
    """The function that completes chats at this endpoint. UsageError: no `openai`, or no key."""
    try:
        import openai
    except ImportError:
        raise missing_extra("openai", "judge") from None
    key = endpoint.key()
    http = openai.DefaultHttpxClient(follow_redirects=False)  # questions and answers go to the host that is named
    client: Any = openai.OpenAI(
        api_key=key or "none", base_url=endpoint.url, timeout=endpoint.timeout, max_retries=0, http_client=http
    )
    retries = Retries() if retries is None else retries
    limit = {"max_tokens": "max_tokens"}

    def request(messages: Messages, decoding: Decoding) -> Any:
        given = {"temperature": decoding.temperature, "seed": decoding.seed}
        return client.chat.completions.create(
            model=endpoint.model,
            messages=[dict(message) for message in messages],
            extra_body={limit["max_tokens"]: decoding.max_tokens, **decoding.extra},
            **{name: value for name, value in given.items() if value is not None},
        )

    def attempt(messages: Messages, decoding: Decoding) -> Completion:
        try:
            try:
                reply = request(messages, decoding)
            except openai.BadRequestError as error:
                if error.param != "max_tokens":
                    raise
                limit["max_tokens"] = "max_completion_tokens"  # its new name, which some models insist on
                reply = request(messages, decoding)
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that does not parse as JSON
            raise _fault(error, endpoint, key) from None
        return _read(reply, endpoint, decoding, key)

    def complete(messages: Messages, decoding: Decoding) -> Completion:
        start = time.monotonic()
        found, tries = with_retries(lambda: attempt(messages, decoding), retries)
        return Completion(**{**vars(found), "seconds": time.monotonic() - start, "tries": tries})

    return complete


def _read(reply: Any, endpoint: Endpoint, decoding: Decoding, key: str = "") -> Completion:
    """`openai` does not check what it receives: any field may be missing or of another kind. A reply that repeats the
    key is kept without it."""

    def kept(words: str) -> str:
        return encodable(words.replace(key, "[key]") if key else words)

    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list):
        raise CallError(
            f"{endpoint.host} answers, but not with a chat completion",
            hint="the address ends before /chat/completions, often in /v1",
            reason="reply",
        )
    message = getattr(choices[0], "message", None) if choices else None
    text, refusal = (getattr(message, name, None) for name in ("content", "refusal"))
    finish = str(getattr(choices[0], "finish_reason", None) or "") if choices else ""
    usage = getattr(reply, "usage", None)
    tokens_in, tokens_out = (_count(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens"))
    refused = (isinstance(refusal, str) and bool(refusal)) or finish == "content_filter"
    return Completion(
        text=kept(next((words for words in (text, refusal) if isinstance(words, str) and words), "")),
        model=kept(str(getattr(reply, "model", None) or "")),
        refused=refused,
        finish=finish,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        ignored=tuple(_ignored(reply, choices, tokens_out, decoding)),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _ignored(reply: Any, choices: list[Any], tokens_out: int | None, decoding: Decoding) -> list[str]:
    """What shows in a reply: temperature and top_p do not, nor does a seed that was honoured."""
    found = []
    if tokens_out is not None and tokens_out > decoding.max_tokens:
        found.append("max_tokens")
    if decoding.seed is not None and not getattr(reply, "system_fingerprint", None):
        found.append("seed")  # without a fingerprint nobody can say that two replies came from one system
    extra = decoding.extra
    if isinstance(wanted := extra.get("n"), int) and wanted != len(choices):
        found.append("n")
    if extra.get("logprobs") and not any(getattr(choice, "logprobs", None) for choice in choices):
        found.append("logprobs")
        if "top_logprobs" in extra:
            found.append("top_logprobs")
    if "response_format" in extra and not all(_is_json(choice) for choice in choices):
        found.append("response_format")
    return found


def _is_json(choice: Any) -> bool:
    import json

    try:
        json.loads(getattr(getattr(choice, "message", None), "content", None) or "")
    except ValueError:
        return False
    return True


def _fault(error: Exception, endpoint: Endpoint, key: str) -> CallError:
    import openai

    host = endpoint.host
    if isinstance(error, openai.APITimeoutError):
        return CallError(
            f"{host} is silent: no reply within {endpoint.timeout:g} s",
            hint="allow more with --timeout",
            reason="silence",
        )
    if isinstance(error, openai.APIStatusError):
        return _refused(error, endpoint, key)
    cause = error.__cause__ or error
    kind = type(cause).__name__
    if kind in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol"):
        words = without_secret(str(cause), key)
        return CallError(f"{host} cannot be reached: {words}", hint="check the address", reason="unreachable")
    if isinstance(error, openai.APIConnectionError):
        return CallError(f"{host} ended the connection before the reply was complete ({kind})", reason="cut")
    return CallError(
        f"{host} answers, but not with a chat completion ({kind})",
        hint="the address ends before /chat/completions, often in /v1",
        reason="reply",
    )


def _refused(error: Any, endpoint: Endpoint, key: str) -> CallError:
    """An answer with a status of 400 or more."""
    status, host = int(error.status_code), endpoint.host
    if status in (401, 403):  # its words may quote the key
        named = f"the key in {endpoint.key_variable}" if key else f"a request without key ({endpoint.key_variable})"
        return CallError(f"{host} refuses {named} (status {status})",
                         hint="check the key, and that it may use the model", reason="key")  # fmt: skip
    body = error.body if isinstance(error.body, Mapping) else {}
    words = without_secret(str(body.get("message") or ""), key)
    said = f": {words}" if words else ""
    if status == 404:
        return CallError(
            f"{host} does not know the model {endpoint.model!r}, or has no chat completions at this address "
            f"(status 404){said}",
            hint="check the model and the address",
            reason="unknown",
        )
    if status == 429 and getattr(error, "code", None) == "insufficient_quota":
        return CallError(f"{host} has no quota left for this key (status 429){said}", reason="quota")
    if 300 <= status < 400:
        place = urlsplit(error.response.headers.get("location", "")).netloc
        return CallError(f"{host} redirects to {place or 'another address'} (status {status}), which is not followed",
                         hint="give the address of the endpoint itself", reason="request")  # fmt: skip
    wait = seconds_of(error.response.headers.get("retry-after"), time.time())
    reason: Reason = "limit" if status == 429 else "server" if status >= 500 or status in (408, 409) else "request"
    what = {"limit": "receives too many requests", "server": "fails"}.get(reason, "refuses the request")
    return CallError(f"{host} {what} (status {status}){said}", reason=reason, wait=wait)
