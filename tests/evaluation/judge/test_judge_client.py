"""The client of an endpoint: what it sends, what it reads, and the name of each fault."""

from __future__ import annotations

import json

import pytest

from shepherd.errors import NetworkError, UsageError
from shepherd.evaluation.judge.calls.client import Decoding, Endpoint, connected
from shepherd.evaluation.judge.calls.faults import CallError, without_secret
from shepherd.evaluation.judge.calls.retry import Retries, seconds_of
from stub_judge import SILENT, Reply, StubJudge, error, text

ASK = [{"role": "user", "content": "Which is better?"}]
KEY = "verysecret0123456789"  # not of the form that is blotted out anyway


def asked(stub: StubJudge, decoding: Decoding = Decoding(), *, tries: int = 1, timeout: float = 5):  # noqa: B008
    """The completion, and the pauses that were made before it."""
    pauses = []
    complete = connected(Endpoint.named(stub.url, "judge", "JUDGE_KEY", timeout), Retries(tries, sleep=pauses.append))
    try:
        return complete(ASK, decoding), pauses
    except CallError as fault:
        fault.pauses = pauses
        raise


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


def test_a_completion_has_the_text_the_model_as_answered_and_the_counts():
    with StubJudge(lambda number, request: text("Fine.", model="judge-2024")) as stub:
        found, _ = asked(stub, Decoding(64, 0.5, 7, {"top_p": 0.9}))
    assert (found.text, found.model, found.finish) == ("Fine.", "judge-2024", "stop")
    assert (found.tokens_in, found.tokens_out, found.tries, found.ignored) == (100, 10, 1, ())
    (request,) = stub.requests
    assert request == {
        "model": "judge", "messages": ASK, "max_tokens": 64, "temperature": 0.5, "seed": 7, "top_p": 0.9,
    }  # fmt: skip
    assert stub.headers["authorization"] == f"Bearer {KEY}"


def test_parameters_that_the_reply_shows_to_be_ignored_are_named():
    extra = {"n": 2, "logprobs": True, "response_format": {"type": "json_object"}}
    with StubJudge(lambda number, request: text("prose", system_fingerprint=None)) as stub:
        found, _ = asked(stub, Decoding(5, 0.0, 1, extra))
    assert found.ignored == ("max_tokens", "seed", "n", "logprobs", "response_format")


def test_a_model_that_insists_on_the_new_name_of_the_limit_gets_it():
    def script(number, request):
        wrong = error(400, "Use 'max_completion_tokens' instead.", param="max_tokens")
        return wrong if "max_tokens" in request else text("Fine.")

    with StubJudge(script) as stub:
        assert asked(stub, Decoding(9, None))[0].text == "Fine."
    assert stub.requests[1] == {"model": "judge", "messages": ASK, "max_completion_tokens": 9}


FAULTS = {
    "key": (error(401, f"Incorrect API key provided: {KEY}"), 1, "refuses the key in JUDGE_KEY (status 401)"),
    "unknown": (error(404, "no such model"), 1, "does not know the model 'judge'"),
    "quota": (error(429, "pay", code="insufficient_quota"), 1, "has no quota left"),
    "limit": (error(429, "slow down", {"retry-after": "7"}), 3, "receives too many requests (status 429): slow down"),
    "server": (error(500, f"down for {KEY}\n"), 3, "fails (status 500): down for [key]"),
    "request": (error(400, "too long " * 99), 1, "refuses the request (status 400): too long too"),
    "cut": (text("A long text.")._replace(cut=True), 3, "ended the connection before the reply was complete"),
    "reply": (Reply(body=b"<html>Welcome</html>"), 1, "not with a chat completion"),
    "silence": (SILENT, 2, "is silent: no reply within 0.05 s"),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_fault_is_named_and_only_one_that_may_pass_is_tried_again(reason):
    reply, tries, words = FAULTS[reason]
    with StubJudge(lambda number, request: reply) as stub, pytest.raises(NetworkError) as fault:
        asked(stub, tries=tries if tries > 1 else 3, timeout=0.05 if reason == "silence" else 5)
    assert fault.value.reason == reason and words in fault.value.message
    assert fault.value.tries == tries == len(stub.requests)
    assert KEY not in fault.value.message + fault.value.hint and len(fault.value.message) < 400
    assert fault.value.pauses == ([7, 7] if reason == "limit" else [1, 2][: tries - 1])


def test_an_address_where_nobody_listens_is_unreachable():
    with StubJudge(lambda number, request: text("")) as stub:
        pass
    with pytest.raises(CallError, match="cannot be reached") as fault:
        asked(stub)
    assert fault.value.reason == "unreachable" and fault.value.exit_code == 7


def test_a_fault_that_passes_costs_tries_and_no_more():
    replies = [error(503), text("")._replace(cut=True), text("Fine.")]
    with StubJudge(lambda number, request: replies[number - 1]) as stub:
        found, pauses = asked(stub, tries=3)
    assert (found.text, found.tries, pauses) == ("Fine.", 3, [1, 2])


def test_a_server_that_asks_for_a_long_pause_is_not_waited_for():
    with (
        StubJudge(lambda number, request: error(429, headers={"retry-after": "3600"})) as stub,
        pytest.raises(CallError, match="asks for a pause of 3600 s"),
    ):
        asked(stub, tries=3)
    assert len(stub.requests) == 1


def test_a_cancelled_command_makes_no_further_try():
    with StubJudge(lambda number, request: error(503)) as stub:
        complete = connected(
            Endpoint.named(stub.url, "judge"), Retries(5, sleep=lambda _: None, cancelled=lambda: True)
        )
        with pytest.raises(CallError, match="status 503"):
            complete(ASK, Decoding())
    assert len(stub.requests) == 1


def test_half_a_surrogate_pair_in_a_reply_is_replaced():
    with StubJudge(lambda number, request: text("\ud83d SCORES: 7 8")) as stub:
        assert asked(stub)[0].text == "? SCORES: 7 8"


def test_retry_after_is_a_number_of_seconds_or_a_date():
    assert seconds_of("12", 0.0) == 12 and seconds_of(None, 0.0) is None and seconds_of("soon", 0.0) is None
    assert (
        seconds_of("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60
        and seconds_of("Thu, 01 Jan 1970 00:00:00 GMT", 9.0) == 0
    )


def test_what_looks_like_a_key_is_blotted_out_of_the_words_of_a_server():
    said = without_secret(
        "Incorrect key sk-proj-abc***xyz,\nBearer abcdef123456 and verysecret0123456789" + " x" * 200, KEY
    )
    assert said.startswith("Incorrect key [key], [key] and [key] x") and len(said) == 200


EMPTY = {
    "no choice": text("", choices=[]),
    "no message": text("", choices=[{"index": 0}]),
    "null": text(None),
    "not a text": text("", choices=[{"message": {"content": ["a"]}}]),
}


@pytest.mark.parametrize("reply", EMPTY.values(), ids=EMPTY)
def test_an_empty_choice_is_an_empty_text_that_was_paid_for(reply):
    with StubJudge(lambda number, request: reply) as stub:
        found, _ = asked(stub, tries=3)
    assert (found.text, found.tokens_in, found.refused, len(stub.requests)) == ("", 100, False, 1)


def test_a_refusal_is_not_an_answer():
    message = {"role": "assistant", "content": None, "refusal": "I cannot judge this."}
    for choice, words in (({"message": message}, "I cannot judge this."),
                          ({"message": {"content": "Half"}, "finish_reason": "content_filter"}, "Half")):  # fmt: skip
        with StubJudge(lambda number, request, choice=choice: text("", choices=[choice])) as stub:
            found, _ = asked(stub)
        assert found.refused and found.text == words


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host/v1", "not the address of an endpoint: 'ftp://host/v1'"),
        ("host", "not the address"),
        ("http://host:port/v1", "not the address"),
        ("http://host/v\n1", "not the address"),
        ("http://a b/v1", "not the address"),
        ("https://me:pass@host/v1", "holds a password or a query"),
        ("https://host/v1?key=pass", "holds a password or a query"),
    ],
)
def test_a_malformed_address_or_one_with_a_key_is_refused(url, reason):
    with pytest.raises(UsageError) as fault:
        Endpoint.named(url, "judge")
    assert reason in fault.value.message and "pass@" not in fault.value.message and "=pass" not in fault.value.message


def test_a_key_is_needed_except_on_this_machine(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UsageError, match="the environment variable JUDGE_KEY is not set"):
        connected(Endpoint.named("https://api.example.org/v1", "judge", "JUDGE_KEY"))
    assert Endpoint.named("http://localhost:1/v1", "judge", "JUDGE_KEY").key() == ""
    monkeypatch.setenv("JUDGE_KEY", "sk-…")
    with pytest.raises(UsageError, match="holds no key"):
        Endpoint.named("http://localhost:1/v1", "judge", "JUDGE_KEY").key()


def test_what_a_call_records_does_not_hold_the_key():
    with StubJudge(lambda number, request: text("Fine.")) as stub:
        found, _ = asked(stub)
    assert KEY not in json.dumps(vars(found)) and KEY not in repr(Endpoint.named(stub.url, "judge", "JUDGE_KEY"))


def test_a_reply_that_repeats_the_key_is_kept_without_it():
    with StubJudge(lambda number, request: text(f"Your key is {KEY}.", model=f"m-{KEY}")) as stub:
        found, _ = asked(stub)
    assert (found.text, found.model) == ("Your key is [key].", "m-[key]")


def test_a_redirection_is_not_followed():
    with StubJudge(lambda number, request: text("Fine.")) as other:
        place = other.url.replace("127.0.0.1", "localhost")
        with StubJudge(lambda number, request: Reply(307, {}, {"location": f"{place}/chat/completions"})) as stub:
            with pytest.raises(CallError, match=r"redirects to localhost:\d+ \(status 307\), which is not followed"):
                asked(stub)
            assert len(stub.requests) == 1 and other.requests == []
