"""`shepherd judge RUN…`: options of the live judge, the plan and its price, the calls, and what is known of them."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.errors import UsageError, plural

if TYPE_CHECKING:
    from shepherd.evaluation.judge.calls.client import Complete, Endpoint
    from shepherd.evaluation.judge.calls.cost import Price
    from shepherd.evaluation.judge.calls.ledger import Ledger
    from shepherd.evaluation.judge.calls.plan import Judge, Planned
    from shepherd.evaluation.judge.calls.run import Done

ASKED_ABOVE = 300
"""Calls above which the command asks, unless --max-calls gives another number."""
_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a judge that is called."""
    for option in reversed((
        click.option("--judge", "model", metavar="MODEL",
                     help="The judge: a model of the endpoint, or local:MODEL on this machine to try the plumbing."),
        click.option("--endpoint", "url", metavar="URL", default="https://api.openai.com/v1", show_default=True,
                     help="Address of an OpenAI-compatible endpoint."),
        click.option("--key-variable", metavar="NAME", default="OPENAI_API_KEY", show_default=True,
                     help="Environment variable with the key."),
        click.option("--protocol", type=click.Choice(["fedit", "pairwise"]), default="fedit", show_default=True,
                     help="fedit: both answers are rated from 1 to 10. pairwise: a verdict with tie."),
        click.option("--questions", metavar="SET", default="vicuna", show_default=True,
                     help="Set of questions that shepherd answer has answered; fedit20: our list of 20 of Vicuna's."),
        click.option("--pair", "pairs", multiple=True, nargs=2, metavar="A B",
                     help="Compare B with A: arms such as federated or RUN:local/NAME, or files of answers."),
        click.option("--one-order", is_flag=True, help="Show A first only: half the calls, and the bias of the order."),
        click.option("--repeats", type=_COUNT, default=1, show_default=True, help="Calls per question and order."),
        click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True,
                     help="Of the judge."),
        click.option("--seed", type=int, default=0, show_default=True, help="Sent to the judge; repeat k adds k."),
        click.option("--max-tokens", type=_COUNT, default=512, show_default=True, help="Of one reply of the judge."),
        click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE",
                     help="Further fields of the request, in JSON; temperature=null and seed=null leave those out."),
        click.option("--window", type=_COUNT, default=8192, show_default=True,
                     help="The judge's window in tokens; a longer prompt is refused before the first call."),
        click.option("--answer-limit", type=_COUNT, default=8000, show_default=True, metavar="CHARACTERS",
                     help="Of an answer shown to the judge; the rest is cut and marked."),
        click.option("--references", is_flag=True,
                     help="Show the judge the reference answers of questions that have them."),
        click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True,
                     metavar="SECONDS", help="Silence after which a request is given up."),
        click.option("--tries", type=_COUNT, default=5, show_default=True, help="Requests of one call at most."),
        click.option("--threads", type=_COUNT, default=4, show_default=True, help="Calls at the same time."),
        click.option("--max-calls", type=click.IntRange(min=0), metavar="N",
                     help=f"Ask above this number of calls, and make no more.  [default: ask above {ASKED_ABOVE}]"),
        click.option("--max-cost", type=click.FloatRange(min=0), metavar="COST",
                     help="Ask above this cost, and stop at it; needs --prices."),
        click.option("--prices", metavar="FILE", type=_PATH, help="Prices per million tokens, in TOML."),
        click.option("--yes", is_flag=True, help="Do not ask; limits that are given end the calls."),
        click.option("--dry-run", is_flag=True, help="Print the calls and their cost, and end."),
        click.option("--calibrate", metavar="FILE", type=_PATH,
                     help="Measure the judge on pairs with a known right answer first (LLMBar's format)."),
        click.option("--probes", is_flag=True, help="Measure how far 50 injected texts move the judge."),
    )):  # fmt: skip
        command = option(command)
    return command


def named(context: click.Context) -> list[str]:
    """The options of a judge that is called which the command line names."""
    from click.core import ParameterSource

    own = {option.name for option in getattr(options(lambda: None), "__click_params__", ())}
    return [option.opts[0] for option in context.command.params if option.name in own
            and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE]  # fmt: skip


@dataclass
class Setup:
    """The judge, how it is reached, and where its calls are recorded. endpoint: None for a local model.

    calls: whether any is to be made; recorded ones need neither key nor model. agreed: a person lifted the limits.
    made, cost: of this command so far. stop: set where no further request is wanted.
    """

    judge: Judge
    endpoint: Endpoint | None
    folder: Path
    price: Price | None
    given: Mapping[str, Any]
    calls: bool = True
    agreed: bool = False
    made: int = 0
    cost: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def complete(self) -> Complete:
        """Raises UsageError without a key, ModelError without the local model; nothing where no call is to be made."""
        if not self.calls:
            return _not_called
        if self.endpoint is not None:
            from shepherd.evaluation.judge.calls.client import connected
            from shepherd.evaluation.judge.calls.retry import Retries

            retries = Retries(self.given["tries"], sleep=self.stop.wait, cancelled=self.stop.is_set)
            return connected(self.endpoint, retries)
        output.announce_torch()
        from shepherd.serving.local_judge import PREFIX, local_judge

        return local_judge(self.judge.model.removeprefix(PREFIX))


def _not_called(*_: Any) -> Any:
    raise AssertionError("all calls are recorded")


def setup(folder: Path, given: Mapping[str, Any]) -> Setup:
    """The judge of the options. Raises UsageError and DataError before anything is read or paid for."""
    from shepherd.evaluation.judge.calls.client import Endpoint
    from shepherd.evaluation.judge.calls.cost import read_price
    from shepherd.evaluation.judge.calls.plan import Judge
    from shepherd.evaluation.judge.calls.protocols import PROTOCOLS

    if not given["model"]:
        raise UsageError(
            "no judge is named",
            hint="--judge MODEL with --endpoint URL, or --judge local:MODEL; --replay FILE reads recorded judgements",
        )
    local = given["model"].startswith("local:")
    endpoint = None if local else Endpoint.named(given["url"], given["model"], given["key_variable"], given["timeout"])
    price = read_price(given["prices"], given["model"]) if given["prices"] else None
    if given["max_cost"] is not None and price is None:
        raise UsageError("--max-cost needs prices, and none are built in", hint="give a file with --prices")
    protocol = PROTOCOLS[given["protocol"]]
    if given["references"]:
        protocol = dataclasses.replace(protocol, prompt=protocol.prompt.with_references)
    judge = Judge(
        endpoint.url if endpoint else "local",
        given["model"],
        protocol,
        _decoding(given),
        given["window"],
        given["answer_limit"],
    )
    return Setup(judge, endpoint, folder, price, given)


def _decoding(given: Mapping[str, Any]) -> Any:
    from shepherd.evaluation.judge.calls.client import Decoding

    extra: dict[str, Any] = {}
    for text in given["parameters"]:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise UsageError(f"--parameter {text!r} is not NAME=VALUE", hint="for example --parameter top_p=0.9")
        try:
            extra[name] = json.loads(value)
        except ValueError:
            extra[name] = value
    own = {"model", "messages", "stream", "max_tokens", "max_completion_tokens"} & extra.keys()
    if own:
        raise UsageError(f"--parameter {min(own)} is set by the command itself", hint="--judge, --max-tokens")
    temperature, seed = extra.pop("temperature", given["temperature"]), extra.pop("seed", given["seed"])
    return Decoding(given["max_tokens"], temperature, seed, extra)


def confirm(plans: Sequence[tuple[str, Sequence[Planned], Ledger]], set_up: Setup) -> bool:
    """Print what the calls will take, and ask where they pass a limit. Whether to go on.

    UsageError: they pass a limit, and there is no terminal to ask on.
    """
    from shepherd.evaluation.judge.calls.cost import estimate
    from shepherd.evaluation.judge.calls.run import to_make

    given, price = set_up.given, set_up.price
    missing = [(name, to_make(calls, set_up.judge.protocol, ledger), len(calls)) for name, calls, ledger in plans]
    every = [call.text for _, calls, _ in missing for call in calls]
    found = estimate(every, 0, set_up.judge.decoding.max_tokens, price)
    for name, calls, count in missing:
        output.note(f"{name}: {plural(len(calls), 'call')} to make, {count - len(calls):,} recorded or equal")
    cost = "" if found.cost is None else f", about {found.cost:.2f} {found.currency}".rstrip()
    most = "" if found.most_cost is None else f", {found.most_cost:.2f} {found.currency}".rstrip()
    output.note(
        f"about {found.tokens_in:,} tokens in and {found.tokens_out:,} out{cost}; at most, with every call made twice, "
        f"{found.most_tokens_in:,} and {found.most_tokens_out:,}{most}"
    )
    if given["dry_run"]:
        return False
    if set_up.endpoint is not None and every:
        _check_key(set_up.endpoint)
    set_up.calls = bool(every)
    limit = ASKED_ABOVE if given["max_calls"] is None else given["max_calls"]
    above = []
    if found.calls > limit:
        above.append(f"{found.calls:,} calls are more than {limit:,}")
    if given["max_cost"] is not None and found.cost is not None and found.cost > given["max_cost"]:
        above.append(f"a cost of about {found.cost:.2f} is more than {given['max_cost']:g}")
    if above and not given["yes"]:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(
                "; ".join(above),
                hint="--yes starts without asking, and ends at --max-calls or --max-cost where they are given",
            )
        click.confirm(f"{'; '.join(above)}. Go on?", abort=True, err=True)
    set_up.agreed = bool(above) and not given["yes"]
    return True


def _check_key(endpoint: Endpoint) -> None:
    endpoint.key()
    if endpoint.url.startswith("http:") and not endpoint.on_this_machine:
        output.note(f"{endpoint.host} is reached without encryption: key and answers can be read on the way")


def make(calls: Sequence[Planned], ledger: Ledger, complete: Complete, set_up: Setup) -> Done:
    """The calls, with a line of progress on a terminal. Raises the error that ended them."""
    from shepherd.evaluation.judge.calls.run import Limit, run

    given = set_up.given
    most = (None, None) if set_up.agreed else (given["max_calls"], given["max_cost"])
    limit = Limit(
        None if most[0] is None else most[0] - set_up.made,
        None if most[1] is None else most[1] - set_up.cost,
        set_up.price,
        set_up.stop,
    )
    with _progress(len(calls)) as observe:
        done = run(calls, set_up.judge.protocol, ledger, complete, limit=limit, observe=observe,
                   threads=1 if set_up.endpoint is None else given["threads"])  # fmt: skip
    set_up.made += done.made
    set_up.cost += done.cost or 0.0
    if done.fault is not None:
        raise done.fault
    return done


@contextmanager
def _progress(planned: int) -> Iterator[Callable[[Done], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return

    def observe(done: Done) -> None:
        click.echo(f"\r{done.made + done.recorded:,} of {planned:,} calls", nl=False, err=True)

    yield observe
    click.echo("", err=True)
