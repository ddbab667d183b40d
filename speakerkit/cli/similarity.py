"""``speakerkit similarity``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from speakerkit.cli.options import (
    ChannelOption,
    Device,
    Json,
    Model,
    ShortAudio,
    check_channel,
    check_short,
    open_model,
)


def similarity(
    first: Annotated[Path, typer.Argument(help="A recording.")],
    second: Annotated[Path, typer.Argument(help="Another recording.")],
    model: Model,
    short: ShortAudio = "error",
    channel: ChannelOption = "mix",
    threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Decide by this cosine instead of the model's.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Cosine of two recordings in [-1, 1], and its log-likelihood ratio and a decision where the model is calibrated.

    The decision is by the cosine; a positive ratio (natural logarithm) speaks for one speaker.
    """
    short_audio, picked = check_short(short), check_channel(channel)
    embedder = open_model(model, device)
    calibration = embedder.bundle.calibration()
    cosine = embedder.similarity(first, second, channel=picked, short=short_audio)
    llr = None if calibration is None else calibration.llr(cosine)
    known = None if calibration is None else (calibration.threshold, calibration.source)
    if threshold is not None:
        known = threshold, "--threshold"
    result = {
        "cosine": round(cosine, 6),
        "llr": None if llr is None else round(llr, 4),
        "calibrated": calibration is not None,
        "threshold": known[0] if known else None,
        "threshold_source": known[1] if known else None,
        "same_speaker": cosine >= known[0] if known else None,
    }
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo(f"cosine {cosine:.4f}")
    typer.echo("LLR uncalibrated" if llr is None else f"LLR {llr:.2f}")
    if known is None:
        typer.echo("uncalibrated: no threshold is known for this model, so there is no decision")
    else:
        typer.echo(f"threshold {known[0]:.4f} ({known[1]}): {'same' if result['same_speaker'] else 'other'} speaker")
