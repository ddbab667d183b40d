"""From a mixture and enrolments to each target's voice: whole or in blocks, at the mixture's rate and level."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from scipy.io import wavfile

from speakerkit.audio import Audio, AudioSource, Channel, Samples, load_audio, read_blocks, resample_blocks
from speakerkit.errors import BundleError, ConfigError, DataError
from speakerkit.extraction.bundle import ExtractionBundle, read_extractor
from speakerkit.extraction.enrolment import TargetVoice, enrol
from speakerkit.extraction.presence import (
    Loudest,
    Presence,
    PresenceRule,
    judged,
    loudest,
    presence_rule,
    similarity_to,
)
from speakerkit.extraction.runner import ExtractionRunner, Runner
from speakerkit.files import atomic_path

MODEL_VARIABLE = "SPEAKERKIT_EXTRACTOR"
LEFT_DB = -25.0  # output over mixture that is left where the target is absent
STEP = 1 << 18  # samples that are looked at once
IN_MEMORY = 1 << 24  # values, 64 MB: what is more goes to a file
Columns = npt.NDArray[np.float32]  # (samples, 1 + K): the mixture and the outputs, at the model's rate


@dataclass(frozen=True)
class BlockSettings:
    """How long mixtures are cut.

    Attributes:
        seconds: of a block; mixtures shorter than two blocks (less the overlap) are run whole. 0 runs all whole.
        overlap: seconds that two blocks share: the outer quarters, where a block knows least, are left out, and the
            half between them is faded from one block to the other.

    Raises:
        ConfigError: an overlap of more than half a block.
    """

    seconds: float = 10.0
    overlap: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < float("inf"):
            raise ConfigError("block", f"is {self.seconds} s", "it is at least 0, which is for all at once")
        if self.seconds and not 0 <= self.overlap <= self.seconds / 2:
            raise ConfigError("overlap", f"is {self.overlap} s of {self.seconds} s", "at most half a block")


@dataclass(frozen=True, eq=False)
class ExtractedVoice:
    """One target's voice out of one mixture.

    Attributes:
        name: the target's.
        waveform: (samples,) as long as the mixture, at its level; of a long mixture, it stands in a file.
        rate: Hz, that of the mixture.
        presence: whether the target is there, and in the output.
        speech: seconds of speech of its enrolments.
        warnings: what looks wrong with enrolments, mixture or output.
    """

    name: str
    waveform: Samples
    rate: int
    presence: Presence
    speech: float
    warnings: tuple[str, ...]

    @property
    def target_present(self) -> bool:
        """Whether the enrolled voice is in the mixture; where not, the output is 25 dB under it at least."""
        return self.presence.target_present

    @property
    def likely_swap(self) -> bool:
        """Whether another voice was most likely taken for the target."""
        return self.presence.likely_swap

    def to_wav(self, path: str | Path) -> None:
        """Write 32-bit float samples, which cannot clip, atomically."""
        # Not by libsndfile, which puts the time of writing into files of floats.
        with atomic_path(path) as temporary:
            wavfile.write(temporary, self.rate, self.waveform)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, as plain values."""
        return {
            "target": self.name,
            "seconds": round(len(self.waveform) / self.rate, 4),
            "rate": self.rate,
            **asdict(self.presence),
            "enrolment_speech": round(self.speech, 2),
            "warnings": list(self.warnings),
        }


class VoiceExtractor:
    """Extracts voices with one model and the same settings; nothing is kept between calls.

    Args:
        runner: the model.
        blocks: how long mixtures are cut.
        rule: when a target counts as present; that of the model's folder unless given.
    """

    def __init__(self, runner: Runner, blocks: BlockSettings | None = None, rule: PresenceRule | None = None) -> None:
        self.runner, self.blocks = runner, blocks or BlockSettings()
        self.rule = rule or presence_rule(runner.bundle)

    def enrol(
        self, name: str, sources: Sequence[AudioSource], *, rate: int | None = None, channel: Channel = "mix"
    ) -> TargetVoice:
        """The voice of one person by one or more recordings; see :func:`speakerkit.extraction.enrolment.enrol`.

        Recordings are compared by the threshold of the embedding model, or that of presence of a model with a speaker
        encoder of its own.
        """
        bundle, threshold = self.runner.bundle, self.rule.threshold
        if bundle.config.voices == "embedding":
            known = bundle.voice().threshold()
            threshold = known[0] if known else None
        return enrol(self.runner, name, sources, rate=rate, channel=channel, threshold=threshold)

    def extract(
        self,
        source: AudioSource,
        voices: Sequence[TargetVoice],
        *,
        rate: int | None = None,
        channel: Channel = "mix",
        complete: bool = False,
        scratch: str | Path | None = None,
    ) -> list[ExtractedVoice]:
        """The voice of each target, all in one pass over the mixture.

        Args:
            source: path, bytes, binary file object, or array with its ``rate`` in Hz.
            channel: "mix", or the number of a channel from 0.
            complete: the targets are all that is heard in the mixture: they are told from each other, and together are
                the mixture.
            scratch: folder for what does not fit into memory; the system's for temporary files unless given.

        Raises:
            AudioError: as :func:`speakerkit.audio.load_audio`.
            BundleError: the model fails, or cannot use that voices are complete.
            DataError: no voices, or complete ones that are less than two.
        """
        if not voices:
            raise DataError("extract", "is told no voices", "enrol one")
        self._check_complete(len(voices) if complete else None)
        blocks = read_blocks(source, rate=rate, channel=channel)
        first = next(blocks)
        lengths: list[int] = []
        heard = resample_blocks(_counted(itertools.chain([first], blocks), lengths), self.runner.rate)
        vectors = np.stack([voice.vector for voice in voices])
        columns = _Store(1 + len(voices), scratch)
        for rows in self._columns((block.samples for block in heard), vectors, complete):
            columns.append(rows)
        warnings = []
        if first.rate < self.runner.rate:
            warnings.append(f"the mixture is at {first.rate} Hz, the model at {self.runner.rate} Hz")
        size = _Size(first.rate, sum(lengths))
        return [
            self._finished(voice, _Output(columns, 1 + number), size, warnings, complete, scratch)
            for number, voice in enumerate(voices)
        ]

    def _check_complete(self, voices: int | None) -> None:
        if voices is None:
            return
        if not self.runner.can_complete:
            path = self.runner.bundle.path
            raise BundleError(path, "cannot use that voices are complete", "leave that out, or take another model")
        if voices < 2:
            raise DataError("complete", "is said of one voice, which is the mixture", "enrol all who speak")

    def _columns(
        self, mixture: Iterable[Samples], voices: npt.NDArray[np.float32], complete: bool
    ) -> Iterator[Columns]:
        """Mixture and outputs (samples, 1 + K), some at a time, together as long as the mixture."""
        size, overlap = (round(seconds * self.runner.rate) for seconds in (self.blocks.seconds, self.blocks.overlap))
        hop = size - overlap
        waiting, tail = np.zeros(0, dtype=np.float32), np.zeros((0, 1 + len(voices)), dtype=np.float32)
        for samples in mixture:
            waiting = np.concatenate([waiting, samples])
            while size and len(waiting) >= size + hop:
                rows = _faded(tail, self._block(waiting[:size], voices, complete))
                yield rows[:hop]
                tail, waiting = rows[hop:], waiting[hop:]
        if len(tail) and len(waiting) > size:  # the last two blocks of several share more than the others
            rows = _faded(tail, self._block(waiting[:size], voices, complete))
            yield rows[: len(waiting) - size]
            tail, waiting = rows[len(waiting) - size :], waiting[-size:]
        yield _faded(tail, self._block(waiting, voices, complete))

    def _block(self, mixture: Samples, voices: npt.NDArray[np.float32], complete: bool) -> Columns:
        return np.concatenate([mixture[None], self.runner.run(mixture, voices, complete)]).T

    def _finished(
        self,
        voice: TargetVoice,
        output: _Output,
        size: _Size,
        warnings: Sequence[str],
        complete: bool,
        scratch: str | Path | None,
    ) -> ExtractedVoice:
        gain = output.gain() if self.runner.bundle.config.scale_free and not complete else 1.0
        heard = loudest(output.mixed(0.0, gain), self.runner.rate)
        presence = self._presence(voice, output, gain, heard, complete)
        if not presence.target_present:
            gain *= _decibels(min(0.0, LEFT_DB - max(heard.level_db, output.level_db(gain))))
        store = _Store(1, scratch)
        pieces = (Audio(samples, self.runner.rate) for samples, _ in output.mixed(0.0, gain))
        for piece in _exactly(size.samples, (block.samples for block in resample_blocks(pieces, size.rate))):
            store.append(piece[:, None])
        waveform = store.array()[:, 0]
        told = (*voice.warnings, *warnings, *_odd(voice.name, presence, waveform))
        return ExtractedVoice(voice.name, waveform, size.rate, presence, voice.speech, told)

    def _presence(self, voice: TargetVoice, output: _Output, gain: float, heard: Loudest, known: bool) -> Presence:
        rest = loudest(output.mixed(1.0, -gain), self.runner.rate)
        similarities = [similarity_to(voice.vector, part.samples, self._embed) for part in (heard, rest)]
        raised = 20 * math.log10(abs(gain)) if gain else 0.0
        return judged(self.rule, heard.level_db - raised, *similarities, known=known)

    def _embed(self, samples: Samples) -> npt.NDArray[np.float32]:
        return self.runner.voice(load_audio(samples, self.runner.enrolment_rate, rate=self.runner.rate).samples)


@dataclass(frozen=True)
class _Size:
    """Of a mixture: Hz, samples."""

    rate: int
    samples: int


class _Store:
    """Rows (samples, width), in memory while they are few, else in a temporary file."""

    def __init__(self, width: int, folder: str | Path | None) -> None:
        self.width, self._folder = width, folder
        self._parts: list[Columns] = []
        self._file: IO[bytes] | None = None
        self._rows = 0

    def append(self, rows: Columns) -> None:
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        self._rows += len(rows)
        if self._file is None and self._rows * self.width <= IN_MEMORY:
            self._parts.append(rows)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as this store
            for part in self._parts:
                part.tofile(self._file)
            self._parts = []
        rows.tofile(self._file)

    def blocks(self) -> Iterator[Columns]:
        """All rows, some at a time."""
        if self._file is None:
            for part in self._parts:
                yield from (part[first : first + STEP] for first in range(0, len(part), STEP))
            return
        self._file.seek(0)
        for first in range(0, self._rows, STEP):
            count = min(STEP, self._rows - first)
            yield np.fromfile(self._file, np.float32, count * self.width).reshape(count, self.width)

    def array(self) -> Columns:
        """All rows at once; those in a file as a map of it."""
        if self._file is None:
            return np.concatenate(self._parts)
        self._file.flush()
        return np.memmap(self._file, np.float32, "r", shape=(self._rows, self.width))


@dataclass(frozen=True, eq=False)
class _Output:
    """One output of the model, by its column beside the mixture, which is column 0."""

    store: _Store
    column: int

    def mixed(self, mixture: float, output: float) -> Iterator[tuple[Samples, Samples]]:
        """The sum of mixture and output, each times a factor, and the mixture; some samples (n,) at a time."""
        for rows in self.store.blocks():
            yield np.float32(mixture) * rows[:, 0] + np.float32(output) * rows[:, self.column], rows[:, 0]

    def gain(self) -> float:
        """The factor that brings the output nearest to the mixture, by least squares; 1 for silence."""
        _, output, both = self._products()
        return both / output if output else 1.0

    def level_db(self, gain: float) -> float:
        """Energy of ``gain`` times the output over that of the mixture; -100 at least."""
        mixture, output, _ = self._products()
        return float(10 * np.log10(max(gain**2 * output / mixture, 1e-10))) if mixture else -100.0

    def _products(self) -> tuple[float, float, float]:
        """Energies of mixture and output, and their product."""
        sums = np.zeros(3)
        for rows in self.store.blocks():
            one, other = rows[:, 0].astype(np.float64), rows[:, self.column].astype(np.float64)
            sums += one @ one, other @ other, one @ other
        return float(sums[0]), float(sums[1]), float(sums[2])


def _counted(blocks: Iterable[Audio], lengths: list[int]) -> Iterator[Audio]:
    for block in blocks:
        lengths.append(len(block.samples))
        yield block


def _faded(tail: Columns, rows: Columns) -> Columns:
    """Rows (n, width) whose first ones are faded in from the end (overlap, width) of the block before."""
    overlap = len(tail)
    if not overlap:
        return rows
    outer = overlap // 4
    ramp = np.clip((np.arange(overlap) + 0.5 - outer) / (overlap - 2 * outer), 0, 1)[:, None]  # (overlap, 1)
    joined = tail + ramp.astype(np.float32) * (rows[:overlap] - tail)
    return np.concatenate([joined, rows[overlap:]])


def _exactly(total: int, pieces: Iterable[Samples]) -> Iterator[Samples]:
    """Pieces that together have ``total`` samples: resampling there and back may end one sample early or late."""
    left = total
    for piece in pieces:
        yield piece[:left]
        left -= min(left, len(piece))
    yield np.zeros(left, dtype=np.float32)


def _decibels(level: float) -> float:
    """The factor of amplitudes that a level in dB is."""
    return float(10 ** (level / 20))


def _odd(name: str, presence: Presence, waveform: Samples) -> list[str]:
    """What looks wrong with an output."""
    lines = []
    if not presence.target_present:
        lines.append(f"{name}: is not heard in the mixture; the output is {-LEFT_DB:g} dB under it")
    if presence.likely_swap:
        lines.append(f"{name}: what remains of the mixture is more like the enrolment than the output is (likely swap)")
    peak = max((float(np.abs(waveform[i : i + STEP]).max()) for i in range(0, len(waveform), STEP)), default=0.0)
    if peak > 1:
        fault = f"is louder than full scale (peak {peak:.2f})"
        lines.append(f"{name}: the output {fault}, which 32-bit float files can hold")
    return lines


def open_extractor(
    model: str | Path | ExtractionBundle | None = None,
    *,
    device: str = "auto",
    threads: int = 0,
    blocks: BlockSettings | None = None,
) -> VoiceExtractor:
    """A model's folder, ready for use; ``None`` is what ``SPEAKERKIT_EXTRACTOR`` names.

    Raises:
        ConfigError: no model, or ``device="cuda"`` where it cannot be used.
        BundleError: as :func:`speakerkit.extraction.bundle.read_extractor` and :class:`ExtractionRunner`.
    """
    chosen = model or os.environ.get(MODEL_VARIABLE)
    if not chosen:
        raise ConfigError("model", "is not given", f"name an extraction model, or set {MODEL_VARIABLE}")
    bundle = chosen if isinstance(chosen, ExtractionBundle) else read_extractor(chosen)
    return VoiceExtractor(ExtractionRunner(bundle, device, threads), blocks)


Enrolments = AudioSource | TargetVoice | Sequence[AudioSource]
Model = str | Path | ExtractionBundle | VoiceExtractor | None


def extract(
    source: AudioSource,
    enrol: Enrolments,
    model: Model = None,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    blocks: BlockSettings | None = None,
    device: str = "auto",
    threads: int = 0,
    scratch: str | Path | None = None,
) -> ExtractedVoice:
    """One voice out of a mixture, in one call; :class:`VoiceExtractor` is for several voices, or many mixtures.

    Args:
        source: path, bytes, binary file object, or array with its ``rate`` in Hz.
        enrol: a recording of the target alone, or several in a list, or a voice that is enrolled.
        model: an extraction model's folder, or one that is open; ``None`` is what ``SPEAKERKIT_EXTRACTOR`` names.
        rate: Hz of all that are arrays.
        channel: "mix", or the number of a channel from 0, of the mixture.
        blocks: how long mixtures are cut, where the model is not open yet.
        device: of the model, and ``threads``, as for :class:`speakerkit.extraction.runner.ExtractionRunner`.
        scratch: folder for what does not fit into memory.

    Raises:
        SpeakerKitError: as :class:`VoiceExtractor`; no model.
    """
    if not isinstance(model, VoiceExtractor):
        model = open_extractor(model, device=device, threads=threads, blocks=blocks)
    voice = enrol if isinstance(enrol, TargetVoice) else model.enrol("target", _listed(enrol), rate=rate)
    own_rate = rate if isinstance(source, np.ndarray) else None
    return model.extract(source, [voice], rate=own_rate, channel=channel, scratch=scratch)[0]


def _listed(sources: AudioSource | Sequence[AudioSource]) -> Sequence[AudioSource]:
    return sources if isinstance(sources, (list, tuple)) else [sources]  # type: ignore[list-item]
