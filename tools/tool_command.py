"""Command of a tool: a user's error is one line, as that of ``mail-torchrec``."""

from typing import Any

import click

from mail_torchrec.utils.uris import redact


class ToolCommand(click.Command):
    """Prints a ValueError or an OSError as a message, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the tool."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise click.ClickException(redact(str(error))) from error
