"""A group of commands that suggests the nearest command on a typing error."""

from __future__ import annotations

import click

from shepherd.errors import UsageError, did_you_mean


class Commands(click.Group):
    """Commands in the order of addition."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = did_you_mean(args[0], self.commands)
            raise UsageError(
                f"no such command: {ctx.command_path} {args[0]}.{near}",
                hint=f"commands: {', '.join(self.commands)} ({ctx.command_path} --help)",
            )
        return super().resolve_command(ctx, args)
