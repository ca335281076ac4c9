"""A model on this machine in the place of an endpoint."""

from __future__ import annotations

import pytest

from shepherd.evaluation.judge.calls.client import Decoding
from shepherd.evaluation.judge.calls.faults import CallError
from shepherd.serving.local_judge import local_judge


def test_a_local_model_completes_chats_within_its_window(model_folder):
    complete = local_judge(str(model_folder()), device="cpu")
    ask = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A or B?"}]
    found = complete(ask, Decoding(4, extra={"top_p": 0.5}))
    assert (found.model, found.finish, found.ignored) == (f"local:{model_folder()}", "length", ("top_p",))
    assert found.tokens_in > 4 and complete(ask, Decoding(4)).text == found.text
    with pytest.raises(CallError, match="do not fit into the window") as fault:
        complete(ask, Decoding(5000))
    assert fault.value.reason == "request"
