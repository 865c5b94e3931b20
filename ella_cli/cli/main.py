"""The `ella` command: the list of its sub-commands, and the one place where errors become words.

A command is a shell: it parses, calls one library function and prints one result. Torch is
imported inside commands, so that `ella --help` is instant.
"""

from __future__ import annotations

import errno
import inspect as inspect_module
import io
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.markup import escape

from ella_cli import __version__
from ella_cli.cli.accumulate import accumulate
from ella_cli.cli.config_schema import config_schema
from ella_cli.cli.demo import demo
from ella_cli.cli.env import env
from ella_cli.cli.evaluate import evaluate
from ella_cli.cli.export import export
from ella_cli.cli.inspect import inspect
from ella_cli.cli.measure import measure
from ella_cli.cli.output import PlainConsole
from ella_cli.cli.plan import plan
from ella_cli.cli.recipe import recipe
from ella_cli.cli.report import report
from ella_cli.cli.run import run
from ella_cli.cli.sweep import sweep
from ella_cli.cli.tasks import tasks
from ella_cli.cli.train import train
from ella_cli.errors import EllaError

# What typer raises for a command line that it cannot use; it names only a subclass of it.
_CommandLineError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="ella",
    help="Fine-tune a language model on one task after another without losing the earlier ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ella {__version__}")
        raise typer.Exit


@app.callback()
def _ella(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and stop; `ella env` has those of all packages.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    pass


app.command()(train)
app.command("eval")(evaluate)
app.command("evaluate", hidden=True)(evaluate)
app.command()(run)
app.command()(sweep)
app.command()(accumulate)
app.command()(measure)
app.command()(export)
app.command()(report)
app.command()(plan)
app.command()(demo)
app.command()(env)
app.command("config-schema")(config_schema)
app.add_typer(inspect, name="inspect")
app.add_typer(recipe, name="recipe")
app.add_typer(tasks, name="tasks")


def _reflow(text: str) -> str:
    """Paragraphs in one line each: typer breaks where the source does, at any width of terminal.

    Lines that are set in stay, as examples are.
    """
    paragraphs = inspect_module.cleandoc(text).split("\n\n")
    return "\n\n".join(
        one if one.startswith("  ") else " ".join(one.splitlines()) for one in paragraphs
    )


for _group in (app, inspect, recipe, tasks):
    for _command in _group.registered_commands:
        assert _command.callback is not None
        _command.callback.__doc__ = _reflow(_command.callback.__doc__ or "")


_OF_A_PATH = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR}


def main() -> None:
    """Runs `ella`; exit code 0 done, 2 bad input, 130 interrupted, 1 a mistake of our own."""
    # Progress is ours; the libraries' bars and advice would only interleave with it.
    if not sys.warnoptions:
        # Deprecations between libraries are for our tests to see, not for users.
        warnings.simplefilter("ignore", FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        # A pipe that knows only ASCII gets question marks for λ, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        done = app(prog_name="ella", standalone_mode=False)
    except EllaError as error:
        _say(error.message, error.hint)
        sys.exit(error.exit_code)
    except _CommandLineError as error:
        sys.exit(_explain_command_line(error))
    except typer.Abort:
        _say("aborted", None)
        sys.exit(1)
    except OSError as error:
        # What a system has against a path before it is opened: too long, not to be looked at.
        if error.filename is None or error.errno not in _OF_A_PATH:
            raise
        _say(f"cannot use {str(error.filename)[:300]}: {error.strerror}", "check the path")
        sys.exit(2)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _say(
            f"out of memory: {str(error).splitlines()[0][:200]}",
            "lower --per-device-train-batch-size and raise --gradient-accumulation-steps, lower "
            "--max-source-length; `ella plan` estimates what fits",
        )
        sys.exit(2)
    # Without its own mode typer gives a command's exit code back; Ctrl-C is 130.
    code = done if isinstance(done, int) else 0
    if code == 130:
        sys.stderr.write(
            "\ninterrupted; nothing half-written is left, "
            "and the same command goes on from the last finished step\n"
        )
    sys.exit(code)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or this machine, has less room than was asked for."""
    torch = sys.modules.get("torch")  # what has not loaded it has not asked it for memory
    on_device = torch is not None and isinstance(error, torch.OutOfMemoryError)
    # What torch makes of it on the CPU has no class of its own.
    return on_device or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _explain_command_line(error: Any) -> int:
    """What typer has against a command line, in the two lines of every other error."""
    message = error.format_message()
    if message:
        what = message[0].lower() + message[1:].replace("Value error, ", "")
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else app.info.name
        _say(what, f"`{command} --help` lists what it takes, with examples")
    else:
        # Not a mistake: a command that shows its help when it is given nothing.
        error.show()
    return int(error.exit_code)


def _say(message: str, hint: str | None) -> None:
    stderr = PlainConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    stderr.print(f"[red]error:[/] {escape(message)}")
    if hint:
        stderr.print(f"[dim]next:[/]  {escape(hint)}")
