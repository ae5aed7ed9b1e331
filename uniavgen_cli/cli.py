"""The `uniavgen` command: registers the commands and turns errors into one line and an exit code."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from uniavgen_cli import __version__
from uniavgen_cli.commands import _output, batch, data, doctor, info, plan, presets, rerun, train, weights
from uniavgen_cli.commands.animate import animate
from uniavgen_cli.commands.continue_ import continue_
from uniavgen_cli.commands.dub import dub
from uniavgen_cli.commands.eval import eval_
from uniavgen_cli.commands.generate import generate
from uniavgen_cli.commands.prepare import prepare
from uniavgen_cli.errors import Interrupted, UniAVGenError, UsageError, known

app = typer.Typer(
    name="uniavgen",
    add_completion=False,
    rich_markup_mode=None,  # plain help: readable without colour, and quicker
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        _output.data(f"uniavgen {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def uniavgen(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make a person's picture and voice together.

    \b
    Examples:
      uniavgen generate --prompt 'A man with a grey beard says "Welcome to the show."'
      uniavgen doctor
    """
    if context.invoked_subcommand is None:
        _output.data(context.get_help())


app.command("generate")(generate)
app.command("dub")(dub)
app.command("animate")(animate)
app.command("continue")(continue_)
app.command("batch")(batch.batch)
app.command("info")(info.info)
app.command("rerun")(rerun.rerun)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.add_typer(presets.app, name="presets")
app.add_typer(weights.app, name="weights")
app.add_typer(data.app, name="data")
app.command("prepare")(prepare)
app.command("train")(train.train)
app.command("eval")(eval_)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit code."""
    _output.show_warnings()
    if not _output.debug():
        warnings.simplefilter("ignore")  # other libraries' notes to developers
    try:
        code = get_command(app).main(args=arguments, prog_name="uniavgen", standalone_mode=False)
        # typer answers Ctrl-C with a code or with Abort, depending on its version
        if code == Interrupted.exit_code:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        sys.stdout = None  # the reader has gone: nothing is left to flush to
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if _output.debug():
            import traceback

            traceback.print_exc()
        expected = _known(error)
        _output.fail(expected)
        if arguments is None and isinstance(expected, Interrupted):
            # all is put away; torch would take seconds over leaving, and somebody waits for the prompt
            sys.stdout.flush()
            os._exit(expected.exit_code)
        return expected.exit_code


def _known(error: BaseException) -> UniAVGenError:
    """Any exception as one that says what to do next, typer's own among them."""
    if isinstance(error, typer.Abort):
        return Interrupted("interrupted")
    if hasattr(error, "format_message"):  # typer's usage errors; their class differs between versions
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "uniavgen"
        return UsageError(error.format_message().rstrip("."), f"`{command} --help` lists its options")
    return known(error)
