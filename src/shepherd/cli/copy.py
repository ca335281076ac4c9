"""`shepherd copy`: a packaged recipe as a file to edit."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_packaged
from shepherd.errors import UsageError, did_you_mean


@click.command()
@click.argument("recipe", shell_complete=complete_packaged)
@click.argument("path", required=False, type=click.Path())
@click.option("--force", is_flag=True, help="Overwrite PATH.")
def copy(recipe: str, path: str | None, force: bool) -> None:
    """Copy a packaged RECIPE to PATH, to edit it.

    The copy has the comments of the original. The default PATH is RECIPE.toml in this folder.
    """
    from shepherd.recipe import RECIPES, recipes

    known = recipes()
    if recipe not in known:
        hint = f"packaged recipes: {', '.join(known)} (shepherd list recipes)"
        if recipe.endswith(".toml"):
            hint += "; a file that is a recipe already can be edited as it is"
        raise UsageError(f"no packaged recipe: {recipe}.{did_you_mean(Path(recipe).stem, known)}", hint=hint)
    target = Path(path or f"{recipe}.toml")
    if target.is_dir():
        target /= f"{recipe}.toml"
    again = f"shepherd copy {recipe} {shlex.quote(str(target))}"
    if target.suffix != ".toml":  # a name without .toml means a packaged recipe
        raise UsageError(
            f"{target} does not end in .toml", hint=f"shepherd copy {recipe} {shlex.quote(f'{target}.toml')}"
        )
    if not target.parent.is_dir():
        raise UsageError(f"no folder {target.parent}", hint=f"mkdir -p {shlex.quote(str(target.parent))}")
    try:
        with target.open("wb" if force else "xb") as file:
            file.write((RECIPES / f"{recipe}.toml").read_bytes())
    except FileExistsError:
        raise UsageError(
            f"{target} exists already", hint=f"give another PATH, or overwrite it: {again} --force"
        ) from None
    click.echo(output.clean(str(target)))
    output.note(f"edit it, then: shepherd check {shlex.quote(str(target))}")
    output.note(f"               shepherd run {shlex.quote(str(target))}")
