"""Commands about the installation: the doctor, and completion for the shell."""

from __future__ import annotations

import click

from shepherd.cli import output


@click.command()
@click.option("--full", is_flag=True, help="Also load PyTorch: measure threads and precision, look for CUDA.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(full: bool, as_json: bool) -> None:
    """Check this machine and the installation.

    Versions, processor, memory, disk, cache, models, extras. Exit status 5 if no run can work."""
    from shepherd.cli import doctor
    from shepherd.errors import ResourceError

    if full:
        output.announce_torch()
    findings = doctor.examine(full)
    if as_json:
        output.print_json([section.as_dict() for section in findings])
    else:
        click.echo(doctor.to_text(findings, output.colours()), nl=False)
    broken = [line for section in findings for line in section.lines if line.state == "bad"]
    if broken:
        raise ResourceError(f"{broken[0].name}: {broken[0].value}", hint=broken[0].hint)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    It completes commands, recipes, runs, and keys and values after --set.
    For bash and zsh: eval "$(shepherd completion bash)"; for fish: shepherd completion fish | source.
    """
    from click.shell_completion import get_completion_class

    cli, script = click.get_current_context().find_root().command, get_completion_class(shell)
    assert script is not None
    click.echo(script(cli, {}, "shepherd", "_SHEPHERD_COMPLETE").source())
