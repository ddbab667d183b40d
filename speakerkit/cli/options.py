"""Options that several sub-commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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

    embedder = load(path, check_device(device), threads)
    if device == "auto":
        typer.echo(f"device: {embedder.device}", err=True)
    return embedder


def check_device(value: str) -> str:
    """The value of ``--device``."""
    if value not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{value!r} is none of auto, cpu, cuda", param_hint="--device")
    return value


def check_channel(value: str) -> Channel:
    """The value of ``--channel``."""
    if value == "mix":
        return "mix"
    if not (value.isascii() and value.isdigit()):
        raise typer.BadParameter(f"{value!r} is neither 'mix' nor a number", param_hint="--channel")
    return int(value)


def named_entries(files: Sequence[Path], allow_pipes: bool) -> dict[str, str]:
    """Recordings by their id: the name of a file without suffix, or the key in a list (.scp).

    Raises:
        DataError: a bad list, an id twice, or no recordings.
    """
    from speakerkit.data.lists import read_scp
    from speakerkit.errors import DataError

    entries: dict[str, str] = {}
    for file in files:
        listed = read_scp(file, allow_pipes) if file.suffix == ".scp" else {file.stem: str(file)}
        for key, entry in listed.items():
            if key in entries:
                raise DataError(key, "is the name of two recordings", "give them to two commands")
            entries[key] = entry
    if not entries:
        raise DataError(files[0], "names no recordings", "check the list")
    return entries


def claim_folder(path: Path, note: Mapping[str, Any], overwrite: bool, what: str) -> None:
    """Write a note on the settings that the files of its folder are made with; refuse to mix them with others.

    Args:
        overwrite: all files are made again.
        what: they hold, in words.

    Raises:
        DataError: the folder holds files that were made with other settings.
    """
    from speakerkit.config import read_yaml, write_yaml
    from speakerkit.errors import DataError

    if path.exists() and not overwrite:
        theirs = read_yaml(path)
        other = sorted(key for key in {*note, *theirs} if theirs.get(key) != note.get(key))
        if other:
            remedy = "use --overwrite, or another folder"
            raise DataError(path.parent, f"holds {what} made with other settings ({', '.join(other)})", remedy)
    write_yaml(path, dict(note))
