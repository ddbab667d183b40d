"""``speakerkit calibrate``: what a model's cosines mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speakerkit.cli.options import (
    AllowPipes,
    ChannelOption,
    Device,
    Json,
    Model,
    ShortAudio,
    check_channel,
    check_short,
    open_model,
)
from speakerkit.cli.ratios import listed, watched

if TYPE_CHECKING:
    from speakerkit.bundle import Calibration
    from speakerkit.data.ark import Embeddings
    from speakerkit.embedding.embedder import Embedder


def calibrate(
    model: Model,
    trials: Annotated[Path, typer.Option(help="Labelled trials, on recordings like those to be decided on.")],
    scp: Annotated[Path | None, typer.Option(help="Recordings of the trials: lines `key path`.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Instead of --scp: their embeddings, by this model, from `embed --out`.")
    ] = None,
    far: Annotated[
        list[float] | None, typer.Option(help="False-accept rate to find a threshold for, such as 0.01; repeatable.")
    ] = None,
    frr: Annotated[list[float] | None, typer.Option(help="The same for a false-reject rate; repeatable.")] = None,
    prior: Annotated[float, typer.Option(help="Probability of a target where ratios will be used.")] = 0.5,
    scores: Annotated[Path | None, typer.Option(help="Write the cosines into this score file too.")] = None,
    short: ShortAudio = "error",
    channel: ChannelOption = "mix",
    batch_size: Annotated[int, typer.Option(min=1, help="Recordings of equal length run as one batch.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="Recordings worked on at once; 0 for one a core.")] = 0,
    device: Device = "auto",
    allow_pipes: AllowPipes = False,
    as_json: Json = False,
) -> None:
    """Score trials with a model and write calibration.json into it: thresholds, and the map to likelihood ratios.

    The first asked rate becomes the model's threshold (false accepts before false rejects), without any the EER's.
    """
    from speakerkit.bundle import read_bundle
    from speakerkit.data.ark import read_embeddings
    from speakerkit.errors import DataError
    from speakerkit.verification.calibration import calibrate as calibration_of
    from speakerkit.verification.calibration import too_few_errors
    from speakerkit.verification.cosine import score_cosine
    from speakerkit.verification.trials import read_trials, write_scores
    from speakerkit.zoo.store import open_name

    if (scp is None) == (embeddings is None):
        raise DataError("calibrate", "takes either --scp or --embeddings", "give one of the two")
    wanted = read_trials(trials)
    if wanted.labels is None:
        raise DataError(trials, "has no labels", "give trials that end in target|nontarget")
    for enrol, test in wanted.pairs():
        if enrol == test:
            raise DataError(trials, f"compares {enrol!r} with itself", "leave such trials out: they teach nothing")
    keys = sorted({*wanted.enrol_ids, *wanted.test_ids})
    settings: dict[str, Any] = {"channel": check_channel(channel), "short": check_short(short)}
    if scp is not None:
        embedder = open_model(model, device, threads)
        bundle, digest = embedder.bundle, embedder.bundle.digest()
        vectors = _embed(embedder, scp, keys, allow_pipes, batch_size, settings)
    else:
        bundle = read_bundle(open_name(model))
        digest = bundle.digest()
        settings = _made_by(embeddings, digest)  # type: ignore[arg-type]
        vectors = read_embeddings(embeddings)  # type: ignore[arg-type]
    scored = score_cosine(vectors, wanted)
    data = {"recordings": len(keys), "trials_sha256": hashlib.sha256(trials.read_bytes()).hexdigest(), **settings}
    calibration = calibration_of(scored, digest, far=far or (), frr=frr or (), prior=prior, data=data)
    if scores is not None:
        write_scores(scores, scored)
    path = bundle.write_calibration(calibration)
    for warning in too_few_errors(calibration):
        typer.echo(f"speakerkit: WARNING: {warning}; 30 or more make it trustworthy", err=True)
    typer.echo(json.dumps(asdict(calibration), indent=2) if as_json else _report(path, calibration))


def _embed(
    embedder: Embedder, scp: Path, keys: Sequence[str], allow_pipes: bool, batch_size: int, settings: dict[str, Any]
) -> Embeddings:
    """Embeddings of ``keys``; one that fails ends the calibration."""
    from speakerkit.data.ark import Embeddings
    from speakerkit.data.lists import read_scp
    from speakerkit.errors import DataError

    entries = listed(read_scp(scp, allow_pipes), keys, scp)
    found = {}
    failed = []
    work = embedder.embed_many(entries.items(), batch_size=batch_size, allow_pipes=allow_pipes, **settings)
    for item in watched(work, "embed", len(entries)):
        if item.vector is None:
            failed.append(item.error)
        else:
            found[item.key] = item.vector
    if failed:
        fault = f"{len(failed)} of {len(entries)} recordings failed, the first: {sorted(failed)[0]}"
        raise DataError(scp, fault, "mend them, or leave their trials out")
    return Embeddings.from_rows(list(keys), [found[key] for key in keys], str(scp))


def _made_by(embeddings: Path, digest: str) -> dict[str, Any]:
    """Settings that embeddings were made with, if it was by this model."""
    from speakerkit.errors import DataError

    note = embeddings.with_name(f"{embeddings.stem}.model.json")
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        maker, settings = values["sha256"], {name: values.get(name) for name in ("channel", "short")}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise DataError(note, "does not tell which model made the embeddings", "extract them again") from None
    if maker != digest:
        raise DataError(embeddings, "was made by another model", "extract the embeddings with the one to calibrate")
    return settings


def _report(path: Path, calibration: Calibration) -> str:
    data = calibration.data
    lines = [
        f"{path}: from {data['targets']} target and {data['nontargets']} nontarget trials",
        f"EER {100 * data['eer']:.3f} %, Cllr {data['cllr']:.4f} bits, at best {data['min_cllr']:.4f}",
        f"LLR = {calibration.scale:.4f} * cosine {calibration.offset:+.4f}",
        f"threshold {calibration.threshold:.4f} ({calibration.source})",
    ]
    for row in calibration.thresholds:
        lines.append(
            f"{row['rate'].upper()} {100 * row['asked']:g} %: threshold {row['threshold']:.4f}, "
            f"FAR {100 * row['far']:.3f} %, FRR {100 * row['frr']:.3f} %"
        )
    return "\n".join(lines)
