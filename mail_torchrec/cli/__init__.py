"""The command line ``mail-torchrec``, one function a command."""

import os
import sys
from traceback import format_exception
from types import TracebackType

import click
from click.exceptions import Exit

from mail_torchrec import __version__
from mail_torchrec.cli import (
    configuration,
    data,
    delivery,
    experiments,
    ids,
    inference,
    online,
    plans,
    retrieval,
    runs,
    scoring,
)
from mail_torchrec.cli.interrupts import EXIT_CODE, InterruptHandler
from mail_torchrec.distributed.launcher import report_error_to_launcher
from mail_torchrec.utils.logging import (
    LEVEL_VARIABLE,
    LEVELS,
    set_log_level,
    silence_third_parties,
)
from mail_torchrec.utils.uris import redact


class _Cli(click.Group):
    """Prints a user's error as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Runs a command."""
        try:
            return self._invoke(ctx)
        except (ValueError, OSError) as error:
            report_error_to_launcher(error)
            if ctx.params["traceback"]:
                raise
            # A reader process hands over its error with the traceback before the message.
            message = redact(str(error).rpartition("\nValueError: ")[2])
            raise click.ClickException(message) from error
        except click.ClickException as error:
            error.message = redact(error.message)  # type: ignore[misc]  # keeps the usage line
            raise
        except (click.Abort, Exit):
            raise
        except Exception as error:  # a fault of ours: with its traceback
            report_error_to_launcher(error)
            raise

    def _invoke(self, ctx: click.Context) -> object:
        """Runs a command; where it was interrupted, whatever it raised is left out."""
        with InterruptHandler() as ctx.obj:
            try:
                return super().invoke(ctx)
            except BaseException as error:
                if not (ctx.obj.received or isinstance(error, KeyboardInterrupt)):
                    raise
                if os.environ.get("RANK", "0") == "0":
                    click.echo(ctx.obj.message(), err=True)
                raise Exit(EXIT_CODE) from None


def _print_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an error with its traceback and its causes, without credentials in URIs."""
    sys.stderr.write(redact("".join(format_exception(kind, error, trace))))


@click.group(
    cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(__version__)
@click.option("--traceback", is_flag=True, help="Show where an error was raised.")
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="info",
    envvar=LEVEL_VARIABLE,
    show_default=True,
    show_envvar=True,
    help="Lowest level of messages on standard error.",
)
def main(traceback: bool, log_level: str) -> None:
    """Train click models with sharded tables and a zero-shot tower for new users (MAIL, CIKM 2021).

    \b
    mail-torchrec synthesize --out worlds/demo
    mail-torchrec train --config launch/configs/synthetic.yaml --run-dir runs/demo \\
      data.root=worlds/demo
    mail-torchrec compare runs/demo
    """  # noqa: D301 -- Click's mark for lines to keep is a real \\b
    sys.excepthook = _print_error
    set_log_level(log_level)
    silence_third_parties()


@main.command()
def doctor() -> None:
    """Check the installation: versions, devices, and for a mismatch the cause and the fix."""
    from mail_torchrec.doctor.checks import main as diagnose

    sys.exit(diagnose())


for command in (
    *(data.synthesize, data.prepare, data.init, data.check, data.diagnose),
    *(runs.train, runs.compare, scoring.days, runs.checkpoint, ids.ids),
    *(scoring.evaluate, scoring.predict, scoring.importance),
    *(plans.plan, experiments.reproduce, experiments.sweep),
    *(inference.export, inference.triton, retrieval.vectors),
    *(delivery.apply, delivery.publish, delivery.serve),
    *(online.abtest, configuration.config),
):
    main.add_command(command)
