"""The ``speakerkit`` command: sub-commands, and errors as one line with the exit code that tells their kind."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from speakerkit import __version__
from speakerkit.cli import data, models, plda, ratios, report, score, voices
from speakerkit.cli.average import average
from speakerkit.cli.calibrate import calibrate
from speakerkit.cli.convert import convert
from speakerkit.cli.der import der
from speakerkit.cli.diarize import diarize
from speakerkit.cli.doctor import doctor
from speakerkit.cli.embed import embed
from speakerkit.cli.enroll import enroll
from speakerkit.cli.export import export
from speakerkit.cli.extract import ExtractCommand, extract
from speakerkit.cli.finetune import finetune
from speakerkit.cli.identify import identify
from speakerkit.cli.import_ import import_
from speakerkit.cli.metrics import metrics
from speakerkit.cli.score_extraction import score_extraction
from speakerkit.cli.similarity import similarity
from speakerkit.cli.train import train
from speakerkit.cli.vad import vad
from speakerkit.cli.verify import verify
from speakerkit.errors import PeerFailed, SpeakerKitError, one_line

# What click, or typer's own copy of it, raises for wrong usage: the class that the public one derives from.
USAGE_ERROR: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    help="Speaker embeddings and what is built on them. Exit codes: 0 done, 2 bad input or usage, 3 a part failed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: tuple[Callable[..., None], ...] = (
    train,
    finetune,
    average,
    embed,
    similarity,
    enroll,
    verify,
    identify,
    vad,
    diarize,
    extract,
    calibrate,
    metrics,
    convert,
    export,
    doctor,
)
for command in COMMANDS:
    app.command(cls=ExtractCommand if command is extract else None)(command)
app.command("import")(import_)
app.add_typer(data.app, name="data")
app.add_typer(score.app, name="score")
for name, command in (
    ("fit", ratios.fit),
    ("llr", ratios.llr),
    ("quality", ratios.quality),
    ("draw-trials", ratios.draw),
    ("der", der),
    ("extraction", score_extraction),
):
    score.app.command(name)(command)
app.add_typer(report.app, name="report")
app.add_typer(plda.app, name="plda")
app.add_typer(voices.app, name="voices")
app.add_typer(models.app, name="models")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"speakerkit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set up logging: warnings and errors to stderr."""


def main() -> None:
    """Run the command line; never shows a traceback for bad input."""
    # Before torch is loaded: its idle threads must not spin on the cores that load the data.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="speakerkit: %(levelname)s: %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not be text in the terminal's encoding
    try:
        sys.exit(app(standalone_mode=False))
    except SpeakerKitError as error:
        if not isinstance(error, PeerFailed):
            _complain(str(error))
        sys.exit(error.exit_code)
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no arguments at all: its message is the help
            print(error.format_message(), file=sys.stderr)
        else:
            context = getattr(error, "ctx", None)
            _complain(f"{error.format_message()} (see {context.command_path if context else 'speakerkit'} --help)")
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, MemoryError) as error:
        _complain(f"{str(error) or type(error).__name__}; check the disk, the memory and the permissions")
        sys.exit(2)


def _complain(text: str) -> None:
    print(f"speakerkit: error: {one_line(text)}", file=sys.stderr)
