"""The verbs: one short function each, in the modules beside this one."""

from __future__ import annotations

from typing import Annotated

import typer

from elmoe import __version__
from elmoe.cli.bench import bench
from elmoe.cli.chat import chat
from elmoe.cli.demo import demo
from elmoe.cli.dram import dram
from elmoe.cli.elasticity import elasticity
from elmoe.cli.explore import explore
from elmoe.cli.generate import logits, run, trace
from elmoe.cli.locality import locality
from elmoe.cli.models import convert, inspect
from elmoe.cli.reproduce import reproduce
from elmoe.cli.rtl import app as rtl
from elmoe.cli.serve import serve
from elmoe.cli.simulate import simulate
from elmoe.errors import ConfigError, ElmoeError

app = typer.Typer(
    name="elmoe",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
VERBS = (
    *(demo, convert, inspect, run, chat, logits, bench, serve),
    *(elasticity, locality, trace, simulate, dram, explore, reproduce),
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(rtl, name="rtl", help="The PE in Amaranth: emit Verilog, verify it, measure its area.")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"elmoe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_print_version)] = False,
) -> None:
    """Lossless Elastic self-speculative decoding for Mixture-of-Experts models."""


def run_verb(arguments: list[str]) -> int:
    """Run one; its exit code. Raises KeyboardInterrupt for Ctrl-C, ConfigError for an unknown or malformed option."""
    command = typer.main.get_command(app)
    try:
        return int(command.main(args=arguments, prog_name="elmoe", standalone_mode=False) or 0)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except ElmoeError:
        raise
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            raise ConfigError(error.format_message()) from None
        raise
