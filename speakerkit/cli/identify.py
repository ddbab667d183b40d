"""``speakerkit identify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from speakerkit.cli.voices import Database, MatchOption, check_match

if TYPE_CHECKING:
    from speakerkit.verification.voiceprints.decision import Identification


def identify(
    file: Annotated[Path, typer.Argument(help="A recording.")],
    model: Model,
    db: Database,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Voices to show, nearest first.")] = 5,
    match: MatchOption = "mean",
    threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Name nobody below this cosine, instead of the model's.")
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, max=2, help="Name nobody whose cosine leads the second by less.")
    ] = 0.0,
    short: ShortAudio = "error",
    channel: ChannelOption = "mix",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Who of the enrolled is speaking: the nearest voices, and one of them or `unknown`."""
    from speakerkit.verification.voiceprints.decision import identify as decide
    from speakerkit.verification.voiceprints.enrolment import enrolment_of
    from speakerkit.verification.voiceprints.search import open_searcher
    from speakerkit.verification.voiceprints.store import ModelStamp, open_store

    padded, picked, matched = check_short(short), check_channel(channel), check_match(match)
    embedder = open_model(model, device)
    with open_store(db) as store:
        store.require_model(ModelStamp.of(embedder.bundle))
        vector = enrolment_of(embedder, file, picked, padded).vector
        nearest = open_searcher(store, matched).nearest(vector, max(2, top))
    result = decide(embedder.bundle, nearest, threshold, margin)
    typer.echo(json.dumps(_shown(result, top), ensure_ascii=False) if as_json else _text(result, top))


def _shown(result: Identification, top: int) -> dict[str, object]:
    values = asdict(result)
    llrs = values.pop("llrs")
    candidates = [{**asdict(candidate), "llr": llr} for candidate, llr in zip(result.candidates, llrs, strict=True)]
    return {**values, "candidates": candidates[:top]}


def _text(result: Identification, top: int) -> str:
    lines = [f"{number}. {item.name}  cosine {item.cosine:.4f}" for number, item in enumerate(result.candidates, 1)]
    lines = [line if llr is None else f"{line}  LLR {llr:.2f}" for line, llr in zip(lines, result.llrs, strict=True)][
        :top
    ]
    if result.threshold is not None:
        lines.append(f"threshold {result.threshold:.4f} ({result.threshold_source})")
    mark = "" if result.calibrated else "uncalibrated: "
    return "\n".join([*lines, f"{mark}{result.name}{f' ({result.reason})' if result.reason else ''}"])
