"""From lists to training samples: read only what is wanted, change its speed, augment it, all seeded by position."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Samples, audio_info, is_container, load_audio
from speakerkit.data.ark import BINARY_KINDS
from speakerkit.data.augment import Chain, speed_perturb
from speakerkit.data.lists import Utterance, open_entry
from speakerkit.data.sampling import Order
from speakerkit.data.shards import ShardMember, read_member
from speakerkit.errors import AudioError, DataError, SpeakerKitError
from speakerkit.features import FrontEnd

ATTEMPTS = 10  # bad files in a row at one position before the run gives up
SPEED_STREAM = 1  # keeps the draws of speeds apart from those of pieces and augmentations
SLACK = 0.002  # seconds read beyond what is wanted, so that rounding and resampling never leave a piece short


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        input: (samples,) waveform in [-1, 1], or (frames, mels) features.
        label: class index.
        key: utterance id.
        failures: (key, reason) of files that were drawn before and could not be read.
    """

    input: npt.NDArray[np.float32]
    label: int
    key: str
    failures: tuple[tuple[str, str], ...] = ()


class Source(Protocol):
    """Where the items of a training list are read from."""

    keys: list[str]
    speakers: list[str]

    def read(self, index: int, frames: int, stretch: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """A random piece of an item: what ``frames`` frames need, times ``stretch``; the whole of a short item."""


class RawSource:
    """Utterances of a raw list: files, read at a random place, only as much as is wanted."""

    def __init__(self, utterances: list[Utterance], frontend: FrontEnd) -> None:
        self.utterances, self.frontend = utterances, frontend
        self.keys = [utterance.key for utterance in utterances]
        self.speakers = [utterance.speaker for utterance in utterances]

    def read(self, index: int, frames: int, stretch: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """(samples,) at the front-end's rate."""
        utterance = self.utterances[index]
        return read_piece(open_entry(utterance.wav), self.frontend, frames, stretch, rng, utterance.vad)


class ShardSource:
    """Members of shards, read by their position in the tar."""

    def __init__(self, members: list[ShardMember], frontend: FrontEnd) -> None:
        self.members, self.frontend = members, frontend
        self.keys = [member.key for member in members]
        self.speakers = [member.speaker for member in members]

    def read(self, index: int, frames: int, stretch: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """(samples,) at the front-end's rate."""
        member = self.members[index]
        try:
            return read_piece(read_member(member), self.frontend, frames, stretch, rng)
        except AudioError as error:
            raise AudioError(f"{member.key} in {member.shard}", error.fault, error.remedy) from None


class FeatureSource:
    """Feature matrices in Kaldi archives; speed and waveform augmentation do not apply to them."""

    def __init__(self, utterances: list[Utterance], frontend: FrontEnd) -> None:
        self.utterances, self.frontend = utterances, frontend
        self.keys = [utterance.key for utterance in utterances]
        self.speakers = [utterance.speaker for utterance in utterances]

    def read(self, index: int, frames: int, stretch: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """(frames, mels), mean-normalised where the front-end says so."""
        matrix = read_features(self.utterances[index].feat, self.frontend)
        piece = fit_length(matrix, frames, rng)
        return piece - piece.mean(axis=0) if self.frontend.mean_norm else piece


def read_features(location: str, frontend: FrontEnd) -> npt.NDArray[np.float32]:
    """A feature matrix (frames, mels) of a Kaldi archive.

    kaldiio's ``load_mat`` is not used: it unpickles an entry that is marked so, and runs ``cmd |[0:1]``.

    Args:
        location: ``x.ark:offset``.

    Raises:
        DataError: no binary Kaldi matrix there, or one of another shape or with values that are not finite.
    """
    from kaldiio import matio

    path, _, offset = location.rpartition(":")
    if not offset.isdigit():
        path, offset = location, "0"
    try:
        with open(path, "rb") as stream:
            stream.seek(int(offset))
            head = stream.read(5)
            if head[:2] != b"\0B" or head[2:] not in BINARY_KINDS:
                raise ValueError(f"it starts with {head!r}")
            stream.seek(int(offset))
            matrix = np.asarray(matio.read_matrix_or_vector(stream), dtype=np.float32)
    except (
        OSError,
        ValueError,
        RuntimeError,
        AssertionError,
        EOFError,
        OverflowError,
        MemoryError,
        struct.error,
    ) as error:
        raise DataError(location, f"holds no feature matrix ({error})", "extract the features again") from None
    if matrix.ndim != 2 or not len(matrix) or matrix.shape[1] != frontend.num_mels:
        raise DataError(
            location, f"has shape {matrix.shape}", f"(frames, {frontend.num_mels}) is what frontend.num_mels says"
        )
    if not np.isfinite(matrix).all():
        raise DataError(location, "holds NaN or infinite features", "extract the features again")
    return matrix


def read_piece(
    source: str | bytes,
    frontend: FrontEnd,
    frames: int,
    stretch: float,
    rng: np.random.Generator,
    segments: Sequence[tuple[float, float]] = (),
) -> Samples:
    """A random piece, long enough for ``frames`` frames after a change of speed; only it is decoded.

    Args:
        segments: (start, end) in seconds; the piece is cut from their concatenation, from the whole if there are none.

    Raises:
        DataError: the segments are all too short to be read.
    """
    recording, rate = _opened(source, frontend)
    if not segments:
        seconds = audio_info(source).seconds if rate is None else len(recording) / rate
        segments = ((0.0, seconds),)
    total = sum(end - start for start, end in segments)
    wanted = frontend.chunk_samples(frames) * stretch / frontend.sample_rate + SLACK
    offset = rng.uniform(0.0, total - wanted) if total > wanted else 0.0
    spans = []
    for start, end in segments:
        first, last = max(0.0, offset), min(end - start, offset + wanted)
        offset -= end - start
        if last - first > SLACK / 2 or len(segments) == 1:
            spans.append((start + first, last - first))
    return _joined(recording, rate, frontend, spans)


def read_speech(source: str | bytes, frontend: FrontEnd, segments: Sequence[tuple[float, float]] = ()) -> Samples:
    """The concatenation of all ``segments`` (start, end) in seconds; the whole recording if there are none.

    Raises:
        DataError: the segments are all too short to be read.
    """
    if not segments:
        return load_audio(source, frontend.sample_rate).samples
    spans = [(start, end - start) for start, end in segments if end - start > SLACK / 2 or len(segments) == 1]
    return _joined(*_opened(source, frontend), frontend, spans)


def _opened(source: str | bytes, frontend: FrontEnd) -> tuple[str | bytes | Samples, int | None]:
    """What spans are cut from: the source itself, or, of what decodes as a whole or not at all, samples and rate."""
    if is_container(source):
        return load_audio(source, frontend.sample_rate).samples, frontend.sample_rate
    return source, None


def _joined(
    recording: str | bytes | Samples, rate: int | None, frontend: FrontEnd, spans: list[tuple[float, float]]
) -> Samples:
    """The spans (start, duration) of a recording, one after another."""
    if not spans:
        name = recording if isinstance(recording, str) else None
        raise DataError(name, "has vad segments that are all too short to be read", "correct or drop them")
    return np.concatenate(
        [
            load_audio(recording, frontend.sample_rate, rate=rate, start=start, duration=duration).samples
            for start, duration in spans
        ]
    )


def fit_length(values: npt.NDArray[np.float32], length: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A random stretch of exactly ``length`` along the first axis; shorter input, of at least 1, is repeated."""
    if len(values) < length:
        repeats = -(-length // len(values))
        values = np.concatenate([values] * repeats)
    start = int(rng.integers(len(values) - length + 1))
    return values[start : start + length]


class TrainingDataset:
    """Position to :class:`Sample`; a map-style dataset for :class:`torch.utils.data.DataLoader`.

    Args:
        source: where items are read from.
        order: which item stands at which position.
        classes: speaker id to class index.
        speeds: speed factors; factor number i adds ``i * len(classes)`` to the label. (1.0,) for features.
        chain: waveform augmentation, or ``None``.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        classes: dict[str, int],
        frontend: FrontEnd,
        *,
        chunk_frames: int,
        speeds: tuple[float, ...],
        chain: Chain | None,
        seed: int,
    ) -> None:
        self.source, self.order, self.classes, self.frontend = source, order, classes, frontend
        self.chunk_frames, self.speeds, self.chain, self.seed = chunk_frames, speeds, chain, seed

    def __getitem__(self, position: int) -> Sample:
        """The sample at ``position``; a file that cannot be read is passed over for the next of a seeded draw."""
        failures: list[tuple[str, str]] = []
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([self.seed, position, attempt])
            index = self.order.item(position) if attempt == 0 else int(rng.integers(len(self.source.keys)))
            try:
                values, label = self._draw(index, self._speed(position, attempt), rng)
            except SpeakerKitError as error:
                failures.append((self.source.keys[index], str(error)))
                continue
            return Sample(values, label, self.source.keys[index], tuple(failures))
        raise DataError(
            None,
            f"{ATTEMPTS} files in a row cannot be read, the last: {failures[-1][1]}",
            "run `speakerkit data check`",
        )

    def _speed(self, position: int, attempt: int) -> int:
        """Which speed factor is drawn: one for the whole of a run."""
        rng = np.random.default_rng([self.seed, self.order.run(position), attempt, SPEED_STREAM])
        return int(rng.integers(len(self.speeds)))

    def _draw(self, index: int, factor: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], int]:
        speed = self.speeds[factor]
        label = self.classes[self.source.speakers[index]] + factor * len(self.classes)
        values = self.source.read(index, self.chunk_frames, speed, rng)
        if values.ndim == 2:
            return values, label
        values = speed_perturb(values, self.frontend.sample_rate, speed)
        values = fit_length(values, self.frontend.chunk_samples(self.chunk_frames), rng)
        if self.chain is not None:
            values = self.chain(values, self.frontend.sample_rate, rng)
        return values, label
