"""Options that several sub-commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from speakerkit.audio import Channel
    from speakerkit.embedding.embedder import Embedder, Short

Model = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        help="Bundle or WeSpeaker folder, or a name of `speakerkit models list`.",
        envvar="SPEAKERKIT_MODEL",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ShortAudio = Annotated[str, typer.Option("--short", help="Audio under the model's minimum: error, or pad (repeat it).")]
ChannelOption = Annotated[str, typer.Option("--channel", help="mix (mean of all), or a channel's number from 0.")]
Json = Annotated[bool, typer.Option("--json/--text", help="Print JSON, or text.")]
AllowPipes = Annotated[bool, typer.Option("--allow-pipes", help="Run commands that a scp names (`cmd |`).")]


def check_short(value: str) -> Short:
    """The value of ``--short``."""
    if value not in ("error", "pad"):
        raise typer.BadParameter(f"{value!r} is neither 'error' nor 'pad'", param_hint="--short")
    return cast("Short", value)


def open_model(path: Path, device: str, threads: int = 0) -> Embedder:
    """The model of ``--model`` on ``--device``; which one "auto" came to is said on stderr."""
    from speakerkit.embedding.embedder import load

    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{device!r} is none of auto, cpu, cuda", param_hint="--device")
    embedder = load(path, device, threads)
    if device == "auto":
        typer.echo(f"device: {embedder.device}", err=True)
    return embedder


def check_channel(value: str) -> Channel:
    """The value of ``--channel``."""
    if value == "mix":
        return "mix"
    if not (value.isascii() and value.isdigit()):
        raise typer.BadParameter(f"{value!r} is neither 'mix' nor a number", param_hint="--channel")
    return int(value)
