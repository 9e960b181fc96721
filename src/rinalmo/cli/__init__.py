"""The command line: parse, call one library function, print.

The module of a command is imported when it runs, so that `--help` needs neither torch nor the model. An error is one
line on standard error, and the exit code is

    0      success, also where the reader of a pipe (such as head) has closed it
    1      a failure while running (full disk, no permission, memory, another program), or, with a traceback, a bug
    2      invalid input: an option, a file, a sequence, a model
    130    Ctrl-C
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import sys
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from textwrap import indent
from typing import Any, TextIO

import click

import rinalmo
from rinalmo.cli.options import quiet_option, set_quiet
from rinalmo.errors import RinalmoError
from rinalmo.io.files import escape_controls

# command → (module, one line for the overview, here so that the overview imports nothing)
COMMANDS = {
    "benchmark": ("benchmark", "Run a published benchmark."),
    "card": ("training", "Write the model card of a run or a model."),
    "convert": ("models", "Convert a model between checkpoint formats."),
    "data": ("data", "Prepare token stores from sequence databases."),
    "embed": ("inference", "Embed the sequences of a FASTA file or table."),
    "evaluate": ("inference", "Evaluate a fine-tuned model on labeled examples."),
    "examples": ("data", "Copy the example files of the documentation."),
    "explain": ("inference", "Show what a fine-tuned model looks at."),
    "fold": ("inference", "Predict secondary structures."),
    "fill-mask": ("inference", "Predict masked nucleotides."),
    "finetune": ("training", "Train a model for a task on labeled examples."),
    "info": ("models", "Show the size and computational cost of a model."),
    "models": ("models", "List the available models."),
    "plot": ("plot", "Draw maps of embeddings, structures and curves."),
    "predict": ("inference", "Predict with a fine-tuned model."),
    "pretrain": ("training", "Train a model on a token store."),
    "score": ("inference", "Score variants without training."),
    "web": ("web", "Serve the web app."),
}


class _MessageHandler(logging.Handler):
    """Prints what the library logs as lines on standard error; a progress bar makes room for them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(escape_controls(record.getMessage()), file=sys.stderr, flush=True)


_MESSAGES = _MessageHandler()


class _ReaderGoneError(Exception):
    """Nobody reads standard output any more. click would take a BrokenPipeError for a failure."""


class _Commands(click.Group):
    """Commands that are imported when they are needed."""

    def main(self, *args: Any, **extra: Any) -> Any:
        set_quiet(None, None, False)  # of an earlier command in the same process
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise _ReaderGoneError from None
        return result

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"rinalmo.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return _examples_last(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


class _Context(click.Context):
    """Writes help in the encoding of standard output; click would write UTF-8 where it is ASCII."""

    def get_help(self) -> str:
        encoding = sys.stdout.encoding or "utf-8"
        return super().get_help().encode(encoding, "replace").decode(encoding)


def _examples_last(command: click.Command) -> click.Command:
    """The command and its subcommands, with --quiet, and the examples of its docstring moved below the options."""
    command.context_class = _Context
    text, mark, examples = (command.help or "").rpartition("\b\n")
    if mark:
        command.help, command.epilog = text.rstrip(), f"\b\nExamples:\n{indent(cleandoc(examples).rstrip(), '  ')}"
    if quiet_option not in command.params and (command is cli or not isinstance(command, click.Group)):
        command.params.append(quiet_option)
    for each in getattr(command, "commands", {}).values():
        _examples_last(each)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(rinalmo.__version__, prog_name="rinalmo")
def cli() -> None:
    """RiNALMo, an RNA language model: embed, fold, score, fine-tune and pre-train.

    \b
    rinalmo fill-mask "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"
    rinalmo embed sequences.fa -o embeddings.parquet
    """
    logger = logging.getLogger("rinalmo")
    logger.addHandler(_MESSAGES)


_examples_last(cli)


def main() -> None:
    """Entry point of the `rinalmo` command."""
    sys.stdout, sys.stderr = map(_usable, (sys.stdout, sys.stderr))
    # oneDNN reads this once, before its first kernel. RNAs of all lengths would fill its 1,024 places with kernels of
    # 0.6 MB and more; with 128 runs take 2 % longer.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _stop("interrupted", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RinalmoError as error:
        _stop(str(error), error.exit_code)
    except _ReaderGoneError:
        # Keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, MemoryError) as error:
        _stop(str(error) or type(error).__name__, 1)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _usable(stream: TextIO | None) -> TextIO:
    """A stream that prints a question mark for a letter that its encoding lacks."""
    if stream is None:  # closed by the caller (2>&-); the next file to be opened would take its place
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")
    return stream


def _stop(message: str, code: int) -> None:
    print("rinalmo: " + escape_controls(" ".join(message.split())), file=sys.stderr)
    sys.exit(code)
