"""``speakerkit extract``."""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from typer.core import TyperCommand

from speakerkit.cli.options import (
    AllowPipes,
    ChannelOption,
    Device,
    Json,
    check_channel,
    check_device,
    claim_folder,
    named_entries,
)

if TYPE_CHECKING:
    from speakerkit.extraction.batch import BatchSummary, Job
    from speakerkit.extraction.enrolment import TargetVoice
    from speakerkit.extraction.pipeline import VoiceExtractor

logger = logging.getLogger("speakerkit")

NOTE = "extract.yaml"


class ExtractCommand(TyperCommand):
    """``--enrol A.wav B.wav`` is ``--enrol A.wav --enrol B.wav``: click's options take one value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in click."""
        return super().parse_args(ctx, _one_by_one(args))


def _one_by_one(args: Sequence[str]) -> list[str]:
    """``--enrol`` and the target's name before each of the files that follow ``--enrol``, up to the next option."""
    waiting, given = deque(args), list[str]()
    while waiting and waiting[0] != "--":
        word = waiting.popleft()
        option, equals, first = word.partition("=")
        if option != "--enrol" or not (equals or waiting):
            given.append(word)
            continue
        first = first if equals else waiting.popleft()
        given += ["--enrol", first]
        name, _ = _named(first)
        while waiting and not waiting[0].startswith("-"):
            text = waiting.popleft()
            given += ["--enrol", text if name is None or _named(text)[0] is not None else f"{name}={text}"]
    return [*given, *waiting]


def _named(text: str) -> tuple[str | None, str]:
    """``NAME=FILES`` apart."""
    name, equals, files = text.partition("=")
    return (name, files) if equals and not Path(text).exists() else (None, text)


def extract(
    mixtures: Annotated[
        list[Path],
        typer.Argument(
            help="Mixtures, lists of them (.scp, lines `key path`), or one directory with enroll.scp; before --enrol."
        ),
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="Extraction model.", envvar="SPEAKERKIT_EXTRACTOR")],
    out: Annotated[Path, typer.Option(help="Folder: MIXTURE-TARGET.wav of each voice, wav.scp, results.jsonl.")],
    enrol: Annotated[
        list[str] | None,
        typer.Option(
            help="[NAME=]FILE [FILE...], the target alone: all up to the next option (FILE,FILE does as well); again "
            "with other names for other targets."
        ),
    ] = None,
    voice: Annotated[
        list[str] | None, typer.Option(help="Target that is enrolled in --voices; may be repeated.")
    ] = None,
    voices: Annotated[str | None, typer.Option(help="Database of voices.", envvar="SPEAKERKIT_VOICES")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Present from this cosine on, instead of the model's.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Of a directory: store the threshold that its ref.scp asks for.")
    ] = False,
    complete: Annotated[
        bool, typer.Option("--complete", help="The targets are all that is heard: they are told from each other.")
    ] = False,
    block: Annotated[float, typer.Option(min=0, help="Seconds of a block of long mixtures; 0 runs all whole.")] = 10.0,
    overlap: Annotated[float, typer.Option(min=0, help="Seconds that blocks share.")] = 2.0,
    channel: ChannelOption = "mix",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do all again and forget what is there; else only what --out lacks.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="Of onnxruntime; 0 for one a core.")] = 0,
    device: Device = "auto",
    allow_pipes: AllowPipes = False,
    as_json: Json = False,
) -> None:
    """Targets' voices out of mixtures, by enrolments: as long and as loud as in the mixture, in 32-bit float files.

    Blanks, and what file systems refuse, are percent-encoded in MIXTURE-TARGET, which is the key in all lists too.

    A directory names its targets itself: wav.scp, enroll.scp and utt2spk, keys MIXTURE-SPEAKER. What fails is named in
    failed.tsv, the others are done (exit 3); the same command again does what is missing.
    """
    from speakerkit.diarization.formats.text import file_name
    from speakerkit.extraction.batch import extract_to_folder, read_jobs
    from speakerkit.extraction.pipeline import BlockSettings, open_extractor

    folder = mixtures[0] if len(mixtures) == 1 and mixtures[0].is_dir() else None
    _require_targets(folder, enrol or voice, calibrate)
    picked = check_channel(channel)
    entries = {} if folder is not None else named_entries(mixtures, allow_pipes)
    listed = [] if folder is None else read_jobs(folder, allow_pipes)
    references = _references(folder, listed) if calibrate and folder is not None else set()
    settings = BlockSettings(block, overlap)
    extractor = open_extractor(model, device=check_device(device), threads=threads, blocks=settings)
    if device == "auto":
        typer.echo(f"device: {extractor.runner.device}", err=True)
    if threshold is not None:
        extractor.rule = extractor.rule.with_threshold(threshold, "--threshold")
    jobs = listed or _jobs(entries, [*_enrolled(extractor, enrol or []), *_stored(extractor, voice or [], voices)])
    claim_folder(out / NOTE, _told(extractor, settings, channel, complete), overwrite, "voices")
    alone = folder is None and len(jobs) == 1
    done = extract_to_folder(
        extractor,
        jobs,
        out,
        channel=picked,
        complete=complete,
        resume=not overwrite,
        alone=alone,
        file_name=str if folder is None else file_name,
    )
    _report(done, out, as_json, counts=folder is not None)
    if calibrate and folder is not None:
        _calibrate(extractor, done, folder.name, references)
    _raise_failures(done, out)


def _require_targets(folder: Path | None, named: Sequence[str] | None, calibrate: bool) -> None:
    from speakerkit.errors import DataError

    if folder is not None and named:
        raise DataError(folder, "names its targets itself", "leave --enrol and --voice out, or name files")
    if folder is None and not named:
        raise DataError("extract", "is told no target", "give --enrol FILE, or --voice NAME with --voices DATABASE")
    if folder is None and calibrate:
        raise DataError("--calibrate", "needs a directory with ref.scp", "present are the targets that it names")


def _enrolled(extractor: VoiceExtractor, texts: Sequence[str]) -> list[tuple[str, TargetVoice]]:
    """Where each voice is from, and the voice; recordings without a name are those of one target."""
    from speakerkit.errors import DataError

    found: dict[str, list[str]] = {}
    unnamed = ""
    for text in texts:
        name, rest = _named(text)
        files = _files(rest)
        if name is None:
            name = unnamed = unnamed or Path(files[0]).stem
        if not name or not all(files):
            raise DataError("--enrol", f"{text!r} names no target or no file", "give [NAME=]FILE[,FILE...]")
        found.setdefault(name, []).extend(files)
    return [(",".join(files), extractor.enrol(name, files)) for name, files in found.items()]


def _files(text: str) -> list[str]:
    return [text] if Path(text).exists() else text.split(",")


def _stored(extractor: VoiceExtractor, names: Sequence[str], db: str | None) -> list[tuple[str, TargetVoice]]:
    """Voices of a store, by all their recordings."""
    import numpy as np

    from speakerkit.errors import BundleError, ConfigError
    from speakerkit.extraction.enrolment import TargetVoice, short_of_speech
    from speakerkit.verification.voiceprints.store import ModelStamp, open_store

    if not names:
        return []
    if not db:
        raise ConfigError("--voice", "needs a database", "name one with --voices")
    bundle = extractor.runner.bundle
    if bundle.config.voices != "embedding":
        raise BundleError(bundle.path, "enrols with an encoder of its own", "give recordings with --enrol")
    found = []
    with open_store(db) as store:
        store.require_model(ModelStamp.of(bundle.voice()))
        for name in dict.fromkeys(names):
            recordings = store.enrolments(name)
            vectors = [each.magnitude * each.vector for each in recordings]  # as the embedding model gave them
            speech = sum(each.speech for each in recordings)
            mean = np.asarray(np.mean(vectors, axis=0), dtype=np.float32)
            origin = f"{db} {' '.join(sorted(each.sha256 for each in recordings))}"
            found.append((origin, TargetVoice(name, mean, speech, short_of_speech(name, speech))))
    return found


def _jobs(entries: Mapping[str, str], targets: Sequence[tuple[str, TargetVoice]]) -> list[Job]:
    from speakerkit.errors import DataError
    from speakerkit.extraction.batch import Job, Wanted

    names = [voice.name for _, voice in targets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(twice, "is the name of two targets", "give one of them another name")
    jobs = [
        Job(entry, {_key(key, voice.name): Wanted(voice.name, origin, voice) for origin, voice in targets})
        for key, entry in entries.items()
    ]
    keys = [key for job in jobs for key in job.targets]
    twice = next((key for key, count in Counter(keys).items() if count > 1), None)
    if twice is not None:
        raise DataError(twice, "is the key MIXTURE-TARGET of two voices", "rename a target, with --enrol NAME=FILE")
    return jobs


def _key(mixture: str, name: str) -> str:
    """What a voice's file is called, and its lines in lists, which hold no blanks."""
    from speakerkit.diarization.formats.text import file_name

    return "".join(quote(char) if char.isspace() else char for char in file_name(f"{mixture}-{name}"))


def _told(extractor: VoiceExtractor, settings: Any, channel: str, complete: bool) -> dict[str, Any]:
    rule = extractor.rule
    return {
        "model": extractor.runner.bundle.digest(),
        "block": settings.seconds,
        "overlap": settings.overlap,
        "channel": channel,
        "complete": complete,
        "threshold": rule.threshold,
        "threshold_source": rule.source,
    }


def _report(done: BatchSummary, out: Path, as_json: bool, counts: bool) -> None:
    """Each voice, or of a directory how many; what looks wrong goes to stderr."""
    numbers = {"written": done.written, "kept": done.kept, "failed": len(done.failures)}
    if counts:
        warned = sum(bool(row["warnings"]) for row in done.rows.values())
        absent = sum(not row["target_present"] for row in done.rows.values())
        numbers |= {"absent": absent, "likely_swaps": sum(row["likely_swap"] for row in done.rows.values())}
        if as_json:
            typer.echo(json.dumps({"out": str(out), **numbers, "warned": warned}, ensure_ascii=False))
        elif done.rows:
            typer.echo(f"{out}: " + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in numbers.items()))
        if warned:
            logger.warning("%d voices have warnings, which are in %s", warned, out / "results.jsonl")
        return
    for line in dict.fromkeys(line for row in done.rows.values() for line in row["warnings"]):
        logger.warning("%s", line)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **numbers, "voices": list(done.rows.values())}, ensure_ascii=False))
        return
    for row in done.rows.values():
        typer.echo(_line(row, out))


def _line(row: Mapping[str, Any], out: Path) -> str:
    state = "likely swapped" if row["likely_swap"] else "present" if row["target_present"] else "absent"
    like = "none" if row["similarity"] is None else f"{row['similarity']:.2f}"
    rest = "none" if row["rest_similarity"] is None else f"{row['rest_similarity']:.2f}"
    limit = "" if row["threshold"] is None else f", threshold {row['threshold']:.2f} ({row['threshold_source']})"
    return f"{out / row['file']}: {state}; cosine with the enrolment {like}, of what remains {rest}{limit}"


def _references(folder: Path, jobs: Sequence[Job]) -> set[str]:
    """Keys of the targets that are in their mixtures, among others that are not: else nothing can be calibrated."""
    from speakerkit.data.lists import read_table
    from speakerkit.extraction.presence import require_both

    keys, path = [key for job in jobs for key in job.targets], folder / "ref.scp"
    present = read_table(path).keys() & set(keys)
    require_both([key in present for key in keys], str(path))
    return present


def _calibrate(extractor: VoiceExtractor, done: BatchSummary, name: str, references: set[str]) -> None:
    from speakerkit.extraction.presence import calibrate_presence

    known = [key for key, row in done.rows.items() if row["score"] is not None]
    scores, present = [done.rows[key]["score"] for key in known], [key in references for key in known]
    bundle = extractor.runner.bundle
    threshold = calibrate_presence(bundle, scores, present, name)
    typer.echo(f"threshold {threshold:.4f} is stored in {bundle.path}; --overwrite makes the voices with it", err=True)


def _raise_failures(done: BatchSummary, out: Path) -> None:
    from speakerkit.errors import DataError, PartialFailure
    from speakerkit.extraction.batch import FAILED

    if not done.failures:
        return
    kind = PartialFailure if done.rows else DataError
    first, total = next(iter(done.failures.values())), len(done.rows) + len(done.failures)
    fault = f"{len(done.failures)} of {total} voices failed, the first: {first}"
    raise kind(out / FAILED, fault, "mend them and run the same command again")
