"""`check_engine`: an engine that breaks one promise of the protocol is refused with that promise and its class."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from shepherd.clients.facts import facts_of
from shepherd.engines.local import LocalEngine
from shepherd.testing import check_engine, tiny_federation
from shepherd.testing.engines import (
    PROMISES,
    describes_each_client,
    gives_the_bits_of_plain_training,
    goes_on_from_the_private_state,
    has_the_methods_of_the_protocol,
    keeps_a_failure_to_its_client,
    measures_the_model_that_it_is_given,
    reports_the_steps,
)
from shepherd.testing.tiny_federation import SPOILT, TinyFederation, tiny_worker
from shepherd.types import ClientFailure, ClientUpdate, Stat


class Loses(LocalEngine):
    def train(self, task, deadline, enough, observe):
        yield from list(super().train(task, deadline, enough, observe))[1:]


class Unlike(LocalEngine):
    def measure(self, cohort):
        return {}


class Forgets(LocalEngine):
    def describe(self):
        return facts_of({client: rows for client, rows in self.site.data.items() if client != SPOILT})


class Miscounts(LocalEngine):
    def describe(self):
        return facts_of({client: rows[1:] for client, rows in self.site.data.items()})


class Changed(LocalEngine):
    """Each reply passes through `change`."""

    def change(self, reply):
        return reply

    def train(self, task, deadline, enough, observe):
        for reply in super().train(task, deadline, enough, observe):
            yield self.change(reply) if isinstance(reply, ClientUpdate) else self.told(reply)

    def told(self, failure):
        return failure


class Rounds(Changed):
    def change(self, reply):
        return replace(reply, delta={name: np.nextafter(d, np.inf, dtype=d.dtype) for name, d in reply.delta.items()})


class Counts(Changed):
    def change(self, reply):
        return replace(reply, num_examples=reply.num_examples + 1)


class Sorts(Changed):
    def change(self, reply):
        return replace(reply, private=dict(reversed(list(reply.private.items()))))


class Publishes(Changed):
    def told(self, failure):
        return replace(failure, code="error", detail="the row 'My name is …' is too long")


class Fails(Changed):
    def change(self, reply):
        return ClientFailure(reply.client, reply.round, "lost", "the worker process ended")


class Stops(LocalEngine):
    def train(self, task, deadline, enough, observe):
        return () if enough() else super().train(task, deadline, enough, observe)


class Silent(LocalEngine):
    def train(self, task, deadline, enough, observe):
        return super().train(task, deadline, enough)


class Remembers(LocalEngine):
    """Goes on from what each client kept, whether its update counted or not."""

    def train(self, task, deadline, enough, observe):
        for reply in super().train(task, deadline, enough, observe):
            if isinstance(reply, ClientUpdate):
                self._private = {**self._private, reply.client: reply.private}
            yield reply


class Resets(LocalEngine):
    def restore(self, private):
        pass


class Bare(LocalEngine):
    def measure(self, model, cohort):
        return super().measure(None, cohort)


class Sharp(LocalEngine):
    def evaluate(self, model, rows):
        losses = super().evaluate(model, rows)
        return replace(losses, hits=losses.hits + 1)

    def measure(self, model, cohort):
        return {client: super(Sharp, self).evaluate(model, self.site.data[client]).stat for client in sorted(cohort)}


class Endless(LocalEngine):
    def measure(self, model, cohort):
        return dict.fromkeys(cohort, Stat(float("nan"), 1.0))


class Raises(LocalEngine):
    def describe(self):
        return 1 / 0


ENGINES = {
    "measure takes ['self', 'cohort'], not ['self', 'model', 'cohort']": (Unlike, has_the_methods_of_the_protocol),
    "not all clients in order": (Forgets, describes_each_client),
    "describes a client by other rows": (Miscounts, describes_each_client),
    "replies for ['client-1', 'client-2'], the task is for": (Loses, gives_the_bits_of_plain_training),
    "the update of client-0 has other bits (plain training)": (Rounds, gives_the_bits_of_plain_training),
    "has other counts or metrics": (Counts, gives_the_bits_of_plain_training),
    "private state of client-0 is in another order": (Sorts, gives_the_bits_of_plain_training),
    "client client-0 does not give an update": (Fails, gives_the_bits_of_plain_training),
    "replies for [], the task is for": (Stops, gives_the_bits_of_plain_training),
    "the steps that it reports end at {}": (Silent, reports_the_steps),
    "(what a client kept of an update that did not count)": (Remembers, goes_on_from_the_private_state),
    "other bits (a restored state)": (Resets, goes_on_from_the_private_state),
    "the client that fails is reported as": (Publishes, keeps_a_failure_to_its_client),
    "other losses of the clients' rows": (Bare, measures_the_model_that_it_is_given),
    "other losses of the server's rows": (Sharp, measures_the_model_that_it_is_given),
    "other losses of the clients' rows than": (Endless, measures_the_model_that_it_is_given),
}


@pytest.fixture(scope="module")
def federation() -> TinyFederation:
    return tiny_federation.tiny_federation()


@pytest.mark.parametrize("words", ENGINES)
def test_an_engine_that_breaks_a_promise_is_refused_with_its_words(words, federation):
    broken, promise = ENGINES[words]
    with pytest.raises(AssertionError, match=re.escape(words)) as caught:
        promise(broken(federation.host), federation)
    assert str(caught.value).startswith(f"engine {broken.__name__}: ")
    assert promise in PROMISES


@pytest.mark.parametrize(
    "words, broken", [("other bits (plain training)", Rounds), ("failed, ZeroDivisionError", Raises)]
)
def test_the_check_holds_an_engine_to_each_promise_in_turn(words, broken, federation, monkeypatch):
    monkeypatch.setattr(tiny_federation, "tiny_federation", lambda: federation)
    with pytest.raises(AssertionError, match=re.escape(words)) as caught:
        check_engine(broken)
    assert str(caught.value).startswith(f"engine {broken.__name__}: ")


def test_an_engine_that_keeps_them_passes_and_is_entered_and_left(federation):
    class Entered(LocalEngine):
        left = False

        def __enter__(self):
            return self

        def __exit__(self, *_):
            Entered.left = True

    check_engine(Entered)
    assert Entered.left


def test_a_worker_builds_the_base_of_the_host_from_nothing_but_the_rows(federation):
    engine, *digests = tiny_worker(federation.host.data)
    ours, theirs = (list(e.train(federation.task)) for e in (engine, LocalEngine(federation.host)))
    assert digests == ["", ""] and [reply.client for reply in ours] == sorted(federation.task.work)
    for one, other in zip(ours, theirs, strict=True):
        assert all(one.delta[name].tobytes() == other.delta[name].tobytes() for name in other.delta)
