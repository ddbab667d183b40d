"""``speakerkit verify``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
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
from speakerkit.cli.voices import MatchOption, check_match
from speakerkit.errors import DataError

if TYPE_CHECKING:
    from speakerkit.verification.voiceprints.decision import Verification
    from speakerkit.verification.voiceprints.store import VoiceStore

ANSWERS = {"same": "yes: same speaker", "different": "no: another speaker", "undecided": "no decision"}


def verify(
    claimed: Annotated[str, typer.Argument(metavar="NAME|FILE", help="An enrolled voice, or a recording.")],
    file: Annotated[Path, typer.Argument(help="The recording in question.")],
    model: Model,
    db: Annotated[
        str | None,
        typer.Option("--db", help="Database of voices; without one, two recordings.", envvar="SPEAKERKIT_VOICES"),
    ] = None,
    match: MatchOption = "mean",
    threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Decide by this cosine instead of the model's.")
    ] = None,
    short: ShortAudio = "error",
    channel: ChannelOption = "mix",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Is it the voice of NAME, or of another recording: cosine, log-likelihood ratio (LLR), threshold, decision."""
    from speakerkit.verification.voiceprints.decision import verify as decide
    from speakerkit.verification.voiceprints.enrolment import enrolment_of
    from speakerkit.verification.voiceprints.store import ModelStamp

    padded, picked, matched = check_short(short), check_channel(channel), check_match(match)
    embedder = open_model(model, device)
    store = _store_with(claimed, db)
    if store is None:
        first = enrolment_of(embedder, claimed, picked, padded).vector.astype(np.float64)
        second = enrolment_of(embedder, file, picked, padded).vector.astype(np.float64)
        cosine = float(np.clip(first @ second, -1.0, 1.0))
    else:
        with store:
            store.require_model(ModelStamp.of(embedder.bundle))
            if claimed not in store:
                raise DataError(claimed, f"is neither a voice of {store.location} nor a file", "see `voices list`")
            cosine = store.cosine(claimed, enrolment_of(embedder, file, picked, padded).vector, matched)
    result = decide(embedder.bundle, cosine, threshold)
    typer.echo(json.dumps(asdict(result)) if as_json else _text(result))


def _store_with(claimed: str, db: str | None) -> VoiceStore | None:
    """The database to look for the voice ``claimed`` in; ``None`` where that is a recording.

    Raises:
        DataError: it is both, or there is neither a file nor a database.
    """
    from speakerkit.verification.voiceprints.store import NoDatabase, open_store

    is_file = os.path.isfile(claimed)  # pathlib raises where a name is too long for a file
    if db is None:
        if not os.path.exists(claimed):  # of a folder, the audio gate says that it is one
            raise DataError(claimed, "no such file", "check the path, or name a database of voices with --db")
        return None
    try:
        store = open_store(db)
    except NoDatabase:
        if is_file:
            return None
        raise
    is_voice = claimed in store
    if is_voice and is_file:
        store.close()
        remedy = f"write ./{claimed} for the file, or change the folder for the voice"
        raise DataError(claimed, f"is a file and a voice of {store.location} too", remedy)
    if is_file:
        store.close()
        return None
    return store


def _text(result: Verification) -> str:
    lines = [f"cosine {result.cosine:.4f}"]
    if result.llr is not None:
        lines.append(f"LLR {result.llr:.2f}")
    if result.threshold is not None:
        lines.append(f"threshold {result.threshold:.4f} ({result.threshold_source})")
    mark = "" if result.calibrated else "uncalibrated: "
    remedy = "; give --threshold, or calibrate the model" if result.threshold is None else ""
    return "\n".join([*lines, f"{mark}{ANSWERS[result.decision]}{remedy}"])
