"""`shepherd privacy`: what differential privacy would guarantee, before a run; attacks on a finished one."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.cli.audit import audit
from shepherd.cli.group import Commands

if TYPE_CHECKING:
    from shepherd.experiment.privacy_plan import MethodPlan, PrivacyPlan

PLANS_ONLY = "This is a plan: nothing was trained. A recipe with a table [privacy] adds this noise (docs/privacy.md)."


@click.group(cls=Commands)
def privacy() -> None:
    """Plan differential privacy, or attack a run."""


privacy.add_command(audit)


@privacy.command()
@click.option("--clients", type=int, required=True, metavar="N", help="Clients of the federation.")
@click.option(
    "--per-round", type=int, required=True, metavar="K", help="Clients expected in a round, drawn with K/N each."
)
@click.option("--rounds", type=int, required=True, metavar="T", help="Rounds.")
@click.option("--noise", type=float, metavar="Z", help="Noise multiplier: standard deviation over the clip.")
@click.option(
    "--epsilon", type=float, metavar="E", help="Instead: find the least noise multiplier that keeps within E."
)
@click.option(
    "--delta", type=float, required=True, metavar="D", help="Probability of failure; at most 1/N, better 1/(10N)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    clients: int,
    per_round: int,
    rounds: int,
    delta: float,
    noise: float | None,
    epsilon: float | None,
    as_json: bool,
) -> None:
    """Print epsilon, the noise, and whether signal remains.

    Epsilon of a noise multiplier, or the least noise multiplier for an epsilon; then, for each method, the noise of a
    round against the largest update, and what the guarantee does not cover. The unit is a client; the accountants are
    PLD and RDP of dp-accounting (extra dp). Nothing is trained.

    \b
    shepherd privacy plan --clients 1000 --per-round 50 --rounds 200 --epsilon 4 --delta 1e-4
    """
    from shepherd.experiment.privacy_plan import plan_privacy

    found = plan_privacy(clients=clients, per_round=per_round, rounds=rounds, delta=delta, noise=noise, epsilon=epsilon)
    for warning in found.warnings:
        output.note(f"warning: {warning}")
    if as_json:
        output.print_json(_as_json(found))
    else:
        _print(found)


def _as_json(plan: PrivacyPlan) -> dict:
    """The plan with its derived numbers; an infinite ε is null."""
    more = {"epsilon": plan.epsilon, "accountant": plan.accountant, "sampling_rate": plan.sampling_rate}
    return {**more, **dataclasses.asdict(plan)}


def _print(plan: PrivacyPlan) -> None:
    lines = {
        "federation": f"{plan.clients:,} clients, {plan.per_round:,} a round, {plan.rounds:,} rounds",
        "epsilon": f"{plan.epsilon:.4g} at delta = {plan.delta:g} "
        f"(PLD {plan.epsilon_pld:.5g}, RDP {plan.epsilon_rdp:.5g})",
        "noise multiplier": f"{plan.noise_multiplier:g}",
        "sampling": f"Poisson, secret: each client independently with q = {plan.sampling_rate:g} in each round",
        "unit": plan.unit,
        "relation": plan.relation,
        "mechanism": plan.mechanism,
        "accountant": f"{plan.accountant} of dp-accounting",
    }
    for name, text in lines.items():
        click.echo(f"{name:<17} {text}")
    click.echo(
        f"\nnoise of a round's mean over the clip, z·√p/(qN), for the p values that a client sends ({plan.example})"
    )
    rows = [(m.name, f"{m.values:,.0f}", f"{m.noise_over_clip:.3g}", _signal(m)) for m in plan.methods]
    output.print_table(("method", "values", "noise/clip", "signal"), rows, right=(1, 2))
    click.echo(_verdict(plan))
    _bullets("Settings that break the guarantee of every method", plan.breaks)
    _bullets("Not covered", plan.not_covered)
    click.echo(f"\n{PLANS_ONLY}")


def _signal(method: MethodPlan) -> str:
    return f"breaks the guarantee: {method.breaks}" if method.breaks else method.signal


def _verdict(plan: PrivacyPlan) -> str:
    """Whether there will be signal, with the meaning of the three words."""
    by = {signal: [m.name for m in plan.methods if m.signal == signal] for signal in ("yes", "doubtful", "no")}
    if by["yes"]:
        text = f"There is signal with {', '.join(by['yes'])}."
    elif by["doubtful"]:
        text = f"Signal is doubtful, at best with {', '.join(by['doubtful'])}."
    else:
        text = "Expect no signal: with every method the noise is larger than all updates of the run together."
    return "\n".join((
        "",
        textwrap.fill(text, 100),
        "  yes: the noise of a round is no larger than the largest update (noise/clip up to 1)",
        "  doubtful: larger, but updates that agree in all rounds could exceed it (up to √rounds)",
        "  no: larger than all updates of the run together",
        "Norms are compared, which is no prediction of a loss; a run without noise and one with it show what is left.",
        "More clients per round lower the ratio most: it falls as 1/K. Fewer values do as their root.",
    ))  # fmt: skip


def print_forecast(found: Mapping[str, Any]) -> None:
    """What the differential privacy of a recipe will guarantee, and whether its noise leaves signal."""
    epsilon, pld, rdp = (found[key] for key in ("epsilon", "epsilon_pld", "epsilon_rdp"))
    bound = "infinite" if epsilon is None else f"{epsilon:.4g}"
    both = ", ".join(f"{name} {'infinite' if e is None else f'{e:.5g}'}" for name, e in (("PLD", pld), ("RDP", rdp)))
    when, whose = ("step", "; the largest of a client") if "steps" in found else ("round", "")
    lines = {
        "epsilon": f"{bound} at delta = {found['delta']:g} ({both}){whose}",
        "noise multiplier": f"{found['noise_multiplier']:g}",
        "noise/clip": f"{found['noise_over_clip']:.3g} in a {when}'s mean of {found['values']:,} values; "
        f"signal: {found['signal']}",
        "sampling": _sampling(found),
        "unit": found["unit"],
        "relation": found["relation"],
        "mechanism": found["mechanism"],
        "accountant": f"{found['accountant']} of dp-accounting",
    }
    click.echo("\ndifferential privacy" + ("" if found["private"] else ": NONE, this run is not private"))
    for name, text in lines.items():
        click.echo(f"{name:<17} {text}")
    _bullets("Not covered", tuple(found["not_covered"]))


def _sampling(found: Mapping[str, Any]) -> str:
    """Who or what is drawn, how likely, and how often."""
    if "steps" not in found:
        return (
            f"Poisson, secret: {found['clients']:,} clients, each with q = {found['sampling_rate']:g}, "
            f"in {found['releases']:,} rounds"
        )
    rates, steps = (_range(found[key]) for key in ("sampling_rate", "steps"))
    return f"Poisson, secret: each row of {found['clients']:,} clients with q = {rates}, in {steps} local steps"


def _range(both: Sequence[float]) -> str:
    """The least and the greatest, or the one number that they are."""
    least, greatest = (f"{value:,.4g}" for value in both)
    return least if least == greatest else f"{least} to {greatest}"


def _bullets(title: str, texts: tuple[str, ...]) -> None:
    click.echo(f"\n{title}")
    for text in texts:
        click.echo(textwrap.fill(text, 100, initial_indent="  - ", subsequent_indent="    "))
