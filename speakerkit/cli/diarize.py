"""``speakerkit diarize``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from speakerkit.cli.options import (
    AllowPipes,
    Device,
    Json,
    Model,
    check_channel,
    claim_folder,
    named_entries,
    open_model,
)
from speakerkit.cli.vad import (
    Channels,
    MaxSpeech,
    Method,
    MinSilence,
    MinSpeech,
    NegativeThreshold,
    Pad,
    Threshold,
    VadRate,
)
from speakerkit.cli.voices import MatchOption, check_match

if TYPE_CHECKING:
    from speakerkit.audio import Channel
    from speakerkit.diarization.bundle import DiarizationModel
    from speakerkit.diarization.pipeline import Diarizer, Namer
    from speakerkit.diarization.turns import Diarization
    from speakerkit.embedding.embedder import Embedder, Vector
    from speakerkit.verification.backend import Backend
    from speakerkit.verification.voiceprints.store import Match

NOTE = "diarize.yaml"
NEEDED = {"refinements": "refine", "match": "speakers", "name_threshold": "speakers", "name_margin": "speakers"}
OF_CLUSTERS = ("cluster", "window", "hop", "min_window", "plda")  # beside the knobs of the methods


def diarize(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Recordings, and lists of them: .scp, lines `key path`.")],
    model: Model,
    out: Annotated[
        Path | None, typer.Option(help="Folder: of each recording a file a format. Default: stdout.")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="One or more of rttm, json, csv, textgrid, audacity, lab, srt, vtt.")
    ] = "rttm",
    channel: Channels = "mix",
    vad: Method = "silero",
    vad_threshold: Threshold = 0.5,
    vad_negative_threshold: NegativeThreshold = None,
    vad_pad: Pad = 0.05,
    vad_min_silence: MinSilence = 0.2,
    vad_min_speech: MinSpeech = 0.25,
    vad_max_speech: MaxSpeech = None,
    vad_rate: VadRate = None,
    vad_rttm: Annotated[
        Path | None, typer.Option(help="Turns, in any format or a folder of RTTMs, whose speech is taken instead.")
    ] = None,
    window: Annotated[str, typer.Option(help="Seconds of a window; several, as 1.5,1.0,0.5, are fused.")] = "1.5",
    hop: Annotated[float | None, typer.Option(help="Seconds from window to window; half of the shortest.")] = None,
    min_window: Annotated[float, typer.Option(help="Shorter speech goes with the nearest window; seconds.")] = 0.1,
    cluster: Annotated[str, typer.Option(help="ahc, spectral, nme-sc, hdbscan, kmeans or vbx.")] = "spectral",
    num_speakers: Annotated[int | None, typer.Option(help="Exactly so many.")] = None,
    min_speakers: Annotated[int | None, typer.Option(help="At least so many.")] = None,
    max_speakers: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    cluster_threshold: Annotated[
        float | None, typer.Option(help="Cosine down to which clusters merge (ahc, and starts of others).")
    ] = None,
    min_cluster_size: Annotated[int | None, typer.Option(help="Windows of the smallest cluster.")] = None,
    neighbours: Annotated[int | None, typer.Option(help="spectral: affinities kept of each window.")] = None,
    most_clusters: Annotated[int | None, typer.Option(help="spectral, nme-sc: most that are counted.")] = None,
    least_neighbours: Annotated[int | None, typer.Option(help="nme-sc: fewest neighbours tried.")] = None,
    largest_share: Annotated[float | None, typer.Option(help="nme-sc: of the windows as neighbours.")] = None,
    steps: Annotated[int | None, typer.Option(help="nme-sc: numbers of neighbours tried.")] = None,
    search_windows: Annotated[int | None, typer.Option(help="nme-sc: windows that the search sees.")] = None,
    min_samples: Annotated[int | None, typer.Option(help="hdbscan: neighbours that make a point dense.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="hdbscan, vbx: dimensions used.")] = None,
    starts: Annotated[int | None, typer.Option(help="kmeans: random starts.")] = None,
    plda: Annotated[Path | None, typer.Option(help="vbx: back-end of `speakerkit plda train`.")] = None,
    acoustic_scale: Annotated[float | None, typer.Option(help="vbx: F_A.")] = None,
    speaker_scale: Annotated[float | None, typer.Option(help="vbx: F_B; the larger, the fewer speakers.")] = None,
    loop_probability: Annotated[float | None, typer.Option(help="vbx: that the speaker stays.")] = None,
    iterations: Annotated[int | None, typer.Option(help="vbx: at most.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="vbx: rise of the bound that ends it.")] = None,
    softening: Annotated[float | None, typer.Option(help="vbx: log-odds of the start.")] = None,
    most_start: Annotated[int | None, typer.Option(help="vbx: most speakers of the start.")] = None,
    refine: Annotated[Path | None, typer.Option(help="TS-VAD that goes over the turns and adds overlap.")] = None,
    refinements: Annotated[int, typer.Option(help="Times that it does.")] = 1,
    eend: Annotated[Path | None, typer.Option("--model-eend", help="EEND that takes the place of clusters.")] = None,
    exclusive: Annotated[bool, typer.Option("--exclusive", help="Nobody speaks at the same time as others.")] = False,
    speakers: Annotated[str | None, typer.Option(help="Database of voices whose names are given to speakers.")] = None,
    match: MatchOption = "mean",
    name_threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Name nobody below this cosine, instead of the model's.")
    ] = None,
    name_margin: Annotated[
        float, typer.Option(min=0, max=2, help="Name nobody whose cosine leads the second by less.")
    ] = 0.0,
    save_embeddings: Annotated[
        bool, typer.Option("--save-embeddings", help="One a speaker: in NAME.embeddings.npz, and in JSON.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do all again; else only what --out lacks.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows run as one batch.")] = 32,
    seed: Annotated[int, typer.Option(help="Of random starts.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Batches run at once; 0 for one a core.")] = 0,
    device: Device = "auto",
    allow_pipes: AllowPipes = False,
    as_json: Json = False,
) -> None:
    """Who spoke when. Without speech there are no turns. Bad files are named in failed.tsv, the others done (exit 3).

    --json prints the turns as JSON, or with --out how many recordings were done.
    """
    from speakerkit.diarization.clustering import settings_for
    from speakerkit.diarization.pipeline import DiarizationSettings, Diarizer
    from speakerkit.diarization.vad import VadSettings

    numbers = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    knobs = {
        **{"threshold": cluster_threshold, "min_cluster_size": min_cluster_size, "neighbours": neighbours},
        **{"most_clusters": most_clusters, "least_neighbours": least_neighbours, "largest_share": largest_share},
        **{"steps": steps, "search_windows": search_windows, "min_samples": min_samples, "dimensions": dimensions},
        **{"starts": starts, "acoustic_scale": acoustic_scale, "speaker_scale": speaker_scale},
        **{"loop_probability": loop_probability, "iterations": iterations, "tolerance": tolerance},
        **{"softening": softening, "most_start": most_start},
    }
    knobs = {name: value for name, value in knobs.items() if value is not None}
    options = {**{name: value for name, value in numbers.items() if value is not None}, **knobs}
    _refuse_useless(ctx, knobs)
    settings = DiarizationSettings(
        VadSettings(
            *(vad, vad_threshold, vad_negative_threshold, vad_pad, vad_min_silence, vad_min_speech, vad_max_speech),
            sample_rate=vad_rate,
        ),
        _lengths(window),
        hop,
        min_window,
        settings_for(cluster, seed=seed, **options),
        exclusive,
        refinements,
        batch_size,
    )
    formats = _formats("json" if as_json and out is None else format)
    asked: Channel | Literal["each"] = "each" if channel == "each" else check_channel(channel)
    entries = named_entries(files, allow_pipes)
    _require_room(formats, out, len(entries), asked, save_embeddings)
    embedder = open_model(model, device, threads)
    with ExitStack() as stack:
        namer = None
        if speakers is not None:
            namer = _namer(stack, embedder, speakers, check_match(match), name_threshold, name_margin)
        refiner, whole = _network(refine, device), _network(eend, device)
        diarizer = Diarizer(
            embedder,
            settings,
            backend=None if plda is None else _backend(plda, cluster, embedder),
            refiner=refiner,
            end_to_end=whole,
            namer=namer,
        )
        recordings = Recordings(diarizer, asked, vad_rttm, allow_pipes)
        if "json" not in formats and vad_rttm is None:
            typer.echo(f"vad: {json.dumps(settings.vad.echo())}", err=True)
        if out is None:
            _print(recordings, entries, formats[0], save_embeddings)
            return
        told = {
            **{"model": embedder.bundle.digest(), "vad": settings.vad.echo(), **settings.echo(), "channel": channel},
            **{"vad_rttm": vad_rttm, "plda": None if plda is None else sha256(plda.read_bytes()).hexdigest()},
            **{"refine": refiner and refiner.sha256, "refinements": refinements, "eend": whole and whole.sha256},
            **{"speakers": speakers, "match": match, "name_threshold": name_threshold, "name_margin": name_margin},
            "embeddings": save_embeddings,
        }
        folder = Folder(out, formats, save_embeddings)
        note = {key: str(value) if isinstance(value, Path) else value for key, value in told.items()}
        claim_folder(out / NOTE, note, overwrite, "turns")
        _write(recordings, entries, folder, overwrite, as_json)


def _refuse_useless(ctx: typer.Context, knobs: Iterable[str]) -> None:
    """Raise where an option would change nothing."""
    from speakerkit.errors import ConfigError

    given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    for name in sorted(given & NEEDED.keys()):
        if ctx.params[NEEDED[name]] is None:
            raise ConfigError(_flag(name), f"is of no use without {_flag(NEEDED[name])}", "leave it out")
    own = ("cluster_threshold" if name == "threshold" else name for name in knobs)
    useless = sorted({*given.intersection(OF_CLUSTERS), *own})
    if useless and ctx.params["eend"] is not None:
        raise ConfigError(_flag(useless[0]), "is of no use to --model-eend, which has no clusters", "leave it out")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class Recordings:
    """Diarizes one entry of the list after the other.

    Args:
        diarizer: the model and the settings.
        channel: what to hear; each channel is a diarization of its own.
        given: file of turns whose speech is taken.
        allow_pipes: run entries that are commands.
    """

    def __init__(
        self, diarizer: Diarizer, channel: Channel | Literal["each"], given: Path | None, allow_pipes: bool
    ) -> None:
        from speakerkit.diarization.formats import read_turns

        self._diarizer, self.channel, self._path, self._allow_pipes = diarizer, channel, given, allow_pipes
        self._given = None if given is None else list(read_turns(given).values())

    def __call__(self, key: str, entry: str) -> list[Diarization]:
        """Turns of the mix, of a channel, or of each."""
        from speakerkit.audio import channel_numbers
        from speakerkit.data.lists import open_entry
        from speakerkit.diarization.pipeline import seconds_of
        from speakerkit.diarization.vad import speech_of

        source = open_entry(entry) if self._allow_pipes else entry
        found = []
        for number in channel_numbers(source, self.channel):
            speech = None
            if self._given is not None and self._path is not None:
                seconds = seconds_of(source, channel=number)
                speech = speech_of(self._given, self._path, key, seconds, number)
            found.append(self._diarizer.diarize(source, key, channel=number, speech=speech))
        return found

    def all(self, entries: Mapping[str, str], alone: bool) -> Iterator[tuple[str, list[Diarization], str]]:
        """(key, turns, error) of each entry; the error of one that is ``alone`` is raised."""
        from tqdm import tqdm

        from speakerkit.errors import SpeakerKitError

        for key, entry in tqdm(entries.items(), unit="file", desc="diarize", disable=not sys.stderr.isatty()):
            try:
                yield key, self(key, entry), ""
            except (SpeakerKitError, OSError, MemoryError) as error:
                if alone:
                    raise
                yield key, [], str(error) or type(error).__name__


@dataclass(frozen=True)
class Folder:
    """Where files of turns are written.

    Attributes:
        path: of the folder.
        formats: names of them.
        embeddings: whether the speakers' are written, too.
    """

    path: Path
    formats: tuple[str, ...]
    embeddings: bool

    def file(self, recording: str, name: str, channel: int | None = None) -> Path:
        """The file of a recording in a format; of a channel where the format holds but one."""
        from speakerkit.diarization.formats import format_of
        from speakerkit.diarization.formats.text import file_name

        form = format_of("", name)
        own = f"-{channel}" if channel is not None and form.write is None else ""
        return self.path / f"{file_name(recording)}{own}{form.suffix}"

    def has(self, recording: str, channel: int | None) -> bool:
        """Whether a recording is done; files of the first channel are written last."""
        return all(self.file(recording, name, channel).exists() for name in self.formats)

    def write(self, found: Sequence[Diarization], each: bool) -> None:
        """Write a recording's channels."""
        from speakerkit.diarization.formats import format_of, to_text, write_text

        recording = found[0].recording
        if self.embeddings:
            self._write_embeddings(found, each)
        for name in self.formats:
            if format_of("", name).write is not None:
                write_text(self.file(recording, name), _text(found, name, self.embeddings))
                continue
            for one in reversed(found):
                write_text(self.file(recording, name, one.channel if each else None), to_text([one], name))

    def _write_embeddings(self, found: Sequence[Diarization], each: bool) -> None:
        """Keys are labels as in RTTM, with their channel before them where there is more than one."""
        from speakerkit.data.ark import Embeddings, write_embeddings
        from speakerkit.diarization.formats.rttm import name_field
        from speakerkit.diarization.formats.text import file_name

        path = self.path / f"{file_name(found[0].recording)}.embeddings.npz"
        vectors = {
            (f"{one.channel}:" if each else "") + name_field(speaker.label): speaker.embedding
            for one in found
            for speaker in one.speakers.values()
            if speaker.embedding is not None
        }
        if vectors:
            write_embeddings(path, Embeddings([*vectors], np.stack([*vectors.values()]), str(path)))
        else:
            path.unlink(missing_ok=True)


def _print(recordings: Recordings, entries: Mapping[str, str], name: str, embeddings: bool) -> None:
    """Everything to stdout, errors to stderr."""
    from speakerkit.errors import PartialFailure, SpeakerKitError

    found: list[Diarization] = []
    failed = 0
    for _, turns, error in recordings.all(entries, len(entries) == 1):
        found.extend(turns)
        if error:
            failed += 1
            typer.echo(f"speakerkit: error: {error}", err=True)
    if failed == len(entries):
        raise typer.Exit(SpeakerKitError.exit_code)
    sys.stdout.write(_text(found, name, embeddings))
    if failed:
        raise typer.Exit(PartialFailure.exit_code)


def _write(recordings: Recordings, entries: Mapping[str, str], folder: Folder, overwrite: bool, as_json: bool) -> None:
    """Files of all recordings that are not there yet, each as soon as it is done."""
    from speakerkit.diarization.formats.text import file_name
    from speakerkit.embedding.extract import write_failures
    from speakerkit.errors import DataError, PartialFailure

    each = recordings.channel == "each"
    wanted = {key: entry for key, entry in entries.items() if overwrite or not folder.has(key, 1 if each else None)}
    failures: dict[str, str] = {}
    failures_path = folder.path / "failed.tsv"
    for key, found, error in recordings.all(wanted, len(entries) == 1):
        if error:
            failures[file_name(key)] = error
        else:
            folder.write(found, each)
    write_failures(failures_path, map(file_name, entries), failures)
    counts = {"written": len(wanted) - len(failures), "kept": len(entries) - len(wanted), "failed": len(failures)}
    if as_json:
        typer.echo(json.dumps({"out": str(folder.path), **counts}, ensure_ascii=False))
    else:
        typer.echo("{}: {written} written, {kept} were there, {failed} failed".format(folder.path, **counts))
    if failures:
        kind = PartialFailure if len(failures) < len(entries) else DataError
        first = next(iter(failures.values()))
        fault = f"{len(failures)} of {len(entries)} recordings failed, the first: {first}"
        raise kind(failures_path, fault, "mend them and run the same command again")


def _text(found: Sequence[Diarization], name: str, embeddings: bool) -> str:
    from speakerkit.diarization.formats import to_text
    from speakerkit.diarization.formats.tables import write_json
    from speakerkit.diarization.formats.text import by_key

    if name == "json" and embeddings:
        return write_json(by_key(found, "recordings").values(), embeddings=True)
    return to_text(found, name)


def _lengths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of seconds", param_hint="--window") from None


def _formats(text: str) -> tuple[str, ...]:
    from speakerkit.diarization.formats import format_of

    return tuple(dict.fromkeys(format_of("", word.strip()).name for word in text.split(",")))


def _require_room(
    formats: Sequence[str], out: Path | None, count: int, channel: Channel | Literal["each"], embeddings: bool
) -> None:
    """Raise where stdout cannot hold what is asked for."""
    from speakerkit.diarization.formats import format_of
    from speakerkit.errors import DataError

    if out is not None:
        return
    if len(formats) > 1:
        raise DataError("diarize", f"prints one format, not {len(formats)}", "name a folder with --out")
    if format_of("", formats[0]).write is None and (count > 1 or channel == "each"):
        raise DataError(formats[0], "files hold one recording", "name a folder with --out, or choose another format")
    if embeddings and formats[0] != "json":
        raise DataError("--save-embeddings", "has nowhere to write to", "name a folder with --out, or print --json")


def _namer(
    stack: ExitStack, embedder: Embedder, db: str, match: Match, threshold: float | None, margin: float
) -> Namer:
    """Names out of a store of voices, which stays open as long as the stack."""
    from speakerkit.errors import ConfigError
    from speakerkit.verification.voiceprints.decision import identify
    from speakerkit.verification.voiceprints.search import open_searcher
    from speakerkit.verification.voiceprints.store import ModelStamp, open_store

    store = stack.enter_context(open_store(db))
    store.require_model(ModelStamp.of(embedder.bundle))
    if threshold is None and embedder.bundle.calibration() is None:
        raise ConfigError("--speakers", "needs a threshold, the model has none", "give --name-threshold, or calibrate")
    searcher = open_searcher(store, match)

    def name(vector: Vector) -> tuple[str, float] | None:
        found = identify(embedder.bundle, searcher.nearest(vector, 2), threshold, margin)
        return None if found.reason else (found.name, found.candidates[0].cosine)

    return name


def _backend(path: Path, method: str, embedder: Embedder) -> Backend:
    from speakerkit.errors import ConfigError, DataError
    from speakerkit.verification.backend_file import read_backend

    if method != "vbx":
        raise ConfigError("--plda", f"is of no use to {method}", "choose --cluster vbx")
    backend = read_backend(path)
    size, digest = embedder.bundle.config.embedding_size, embedder.bundle.digest()
    if backend.dimension != size or backend.extractor not in (None, digest):
        raise DataError(path, "was trained on embeddings of another model", "train one on embeddings of --model")
    return backend


def _network(path: Path | None, device: str) -> DiarizationModel | None:
    from speakerkit.diarization import bundle

    return None if path is None else bundle.load(path, device)
