"""``speakerkit vad``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from speakerkit.cli.options import check_channel

if TYPE_CHECKING:
    from speakerkit.audio import Channel
    from speakerkit.diarization.turns import Diarization
    from speakerkit.diarization.vad import VadSettings

FORMATS = ("rttm", "lab", "json")

Method = Annotated[str, typer.Option("--vad", help="silero, or energy.")]
Threshold = Annotated[float, typer.Option(help="Probability from which on 32 ms are speech.")]
NegativeThreshold = Annotated[
    float | None, typer.Option(help="Probability under which speech ends; 0.15 less than where it starts unless given.")
]
Pad = Annotated[float, typer.Option(help="Seconds added before and after speech.")]
MinSilence = Annotated[float, typer.Option(help="Pauses under this, after padding, do not divide; seconds.")]
MinSpeech = Annotated[float, typer.Option(help="Speech under this, before padding, is dropped; seconds.")]
MaxSpeech = Annotated[float | None, typer.Option(help="Longer speech is cut at its weakest 32 ms; seconds.")]
VadRate = Annotated[int | None, typer.Option(help="Rate at which speech is looked for, 8000 or 16000 Hz.")]
Channels = Annotated[str, typer.Option("--channel", help="mix (mean of all), a channel's number from 0, or each.")]


def vad(
    files: Annotated[list[Path], typer.Argument(help="Recordings.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; with --format lab a folder, of one file a recording.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="rttm, lab (one recording on stdout) or json.")] = "rttm",
    method: Method = "silero",
    threshold: Threshold = 0.5,
    negative_threshold: NegativeThreshold = None,
    pad: Pad = 0.05,
    min_silence: MinSilence = 0.2,
    min_speech: MinSpeech = 0.25,
    max_speech: MaxSpeech = None,
    vad_rate: VadRate = None,
    channel: Channels = "mix",
) -> None:
    """Where somebody speaks. Without speech the output is empty. Bad files are named, the others done (exit 3)."""
    from speakerkit.diarization.formats import to_text, write_text
    from speakerkit.diarization.vad import VadSettings
    from speakerkit.errors import AudioError, DataError, PartialFailure, SpeakerKitError

    if format not in FORMATS:
        raise typer.BadParameter(f"{format!r} is none of {', '.join(FORMATS)}", param_hint="--format")
    asked: Channel | Literal["each"] = "each" if channel == "each" else check_channel(channel)
    settings = VadSettings(
        method, threshold, negative_threshold, pad, min_silence, min_speech, max_speech, sample_rate=vad_rate
    )
    stems = [file.stem for file in files]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DataError(twice[0], "is the name of two recordings", "give them to two commands")
    if format == "lab" and out is None and (len(files) > 1 or asked == "each"):
        raise DataError("lab", "files hold one recording", "name a folder with --out, or choose another format")
    found: list[Diarization] = []
    failed = 0
    for file in files:
        try:
            found.extend(_channels(file, settings, asked))
        except AudioError as error:
            if len(files) == 1:
                raise
            failed += 1
            typer.echo(f"speakerkit: error: {error}", err=True)
    if format != "json":
        typer.echo(f"vad: {json.dumps(settings.echo())}", err=True)
    if failed == len(files):
        raise typer.Exit(SpeakerKitError.exit_code)
    if out is None:
        sys.stdout.write(to_text(found, format))
    elif format == "lab":
        for each in found:
            suffix = f"-{each.channel}" if asked == "each" else ""
            write_text(out / f"{each.recording}{suffix}.lab", to_text([each], format))
    else:
        write_text(out, to_text(found, format))
    if failed:
        raise typer.Exit(PartialFailure.exit_code)


def _channels(file: Path, settings: VadSettings, asked: Channel | Literal["each"]) -> list[Diarization]:
    """Speech in the mix, in a channel or in each; a channel's number counts from 1 in turns."""
    from speakerkit.audio import channel_numbers
    from speakerkit.diarization.vad import detect_speech

    return [
        detect_speech(file, settings, channel=number).to_diarization(file.stem, 1 if number == "mix" else number + 1)
        for number in channel_numbers(file, asked)
    ]
