"""``speakerkit enroll``."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
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
from speakerkit.cli.voices import Database, summary

logger = logging.getLogger("speakerkit")


def enroll(
    name: Annotated[str, typer.Argument(help="Name of the voice.")],
    files: Annotated[list[Path], typer.Argument(help="Recordings of it.")],
    model: Model,
    db: Database,
    short: ShortAudio = "error",
    channel: ChannelOption = "mix",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Add recordings to a voice, new or not. One that it has already, by its hash, is not counted twice."""
    from speakerkit.verification.voiceprints.enrolment import enrolment_of, warnings_of
    from speakerkit.verification.voiceprints.store import ModelStamp, check_name, open_store

    name, padded, picked = check_name(name), check_short(short), check_channel(channel)
    embedder = open_model(model, device)
    recordings = {file: enrolment_of(embedder, file, picked, padded) for file in files}
    stamp = ModelStamp.of(embedder.bundle)
    with open_store(db, create=True) as store:
        store.require_model(stamp, empty=True)
        earlier = store.enrolments(name) if name in store else []
        warnings = warnings_of(embedder, recordings, earlier, picked)
        added = store.add(name, list(recordings.values()), stamp)
    warnings += [f"{source}: was enrolled already and is not counted twice" for source in added.known]
    warnings += [f"a recording of {name!r} is enrolled as {other!r} too" for other in added.shared]
    for warning in warnings:
        logger.warning("%s", warning)
    voice = added.voice
    if as_json:
        result = {**asdict(voice), "added": added.new, "known": len(added.known), "warnings": warnings}
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    typer.echo(f"{voice.name}: {added.new} added, now {summary(voice)}")
