"""`shepherd.testing`: a part that breaks one promise is refused with that promise, its name and the sizes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shepherd.clients.pool import Draw, Pool, Selection
from shepherd.clients.selection import build_selection
from shepherd.data.partitioners import deterministic, partitioners
from shepherd.errors import DataError, UsageError
from shepherd.evaluation.metrics import Metric
from shepherd.server.aggregators import build_aggregator
from shepherd.server.method import Method
from shepherd.server.methods import build_method, methods
from shepherd.testing import check_method, check_metric, check_partitioner, check_selection
from shepherd.types import GlobalModel

# Methods


def broken(name: str = "fedit", base: type[Method] = Method, **changes: Any) -> Method:
    """The method of this name, with its promises as those of `base`."""
    return base(**{**vars(build_method(name)), **changes})


def moved(model: GlobalModel, change: Callable[[np.ndarray], np.ndarray]) -> GlobalModel:
    factors = {name: pair._replace(B=change(pair.B)) for name, pair in model.adapter.factors.items()}
    return replace(model, adapter=replace(model.adapter, factors=factors))


class Doubles(Method):
    def combine(self, *given):
        return moved(super().combine(*given), lambda B: 2 * B)


class Widens(Method):
    def combine(self, *given):
        return moved(super().combine(*given), lambda B: B.astype(np.float64))


class Loses(Method):
    def combine(self, *given):
        return moved(super().combine(*given), lambda B: np.where(B > 0, np.nan, B))


class Keeps(Method):
    """The first to arrive counts a little more."""

    def combine(self, model, views, updates, weights):
        first = updates[0].client
        return super().combine(model, views, updates, {c: w * (1 + 1e-12 * (c == first)) for c, w in weights.items()})


class Random(Method):
    count = itertools.count()

    def combine(self, *given):
        return moved(super().combine(*given), lambda B: B * (1 + 1e-13 * next(self.count)))


class Modifies(Method):
    def combine(self, model, views, updates, weights):
        after = super().combine(model, views, updates, weights)
        for delta in updates[0].delta.values():
            delta *= 0.5
        return after


class SaysExact(Method):
    exact = True


class SaysInexact(Method):
    exact = False


class SaysLinear(Method):
    linear = True


class SaysMixed(Method):
    mixed_ranks = True


class TakesAnyRank(Method):
    def view(self, model, client, rank, number, seed):
        return super().view(model, client, model.adapter.r, number, seed)


class TakesRankZero(Method):
    def view(self, model, client, rank, number, seed):
        return super().view(model, client, rank or 1, number, seed)


class GivesTheFullRank(Method):
    def view(self, model, client, rank, number, seed):
        return super().view(model, client, max(rank, 3), number, seed)


class Agrees(Method):
    """Right for different clients, and for a lone one; not for clients that agree."""

    def combine(self, model, views, updates, weights):
        after, deltas = super().combine(model, views, updates, weights), [u.delta["layers.1.q.B"] for u in updates]
        agree = len(deltas) > 1 and all(np.array_equal(delta, deltas[0]) for delta in deltas)
        return moved(after, lambda B: 1.1 * B) if agree else after


METHODS: dict[str, Method] = {
    "declared exact, and": broken(base=SaysExact),
    "the next model has another dtype (round 1, float32": broken(base=Widens),
    "the next model is not finite": broken(base=Loses),
    "the order of arrival changes bits": broken(base=Keeps),
    "another model the second time": broken(base=Random),
    "modifies the model or the updates": broken(base=Modifies),
    "it is not declared exact, and moves by the weighted mean": broken("ffa_lora", SaysInexact),
    "a lone client's model does not become the global model (1 clients": broken(base=Doubles),
    "the model on which all clients agree does not become": broken(base=Agrees),
    "of the energy is lost": broken("fedmomentum", Doubles),
    "declared linear, and": broken("hetlora", SaysLinear),
    "failed, UsageError: a has rank 2": broken(base=SaysMixed),
    "a client of rank 0 is not refused": broken("flexlora", TakesRankZero),
    "the model of a client does not have the client's rank": broken("flexlora", GivesTheFullRank),
    "a client of lower rank is given a model": broken(base=TakesAnyRank),
}


@pytest.mark.parametrize("words", METHODS)
def test_a_method_that_breaks_a_promise_is_refused_with_its_words(words):
    with pytest.raises(AssertionError, match=re.escape(words)) as caught:
        check_method(METHODS[words])
    assert str(caught.value).startswith(f"method '{METHODS[words].name}': ") and str(caught.value).endswith(")")


def test_a_method_is_checked_by_name_by_its_factory_with_options_and_with_a_rule():
    def mine(energy: float = 0.5) -> Method:
        """A method of ours."""
        return build_method("florist", {"energy": energy})

    check_method("florist", energy=0.9)
    check_method(mine, energy=0.9)
    check_method(build_method("ffa_lora", aggregator=build_aggregator("mean")))
    check_method(build_method("fedit", {}, "fedadam"))
    assert "mine" not in methods
    with pytest.raises(UsageError, match="no option 'energie'"):
        check_method(mine, energie=0.9)


# Partitioners


def ids(examples, clients: int, rng) -> dict[str, tuple[str, ...]]:
    parts = np.array_split(rng.permutation(len(examples)), clients)
    return {f"client {number}": tuple(examples[i].id for i in part) for number, part in enumerate(parts)}


def rule(partition, about: str = "Rows at random, in equal parts."):
    def factory():
        return partition

    factory.__name__, factory.__doc__ = "mine", about
    return factory


def without_the_last(examples, clients, rng):
    return {name: rows[:-1] if len(rows) > 1 else rows for name, rows in ids(examples, clients, rng).items()}


def refuses(examples, clients, rng):
    if clients and len(examples) == 60:
        raise DataError("we do not like it", hint="take others")
    return ids(examples, clients, rng)


def without_a_hint(examples, clients, rng):
    if len(examples) < 2 * clients:
        raise DataError("too few rows")
    return ids(examples, clients, rng)


def all_to_one(examples, clients, rng):
    held = ids(examples, clients, rng)
    return dict.fromkeys(held, ()) | {min(held): tuple(example.id for example in examples)}


def one_more(examples, clients, rng):
    return ids(examples, min(len(examples), clients + 1), rng)


def by_the_global_generator(examples, clients, rng):
    np.random.random()
    return ids(examples, clients, rng)


def by_itself(examples, clients, rng):
    return ids(examples, clients, np.random.default_rng())


def never_random(examples, clients, rng):
    return ids(examples, clients, np.random.default_rng(0))


PARTITIONERS: dict[str, Callable] = {
    "assigned x:": rule(without_the_last),
    "enough rows, and still: we do not like it": rule(refuses),
    "refuses rows without a hint: too few rows": rule(without_a_hint),
    "without rows": rule(all_to_one),
    "2 clients, not 1": rule(one_more),
    "it draws from the global generator": rule(by_the_global_generator),
    "the same seed gives another division": rule(by_itself),
    "another seed gives the same division": rule(never_random),
    "it is marked deterministic": deterministic(rule(ids)),
    "its docstring does not describe it": rule(ids, "Parts."),
    "failed on 1 rows and 1 clients: ZeroDivisionError": rule(lambda examples, clients, rng: 1 / 0),
}


@pytest.mark.parametrize("words", PARTITIONERS)
def test_a_partitioner_that_breaks_a_promise_is_refused_with_its_words(words):
    with pytest.raises(AssertionError, match=re.escape(words)) as caught:
        check_partitioner(PARTITIONERS[words])
    assert str(caught.value).startswith("partitioner 'mine': ")
    assert "mine" not in partitioners


def test_an_option_of_a_partitioner_has_a_default_or_is_given():
    def mine(parts):
        """Rows at random, in equal parts."""
        return ids

    check_partitioner(mine, parts=3)
    with pytest.raises(AssertionError, match="the option 'parts' has no default"):
        check_partitioner(mine)


def test_a_rule_that_fails_without_a_number_of_clients_is_answered_with_a_hint():
    check_partitioner(rule(ids))  # np.array_split of 0 parts is a ValueError
    with pytest.raises(DataError, match="iid needs a number"):
        partitioners.build("iid")([], 0, np.random.default_rng())


# Selections


def drawing(draw: Callable[[Pool, int, np.random.Generator], Draw], **says: Any) -> Selection:
    return Selection(draw, name="mine", **says)


def some(pool: Pool, size: int, rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(sorted(pool.clients[i] for i in rng.choice(len(pool.clients), size, replace=False)))


def weighed(weight: float) -> Callable:
    return lambda pool, size, rng: Draw(c := some(pool, size, rng), dict.fromkeys(c, weight / size), size)


def global_draw(pool, size, rng):
    np.random.random()
    return Draw(some(pool, size, rng))


SELECTIONS: dict[str, Selection] = {
    "a client that is not in the pool": drawing(lambda pool, size, rng: Draw(tuple(f"d{i:02}" for i in range(size)))),
    "a client twice": drawing(lambda pool, size, rng: Draw(pool.clients[:1] * size)),
    "is not sorted": drawing(lambda pool, size, rng: Draw(some(pool, size, rng)[::-1])),
    "the cohort is empty": drawing(lambda pool, size, rng: Draw(()), refills=False),
    "weighs does not say": drawing(weighed(1.0)),
    "fixed is not that of the draw": drawing(lambda pool, size, rng: Draw(some(pool, size, rng)), fixed=True),
    "the weights sum to 2, not to 1": drawing(weighed(2.0), weighs=True),
    "a weight is not above 0": drawing(weighed(0.0), weighs=True),
    "1 draws for a cohort of 7": drawing(lambda pool, size, rng: Draw(some(pool, 1, rng))),
    "draws from the global generator": drawing(global_draw),
    "another draw the second time": drawing(lambda pool, size, rng: Draw(some(pool, size, np.random.default_rng()))),
    "16 streams give 1 cohorts, and it says random": drawing(lambda pool, size, rng: Draw(pool.clients[:size])),
    "it does not say random": drawing(lambda pool, size, rng: Draw(some(pool, size, rng)), random=False),
    "change no draw, and it says learns": replace(build_selection("uniform"), learns=True),
    "change a draw; does it learn?": replace(build_selection("oort"), learns=False),
    "a draw is a Draw, not tuple": drawing(some),
    "failed, ZeroDivisionError": drawing(lambda pool, size, rng: 1 / 0),
}


@pytest.mark.parametrize("words", SELECTIONS)
def test_a_selection_that_breaks_a_promise_is_refused_with_its_words(words):
    with pytest.raises(AssertionError, match=re.escape(words)) as caught:
        check_selection(SELECTIONS[words])
    assert str(caught.value).startswith(f"selection {SELECTIONS[words].name!r}: ") and str(caught.value).endswith(")")


# Metrics


def metric(score: Callable, **says: Any) -> Callable[[], Metric]:
    def mine() -> Metric:
        """A metric of ours."""
        return Metric(score, **{"higher_is_better": True, "label": "Mine", **says})

    return mine


def rows() -> Metric:
    """Rows."""
    return Metric(lambda answer: 1.0, higher_is_better=True, label="Rows")


def counting() -> Metric:
    """Counts the metrics that were made."""
    best = next(MADE)
    return Metric(lambda a: 1.0 if a.text == a.reference else 1 / (2 + best), higher_is_better=True, label="Made")


MADE, ASKED = itertools.count(), itertools.count()
same = lambda answer: float(answer.text == answer.reference)  # noqa: E731

METRICS: dict[str, Callable[[], Metric]] = {
    "a count has this name": rows,
    "it has no label": metric(same, label=""),
    "its bounds are 1 to 1": metric(same, bounds=(1.0, 1.0)),
    "the score is nan": metric(lambda answer: float("nan")),
    "the score 2 is outside its bounds 0 to 1": metric(lambda answer: 2.0),
    "another score the second time": metric(lambda answer: 1 / (1 + next(ASKED))),
    "built again gives another score": counting,
    "the reference itself has 0, not the best score 1": metric(lambda answer: 1 - same(answer)),
    "failed, ZeroDivisionError": metric(lambda answer: 1 / len(answer.reference)),
}


@pytest.mark.parametrize("words", METRICS)
def test_a_metric_that_breaks_a_promise_is_refused_with_its_words(words):
    with pytest.raises(AssertionError, match=re.escape(words)) as caught:
        check_metric(METRICS[words])
    assert str(caught.value).startswith(f"metric '{METRICS[words].__name__}': ")


def test_a_metric_where_less_is_better_has_its_best_score_at_the_lower_bound():
    check_metric(metric(lambda answer: 1 - same(answer), higher_is_better=False))
    with pytest.raises(AssertionError, match="not the best score 0"):
        check_metric(metric(same, higher_is_better=False))
