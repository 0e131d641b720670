"""The command line: one short function per verb, in the modules beside this one; errors and exit codes here.

Exit code 0 on success, 2 for bad input (one line on standard error), 1 for a fault of ours.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from elmoe import __version__
from elmoe.cli.bench import bench
from elmoe.cli.console import err, say
from elmoe.cli.demo import demo
from elmoe.cli.dram import dram
from elmoe.cli.elasticity import elasticity
from elmoe.cli.explore import explore
from elmoe.cli.generate import logits, run, trace
from elmoe.cli.models import convert, inspect
from elmoe.cli.simulate import simulate
from elmoe.errors import ElmoeError

INTERRUPTED = 130

app = typer.Typer(
    name="elmoe",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (demo, convert, inspect, run, logits, bench, elasticity, trace, simulate, dram, explore):
    app.command()(verb)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"elmoe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_print_version)] = False,
) -> None:
    """Lossless Elastic self-speculative decoding for Mixture-of-Experts models."""


def main() -> None:
    """Entry point of the `elmoe` command."""
    sys.exit(_exit_code(sys.argv[1:] or ["--help"]))


def _exit_code(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = int(command.main(args=arguments, prog_name="elmoe", standalone_mode=False) or 0)
        sys.stdout.flush()
        if code == INTERRUPTED:
            _say("interrupted")
        return code
    except ElmoeError as error:
        _say(f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return INTERRUPTED
    except OSError as error:  # standard output is full, a folder vanished: not the input's fault, but no bug either
        _say(f"error: {error}")
        return 2
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # an unknown or malformed option
            _say(f"error: {error.format_message()}")
            return 2
        traceback.print_exc()
        _say("internal error: please report the lines above")
        return 1


def _say(message: str) -> None:
    say(" ".join(message.split()), err)
