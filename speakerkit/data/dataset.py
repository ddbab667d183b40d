"""From lists to training samples: read only what is wanted, change its speed, augment it, all seeded by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Samples, audio_info, is_container, load_audio, resample
from speakerkit.data.augment import Chain
from speakerkit.data.lists import Utterance, open_entry
from speakerkit.data.sampling import Order
from speakerkit.data.shards import ShardMember, read_member
from speakerkit.errors import AudioError, DataError, SpeakerKitError
from speakerkit.features import FrontEnd

ATTEMPTS = 10  # bad files in a row at one position before the run gives up


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
        source = open_entry(utterance.wav)
        if utterance.vad:
            pieces = [
                load_audio(source, self.frontend.sample_rate, start=start, duration=end - start).samples
                for start, end in utterance.vad
            ]
            return np.concatenate(pieces)
        return read_piece(source, self.frontend, frames, stretch, rng)


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
        import kaldiio

        utterance = self.utterances[index]
        try:
            matrix = np.asarray(kaldiio.load_mat(utterance.feat), dtype=np.float32)
        except (OSError, ValueError, RuntimeError, AssertionError, EOFError) as error:
            raise DataError(utterance.feat, f"holds no feature matrix ({error!r})", "write it again") from None
        if matrix.ndim != 2 or matrix.shape[1] != self.frontend.num_mels:
            raise DataError(
                utterance.feat,
                f"has shape {matrix.shape}",
                f"(frames, {self.frontend.num_mels}) is what frontend.num_mels says",
            )
        if not np.isfinite(matrix).all():
            raise DataError(utterance.feat, "holds NaN or infinite features", "write it again")
        piece = fit_length(matrix, frames, rng)
        return piece - piece.mean(axis=0) if self.frontend.mean_norm else piece


def read_piece(
    source: str | bytes, frontend: FrontEnd, frames: int, stretch: float, rng: np.random.Generator
) -> Samples:
    """Decode only a random piece of ``source``, long enough for ``frames`` frames after a change of speed."""
    if is_container(source):
        return load_audio(source, frontend.sample_rate).samples
    info = audio_info(source)
    wanted = (frontend.chunk_samples(frames) + 1) * stretch / frontend.sample_rate + 0.001  # seconds
    if info.seconds <= wanted:
        return load_audio(source, frontend.sample_rate).samples
    start = rng.uniform(0.0, info.seconds - wanted)
    return load_audio(source, frontend.sample_rate, start=start, duration=wanted).samples


def fit_length(values: npt.NDArray[np.float32], length: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A random stretch of exactly ``length`` along the first axis; shorter input is repeated."""
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
                values, label = self._draw(index, rng)
            except SpeakerKitError as error:
                failures.append((self.source.keys[index], str(error)))
                continue
            return Sample(values, label, self.source.keys[index], tuple(failures))
        raise DataError(
            None,
            f"{ATTEMPTS} files in a row cannot be read, the last: {failures[-1][1]}",
            "run `speakerkit data check`",
        )

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], int]:
        factor = int(rng.integers(len(self.speeds)))
        speed = self.speeds[factor]
        label = self.classes[self.source.speakers[index]] + factor * len(self.classes)
        values = self.source.read(index, self.chunk_frames, speed, rng)
        if values.ndim == 2:
            return values, label
        if speed != 1.0:
            values = resample(values, speed * self.frontend.sample_rate, self.frontend.sample_rate)
        values = fit_length(values, self.frontend.chunk_samples(self.chunk_frames), rng)
        if self.chain is not None:
            values = self.chain(values, self.frontend.sample_rate, rng)
        return values, label
