"""All commands, in the order in which `shepherd --help` shows them."""

from __future__ import annotations

import click

from shepherd._version import __version__
from shepherd.cli.group import Commands
from shepherd.errors import EXIT_CODES


def _exit_codes() -> str:
    return "\b\nExit status:\n" + "\n".join(f"{code:5}  {meaning}" for code, meaning in EXIT_CODES.items())


@click.group(cls=Commands, epilog=_exit_codes(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shepherd")
@click.option("--debug", is_flag=True, help="Print the traceback of an error; also SHEPHERD_DEBUG=1.")
def cli(debug: bool) -> None:
    """Federated instruction tuning: many clients tune one language model without sharing their instructions.

    \b
    shepherd run                       the demo: a real model, downloaded once, in two to three minutes
    shepherd run --data my.jsonl       your own instructions
    shepherd chat runs/demo            chat with the tuned model
    """


def _add_commands() -> None:
    from shepherd.cli import (
        about,
        answer,
        benchmark,
        config,
        copy,
        data,
        federation,
        judge,
        model,
        privacy,
        results,
        run,
        runs,
        shells,
        site,
        status,
        study,
    )
    from shepherd.cli.list import list_names

    for command in (
        run.run, run.check, run.resume, federation.federation, site.site, status.status, data.data, model.model,
        results.evaluate, results.report, results.compare, study.study, answer.answer, judge.judge,
        benchmark.benchmark, results.chat, results.export, privacy.privacy,
        runs.runs, list_names, copy.copy, config.config, about.doctor, about.completion,
    ):  # fmt: skip
        cli.add_command(command)
    shells.register()


_add_commands()
