"""From a recording to who spoke when: speech, windows, embeddings, clusters, turns; overlap and names if asked."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speakerkit.audio import AudioSource, Channel, read_blocks
from speakerkit.diarization import neural
from speakerkit.diarization.clustering import (
    ClusterSettings,
    PldaBackend,
    SpectralSettings,
    VbxSettings,
    cluster_with_confidence,
    settings_for,
)
from speakerkit.diarization.clustering.affinity import directions
from speakerkit.diarization.clustering.labels import centroids
from speakerkit.diarization.segments import exclusive_turns, speaker_name, turns_of_windows
from speakerkit.diarization.turns import Diarization, Span, Speaker, Turn, regions, without
from speakerkit.diarization.vad import Speech, VadSettings, clip_spans, detect_speech
from speakerkit.diarization.windows import Windows, embed_windows, fuse_scales, multi_scale
from speakerkit.embedding.embedder import Embedder, Vector, load
from speakerkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from speakerkit.diarization.bundle import DiarizationModel

logger = logging.getLogger("speakerkit.diarization")

# Whose an embedding (D,) of length 1 is: an enrolled voice's name and the cosine with it, or nobody's.
Namer = Callable[[Vector], "tuple[str, float] | None"]

SHORTEST = 0.01  # seconds; where all speech is shorter, there is no voice to tell
MODEL_VARIABLE = "SPEAKERKIT_MODEL"


@dataclass(frozen=True)
class DiarizationSettings:
    """How a recording is diarized. Times are in seconds.

    Attributes:
        vad: how speech is found, where it is not given.
        windows: lengths that are embedded; of several, the shortest say where speakers change, all who speaks.
        hop: from window to window; ``None`` is half of the shortest length.
        min_window: shorter speech has the speaker of the nearest window, where there is one.
        clustering: the method, with its own settings, the numbers of speakers, and the seed.
        exclusive: nobody speaks at the same time as others.
        refinements: times that a TS-VAD goes over the turns, where there is one.
        batch_size: windows embedded at once.

    Raises:
        ConfigError: values that are impossible, alone or together.
    """

    vad: VadSettings = field(default_factory=VadSettings)
    windows: tuple[float, ...] = (1.5,)
    hop: float | None = None
    min_window: float = 0.1
    clustering: ClusterSettings = field(default_factory=SpectralSettings)
    exclusive: bool = False
    refinements: int = 1
    batch_size: int = 32

    def __post_init__(self) -> None:
        multi_scale((), self.windows, self.hop, self.min_window)
        for name in ("refinements", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"is {getattr(self, name)}", "it is at least 1")
        if len(self.windows) > 1 and isinstance(self.clustering, VbxSettings):
            raise ConfigError("vbx", "knows embeddings of one length only", "give one window length")

    def echo(self) -> dict[str, Any]:
        """Everything that decides besides the speech, by name, for the settings of results."""
        clustering = {"method": self.clustering.method, **dataclasses.asdict(self.clustering)}
        hop = min(self.windows) / 2 if self.hop is None else self.hop
        windows = {"lengths": list(self.windows), "hop": hop, "minimum": self.min_window}
        return {"windows": windows, "clustering": clustering, "exclusive": self.exclusive}


@dataclass(frozen=True, eq=False)
class _Heard:
    """Embedded windows of the speech.

    Attributes:
        spans: speech without digital silence.
        windows: N of them.
        vectors: (N, K D) to cluster, of all lengths.
        voices: (N, D) of the longest.
    """

    spans: tuple[Span, ...]
    windows: Windows
    vectors: Vector
    voices: Vector


class Diarizer:
    """Diarizes recordings with one model and the same settings; nothing is kept between calls.

    Args:
        embedder: the embedding model; on onnxruntime no torch is needed.
        settings: how.
        backend: chain and PLDA of the same embedding model, for VBx.
        refiner: a TS-VAD trained with the same embedding model, which goes over the turns and adds overlap.
        end_to_end: an EEND, which takes the place of windows and clusters.
        namer: of enrolled voices; who is none of them stays A, B, ...

    Raises:
        ConfigError: VBx without PLDA; a refiner and an EEND at once.
        BundleError: a refiner that is none, or is of another embedding model; an EEND that is none.
    """

    def __init__(
        self,
        embedder: Embedder,
        settings: DiarizationSettings | None = None,
        *,
        backend: PldaBackend | None = None,
        refiner: DiarizationModel | None = None,
        end_to_end: DiarizationModel | None = None,
        namer: Namer | None = None,
    ) -> None:
        self.embedder = embedder
        self.settings = settings or DiarizationSettings()
        if end_to_end is not None and refiner is not None:
            raise ConfigError("eend", "takes the place of the clusters that TS-VAD refines", "give one of the two")
        if refiner is not None:
            neural.require_tsvad(refiner, embedder)
        if end_to_end is not None:
            neural.require_eend(end_to_end)
        if isinstance(self.settings.clustering, VbxSettings) and backend is None and end_to_end is None:
            raise ConfigError("vbx", "needs a PLDA back-end", "train one with `speakerkit plda train`")
        self._backend, self._refiner, self._end_to_end, self._namer = backend, refiner, end_to_end, namer
        self._told = {"model": embedder.bundle.digest(), **self.settings.echo()}

    def diarize(
        self,
        source: AudioSource,
        recording: str | None = None,
        *,
        rate: int | None = None,
        channel: Channel = "mix",
        speech: Speech | Iterable[Span] | None = None,
    ) -> Diarization:
        """Who speaks when in a recording of any length, which is read in blocks.

        Args:
            source: path, bytes, binary file object, or array with its ``rate`` in Hz.
            recording: its id; the file's name without suffix unless given.
            channel: "mix", or the number of a channel from 0, which is heard by all parts.
            speech: where somebody speaks, if that is known: nothing is looked for elsewhere.

        Returns:
            turns of A, B, ... in order of appearance, with confidences, and each speaker's embedding; no turns, and a
            warning, where nobody speaks.

        Raises:
            AudioError: as :func:`speakerkit.audio.load_audio`.
            ConfigError: fewer windows of speech than the speakers asked for.
            DataError: speech outside the recording, or another number of speakers than asked for (EEND).
        """
        if not isinstance(source, (str, os.PathLike, bytes, np.ndarray)):
            source = source.read()  # it is gone through several times
        path = Path(source) if isinstance(source, (str, os.PathLike)) else Path("audio")
        name = recording or path.stem
        heard = {"rate": rate, "channel": channel}
        found = self._speech(source, speech, **heard)
        number = 1 if channel == "mix" else channel + 1
        start = Diarization(name, (), found.duration, number, settings={"vad": dict(found.settings), **self._told})
        diarize = self._clustered if self._end_to_end is None else self._heard_whole
        result = diarize(start, source, found.spans, **heard)
        if self._namer is not None:
            result = named(result, self._namer, self.settings.clustering.bounds(len(result.labels))[0])
        if self.settings.exclusive:
            result = replace(result, turns=exclusive_turns(result.turns))
        if not result.turns:
            logger.warning(
                "%s: no speech was found, there are no turns", path if isinstance(source, (str, os.PathLike)) else name
            )
        return result

    def _speech(self, source: AudioSource, speech: Speech | Iterable[Span] | None, **heard: Any) -> Speech:
        if isinstance(speech, Speech):
            return speech
        if speech is None:
            return detect_speech(source, self.settings.vad, **heard)
        duration = seconds_of(source, **heard)
        return Speech(clip_spans(speech, duration), duration, {"method": "given"})

    def _clustered(self, start: Diarization, source: AudioSource, spans: Sequence[Span], **heard: Any) -> Diarization:
        found = self._embedded(source, spans, **heard)
        clusters = cluster_with_confidence(found.vectors, self.settings.clustering, self._backend)
        if not found.spans:
            return start
        turns = turns_of_windows(found.spans, found.windows, clusters.labels, confidence=clusters.confidence)
        middles = centroids(directions(found.voices), clusters.labels).astype(np.float32)
        speakers = {
            (name := speaker_name(number)): Speaker(name, middle if middle.any() else None)
            for number, middle in enumerate(middles)
        }
        result = replace(start, turns=turns, speakers=speakers)
        self._require_asked(result)
        if self._refiner is None:
            return result
        times = self.settings.refinements
        return neural.refine(
            result, source, self._refiner, self.embedder, speech=found.spans, iterations=times, **heard
        )

    def _embedded(self, source: AudioSource, spans: Sequence[Span], **heard: Any) -> _Heard:
        chosen = self.settings
        scales = multi_scale(spans, chosen.windows, chosen.hop, chosen.min_window)
        if not len(scales[0]):
            scales = multi_scale(spans, chosen.windows, chosen.hop, SHORTEST)  # all speech is short
        found = [embed_windows(self.embedder, source, each, batch_size=chosen.batch_size, **heard) for each in scales]
        kept = functools.reduce(np.intersect1d, [each.kept for each in found])
        vectors = [each.vectors[np.searchsorted(each.kept, kept)] for each in found]
        shortest, longest = int(np.argmin(chosen.windows)), int(np.argmax(chosen.windows))
        silent = found[shortest].silent
        holes = regions((Turn(*times, "-") for times in zip(silent.starts, silent.ends, strict=True)), at_least=1)
        fused = fuse_scales(vectors) if len(vectors) > 1 and len(kept) else vectors[0]
        sound = without(spans, holes) if len(kept) else ()
        return _Heard(sound, scales[shortest].select(kept), fused, vectors[longest])

    def _heard_whole(self, start: Diarization, source: AudioSource, spans: Sequence[Span], **heard: Any) -> Diarization:
        """By the network, and embeddings of whom it hears."""
        asked = self.settings.clustering.num_speakers
        found = start
        if spans and self._end_to_end is not None:
            limit = math.inf if start.duration is None else start.duration
            whole = neural.diarize_end_to_end(
                self._end_to_end, source, start.recording, num_speakers=asked, speech=spans, **heard
            )
            turns = tuple(replace(turn, end=min(turn.end, limit)) for turn in whole.turns if turn.start < limit)
            settings = {key: value for key, value in start.settings.items() if key not in ("windows", "clustering")}
            found = replace(start, turns=turns, settings={**settings, **whole.settings})
        self._require_asked(found)
        voices = neural.speaker_voices(found, source, self.embedder, **heard)
        unit = {label: directions(voice[None])[0] for label, voice in voices.items()}
        return replace(found, speakers={label: Speaker(label, vector) for label, vector in unit.items()})

    def _require_asked(self, found: Diarization) -> None:
        """The numbers of speakers that were asked for are kept, or it is an error."""
        clustering, count = self.settings.clustering, len(found.labels)
        low = clustering.num_speakers or (clustering.min_speakers if clustering.min_speakers > 1 else 0)
        high = clustering.num_speakers or clustering.max_speakers or math.inf
        if not low <= count <= high:
            fault = f"has {count} speakers, {low if count < low else high} were asked for"
            raise DataError(found.recording, fault, "ask for another number, or use another method")


def named(diarization: Diarization, namer: Namer, least: int = 1) -> Diarization:
    """The same with the names of known voices for labels; others keep theirs, but none that is a known voice's name.

    Labels of one voice become one, as long as ``least`` speakers are left; else the nearest has the name alone.
    """
    found = {}
    for label in diarization.labels:
        voice = diarization.speakers[label].embedding
        match = None if voice is None else namer(directions(voice[None])[0])
        if match is not None:
            found[label] = match
    names: dict[str, str] = {}
    spare = len(diarization.labels) - least
    for label, (name, _) in sorted(found.items(), key=lambda item: (-item[1][1], item[0])):
        if name in names.values():
            if spare <= 0:
                continue
            spare -= 1
        names[label] = name
    taken = {*names.values(), *diarization.labels}
    free = (
        name for number in range(len(taken) + len(diarization.labels)) if (name := speaker_name(number)) not in taken
    )
    for label in diarization.labels:
        if label not in names:
            names[label] = next(free) if label in names.values() else label
    speakers: dict[str, Speaker] = {}
    for label in sorted(diarization.labels, key=lambda each: -found[each][1] if each in found else 0.0):
        cosine = found[label][1] if label in found and found[label][0] == names[label] else None
        speakers.setdefault(names[label], replace(diarization.speakers[label], label=names[label], cosine=cosine))
    turns = tuple(replace(turn, speaker=names[turn.speaker]) for turn in diarization.turns)
    return replace(diarization, turns=turns, speakers=speakers)


def seconds_of(source: AudioSource, *, rate: int | None = None, channel: Channel = "mix") -> float:
    """Length of a recording, by reading all of it.

    Raises:
        AudioError: as :func:`speakerkit.audio.load_audio`.
    """
    lengths, own = 0, 1
    for block in read_blocks(source, rate=rate, channel=channel):
        lengths, own = lengths + len(block.samples), block.rate
    return lengths / own


def diarize(
    source: AudioSource,
    model: str | Path | Embedder | None = None,
    *,
    recording: str | None = None,
    rate: int | None = None,
    channel: Channel = "mix",
    speech: Speech | Iterable[Span] | None = None,
    vad: VadSettings | None = None,
    windows: float | Sequence[float] = 1.5,
    cluster: str = "spectral",
    backend: PldaBackend | None = None,
    exclusive: bool = False,
    device: str = "auto",
    threads: int = 0,
    **options: Any,
) -> Diarization:
    """Who speaks when, in one call; :class:`Diarizer` is for many recordings.

    Args:
        source: as ``recording``, ``rate``, ``channel`` and ``speech`` those of :meth:`Diarizer.diarize`.
        model: an embedding model: bundle, registered name, or opened; ``None`` is what ``SPEAKERKIT_MODEL`` names.
        vad: how speech is found.
        windows: length in seconds, or several.
        cluster: "ahc", "spectral", "nme-sc", "hdbscan", "kmeans" or "vbx".
        backend: PLDA for VBx.
        exclusive: nobody speaks at the same time as others.
        device: of the model, and ``threads``, as for :func:`speakerkit.load`.
        options: of the method: ``num_speakers``, ``min_speakers``, ``max_speakers``, ``threshold`` and so on.

    Raises:
        SpeakerKitError: as :class:`Diarizer`; no model.
    """
    chosen = model if model is not None else os.environ.get(MODEL_VARIABLE)
    if not chosen:
        raise ConfigError("model", "is not given", f"name an embedding model, or set {MODEL_VARIABLE}")
    embedder = chosen if isinstance(chosen, Embedder) else load(chosen, device, threads)
    lengths = (float(windows),) if isinstance(windows, (int, float)) else tuple(float(each) for each in windows)
    settings = DiarizationSettings(
        vad or VadSettings(), lengths, clustering=settings_for(cluster, **options), exclusive=exclusive
    )
    diarizer = Diarizer(embedder, settings, backend=backend)
    return diarizer.diarize(source, recording, rate=rate, channel=channel, speech=speech)
