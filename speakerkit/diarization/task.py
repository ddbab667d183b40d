"""The training of TS-VAD and EEND-EDA, on conversations mixed on the fly or on chunks of real recordings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.audio import audio_info, load_audio
from speakerkit.bundle import Bundle, read_bundle
from speakerkit.config import to_dict
from speakerkit.data.ark import Embeddings, read_embeddings
from speakerkit.data.lists import read_scp
from speakerkit.data.loading import load_batches
from speakerkit.data.sampling import PositionBatches
from speakerkit.data.sources import read_sources
from speakerkit.data.stores import open_store
from speakerkit.diarization.activity import Activity, Frames, activity
from speakerkit.diarization.bundle import DiarizationModel, DiarizationModelConfig, load
from speakerkit.diarization.config import ConversationData, EENDConfig, TSVADConfig
from speakerkit.diarization.eend import EEND, existence_loss, permutation_free_loss
from speakerkit.diarization.formats import read_turns
from speakerkit.diarization.neural import speaker_voices
from speakerkit.diarization.simulation import (
    VOXCONVERSE,
    Conversation,
    Conversations,
    ConversationSettings,
    adjusted,
    measure_statistics,
)
from speakerkit.diarization.tsvad import TSVAD
from speakerkit.diarization.turns import Diarization, Turn
from speakerkit.embedding.embedder import Embedder
from speakerkit.embedding.model import load_tensors, open_backbone
from speakerkit.errors import BundleError, ConfigError, DataError
from speakerkit.features import FrontEnd
from speakerkit.zoo.store import open_name

Batch = dict[str, Any]
Voices = npt.NDArray[np.float32]

VALID_SEED = 0  # of validation conversations, whatever the run's seed
SLOTS = 1  # stream of chance of a chunk, beside that of its conversation


class Recordings:
    """Parts of real recordings, each a function of the seed and its number; as :class:`Conversations` gives mixed ones.

    Args:
        folder: Kaldi directory with ``wav.scp`` and ``rttm``.
        seconds: of a part.

    Raises:
        DataError: recordings without turns, or missing files.
    """

    def __init__(self, folder: str | Path, sample_rate: int, seconds: float, seed: int) -> None:
        folder = Path(folder)
        self.paths, self.turns = read_scp(folder / "wav.scp"), read_turns(folder / "rttm", "rttm")
        self.sample_rate, self.seconds, self.seed = sample_rate, seconds, seed
        self.keys = sorted(self.paths)
        missing = [key for key in self.keys if key not in self.turns]
        if missing:
            raise DataError(folder / "rttm", f"has no turns of {missing[0]!r} ({len(missing)} recordings)", "add them")
        absent = [path for path in self.paths.values() if not Path(path).is_file()]
        if absent:
            raise DataError(
                folder / "wav.scp", f"names {len(absent)} files that are not there, {absent[0]} first", "check them"
            )

    def __getitem__(self, index: int) -> Conversation:
        """Part ``index``; a speaker is called by the recording's name and theirs."""
        rng = np.random.default_rng([self.seed, index])
        key = self.keys[rng.integers(len(self.keys))]
        start = rng.uniform(0, max(0.0, audio_info(self.paths[key]).seconds - self.seconds))
        audio = load_audio(self.paths[key], self.sample_rate, start=start, duration=self.seconds)
        wanted = round(self.seconds * self.sample_rate)
        samples = np.pad(audio.samples[:wanted], (0, max(0, wanted - len(audio.samples))))
        turns = tuple(
            Turn(max(0.0, turn.start - start), min(self.seconds, turn.end - start), voice_name(key, turn.speaker))
            for turn in self.turns[key].turns
            if turn.end > start and turn.start < start + self.seconds
        )
        return Conversation(samples, self.sample_rate, Diarization(f"{key}@{start:.2f}", turns, self.seconds))


def voice_name(recording: str, speaker: str) -> str:
    """How a speaker of a real recording is called among all."""
    return f"{recording}/{speaker}"


@dataclass(frozen=True)
class Chunk:
    """One training example: its sound and the turns in it, in seconds from its start."""

    key: str
    samples: npt.NDArray[np.float32]
    turns: tuple[Turn, ...]
    rng: np.random.Generator


class Chunks:
    """Position to chunk: position p is part p modulo ``chunks`` of conversation p // ``chunks``."""

    def __init__(self, source: Conversations | Recordings, data: ConversationData, rate: int, seed: int) -> None:
        self.source, self.count, self.seed = source, data.chunks, seed
        self.seconds, self.size = data.chunk_seconds, round(data.chunk_seconds * rate)
        self._held: tuple[int, Conversation] | None = None

    def __getitem__(self, position: int) -> Chunk:
        number, part = divmod(position, self.count)
        if self._held is None or self._held[0] != number:
            self._held = number, self.source[number]
        conversation = self._held[1]
        start = part * self.seconds
        turns = tuple(
            replace(turn, start=max(0.0, turn.start - start), end=min(self.seconds, turn.end - start))
            for turn in conversation.diarization.turns
            if turn.start < start + self.seconds and turn.end > start
        )
        samples = conversation.samples[part * self.size : (part + 1) * self.size]
        rng = np.random.default_rng([self.seed, position, SLOTS])
        return Chunk(f"{conversation.diarization.recording}+{start:g}", samples, turns, rng)


class DiarizationTask(ABC):
    """What both trainings share: where conversations come from, and the position in them.

    Implements :class:`speakerkit.training.task.Task`. Labels are for the frames of the model, which is built first.

    Raises:
        DataError: lists that are missing or contradict themselves.
        ConfigError: settings that go with no conversation.
    """

    frames: Frames
    frame_count: int  # in a chunk

    def __init__(self, config: TSVADConfig | EENDConfig, frontend: FrontEnd) -> None:
        self.data, self.seed, self.frontend = config.data, config.seed, frontend
        self.train = self._chunks(config.data.train, config.seed)
        self.valid = self._chunks(config.data.valid, VALID_SEED) if config.data.valid else None
        self.position = 0

    def _chunks(self, path: str, seed: int) -> Chunks:
        data, rate = self.data, self.frontend.sample_rate
        seconds = data.chunk_seconds * data.chunks
        if (Path(path) / "rttm").is_file():
            return Chunks(Recordings(path, rate, seconds, seed), data, rate, seed)
        measured = VOXCONVERSE
        if data.statistics:
            measured = measure_statistics(read_turns(data.statistics, "rttm").values())
        settings = ConversationSettings(
            sample_rate=rate,
            seconds=seconds,
            speakers=data.speakers,
            statistics=adjusted(measured, data.turn_seconds, data.overlap_share),
            noise_share=data.noise_share,
            snr=data.snr,
            reverb_share=data.reverb_share,
        )
        noise, rir = (open_store(store) if store else None for store in (data.noise, data.rir))
        return Chunks(Conversations(read_sources(path), settings, seed, noise, rir), data, rate, seed)

    def build_model(self) -> nn.Module:
        """The network, from ``init`` where one is named."""
        network = self._network()
        self.frames = network.frames
        training = network.training
        with torch.no_grad():
            self.frame_count = self._logits(network.eval(), torch.zeros(1, self.train.size)).shape[1]
        return network.train(training)

    def _initialised(self, network: nn.Module, init: str | None, kind: str) -> None:
        if init is None:
            return
        model: DiarizationModel = load(init, "cpu")
        if model.config.task != kind:
            raise BundleError(init, f"is a model of task {model.config.task!r}", f"give one of task {kind}")
        load_tensors(network, model.network.state_dict(), init)

    @abstractmethod
    def _network(self) -> TSVAD | EEND:
        """The network with the weights that training starts from."""

    @abstractmethod
    def _logits(self, network: Any, samples: Tensor) -> Tensor:
        """(B, T, outputs) of sound alone."""

    def train_batches(self, rank: int, world: int) -> Iterator[Batch]:
        """This rank's batches from the current position on."""
        size = self.data.batch_size
        positions = PositionBatches(self.position, size, rank, world)
        for batch in load_batches(self.train, positions, self.data.workers, self._stack):
            self.position += size * world
            yield batch

    def valid_batches(self) -> Iterable[Batch]:
        """The same chunks at every call."""
        if self.valid is None:
            return
        count, size = self.data.valid_chunks, self.data.batch_size
        for first in range(0, count, size):
            yield self._stack([self.valid[index] for index in range(first, min(first + size, count))])

    @abstractmethod
    def _stack(self, chunks: Sequence[Chunk]) -> Batch:
        """The batch of some chunks."""

    def _labels(self, chunk: Chunk, speakers: Sequence[str]) -> Activity:
        return activity(chunk.turns, speakers, self.frames, self.frame_count)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and named metrics."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """Nothing but what :meth:`loss` gives."""
        return {}

    def start_step(self, model: Any, step: int) -> dict[str, float]:
        """Nothing is scheduled."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's position."""
        self.position = int(state["position"])

    def fingerprint(self) -> dict[str, Any]:
        """Architecture, data settings and seed: what a checkpoint belongs to."""
        free = ("train", "valid", "noise", "rir", "statistics", "workers", "valid_chunks")
        data = {name: value for name, value in to_dict(self.data).items() if name not in free}
        return {"frontend": to_dict(self.frontend), "data": data, "seed": self.seed}


def frame_metrics(decided: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Errors of decisions (..., T, S) against labels of the same shape.

    ``frame_error`` is the share of wrong decisions; ``frame_der`` the diarization error rate of frames: the larger of
    the numbers of speakers, said and true, less those that are right, over all true ones.
    """
    decided, labels = decided.bool(), labels.bool()
    said, true, right = (each.sum(-1) for each in (decided, labels, decided & labels))
    wrong = (torch.maximum(said, true) - right).sum()
    return {"frame_error": (decided != labels).float().mean(), "frame_der": wrong / true.sum().clamp_min(1)}


class TSVADTask(DiarizationTask):
    """TS-VAD: speakers of a chunk in slots, in drawn order; other slots hold nobody, or somebody who is not there."""

    def __init__(self, config: TSVADConfig) -> None:
        self.config = config
        self.bundle = read_bundle(open_name(Path(config.embedder)))
        super().__init__(config, self.bundle.config.frontend)
        self.voices = _voices(self.train.source, self.bundle, config.embeddings)
        self.valid_voices = None if self.valid is None else _voices(self.valid.source, self.bundle, None)
        self.names = sorted(self.voices)

    def _network(self) -> TSVAD:
        network = TSVAD(open_backbone(self.bundle), self.frontend, self.bundle.config.embedding_size, self.config.model)
        network.centre.copy_(torch.from_numpy(np.concatenate(list(self.voices.values())).mean(axis=0)))
        self._initialised(network, self.config.init, "tsvad")
        return network

    def _logits(self, network: Any, samples: Tensor) -> Tensor:
        return network(samples, torch.zeros(len(samples), network.slots, self.bundle.config.embedding_size))

    def train_batches(self, rank: int, world: int) -> Iterator[Batch]:
        """This rank's batches from the current position on."""
        if world > 1 and self.config.frozen_steps:
            fault = "cannot leave the encoder out of some steps only, on several ranks"
            raise ConfigError("frozen_steps", fault, "freeze it by optim.lr_factors, then go on from init")
        return super().train_batches(rank, world)

    def _stack(self, chunks: Sequence[Chunk]) -> Batch:
        slots = [self._slots(chunk) for chunk in chunks]
        return {
            "inputs": torch.from_numpy(np.stack([chunk.samples for chunk in chunks])),
            "voices": torch.from_numpy(np.stack([voices for voices, _ in slots])),
            "labels": torch.from_numpy(np.stack([labels for _, labels in slots])).float(),
            "keys": [chunk.key for chunk in chunks],
        }

    def _slots(self, chunk: Chunk) -> tuple[Voices, Activity]:
        """Embeddings (k, D) and labels (T, k)."""
        count, rng = self.config.model.slots, chunk.rng
        voices = self.voices if self.valid_voices is None else {**self.voices, **self.valid_voices}
        present = list(dict.fromkeys(turn.speaker for turn in chunk.turns))
        filled = [present[index] for index in rng.permutation(len(present))[:count]]
        absent = [name for name in self.names if name not in present]
        chosen: list[str] = list(filled)
        for _ in range(count - len(filled)):
            chosen.append("" if not absent or rng.random() < self.config.empty_share else rng.choice(absent))
        chosen = [chosen[index] for index in rng.permutation(count)]
        size = self.bundle.config.embedding_size
        rows = [voices[name][rng.integers(len(voices[name]))] if name else np.zeros(size) for name in chosen]
        labels = np.zeros((self.frame_count, count), dtype=bool)
        columns = [column for column, name in enumerate(chosen) if name in filled]
        labels[:, columns] = self._labels(chunk, [chosen[column] for column in columns])
        return np.stack(rows).astype(np.float32), labels

    def start_step(self, model: Any, step: int) -> dict[str, float]:
        """Leave the encoder as it is in the first ``frozen_steps``."""
        model.listen(step >= self.config.frozen_steps)
        return {}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Binary cross-entropy of all slots."""
        logits = model(batch["inputs"], batch["voices"]).float()  # (batch, frames, slots)
        loss = F.binary_cross_entropy_with_logits(logits, batch["labels"])
        return loss, frame_metrics(logits > 0, batch["labels"])

    def fingerprint(self) -> dict[str, Any]:
        """As of the base class, with the embedder's weights."""
        own = {"model": to_dict(self.config.model), "empty_share": self.config.empty_share}
        return {
            **super().fingerprint(),
            **own,
            "embedder": self.bundle.digest(),
            "frozen_steps": self.config.frozen_steps,
        }


def _voices(source: Conversations | Recordings, bundle: Bundle, embeddings: str | None) -> dict[str, Voices]:
    """Name of each speaker to embeddings (n, D): of their utterances, or of what they say alone in a recording."""
    if isinstance(source, Recordings):
        embedder = Embedder(bundle)
        return {
            voice_name(key, speaker): voice[None]
            for key in source.keys
            for speaker, voice in speaker_voices(source.turns[key], source.paths[key], embedder).items()
        }
    entries = [(each.key, each.wav) for group in source.by_speaker.values() for each in group]
    if embeddings:
        made = read_embeddings(embeddings)
    else:
        done = {each.key: each for each in Embedder(bundle).embed_many(entries, short="pad")}
        failed = [each for each in done.values() if each.vector is None]
        if failed:
            raise DataError(failed[0].key, f"cannot be embedded ({failed[0].error})", "run `speakerkit data check`")
        made = Embeddings.from_rows([key for key, _ in entries], [done[key].vector for key, _ in entries])  # type: ignore[misc]
    if made.dim != bundle.config.embedding_size:
        fault = f"has embeddings of {made.dim}, {bundle.path} makes ones of {bundle.config.embedding_size}"
        raise DataError(made.source, fault, "embed with the bundle that `embedder` names")
    return {
        speaker: made.vectors[made.rows(each.key for each in group)] for speaker, group in source.by_speaker.items()
    }


class EENDTask(DiarizationTask):
    """EEND-EDA: all who speak in a chunk, in whichever order."""

    def __init__(self, config: EENDConfig) -> None:
        self.config = config
        super().__init__(config, config.frontend)

    def _network(self) -> EEND:
        network = EEND(self.frontend, self.config.model)
        self._initialised(network, self.config.init, "eend")
        return network

    def _logits(self, network: Any, samples: Tensor) -> Tensor:
        return network(samples, 1)[0]

    def _stack(self, chunks: Sequence[Chunk]) -> Batch:
        labels = []
        for chunk in chunks:
            active = self._labels(chunk, sorted({turn.speaker for turn in chunk.turns}))
            labels.append(active[:, active.any(axis=0)])
        most = max(each.shape[1] for each in labels)
        padded = [np.pad(each, ((0, 0), (0, most - each.shape[1]))) for each in labels]
        return {
            "inputs": torch.from_numpy(np.stack([chunk.samples for chunk in chunks])),
            "labels": torch.from_numpy(np.stack(padded)).float(),
            "counts": torch.tensor([each.shape[1] for each in labels]),
            "keys": [chunk.key for chunk in chunks],
        }

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over chunks of the permutation-free loss and of that of the attractors' existence, weighted.

        Metrics are of the best order, the number of speakers being known; ``count_error`` is the share of chunks in
        which the attractors tell another number.
        """
        counts = batch["counts"].tolist()
        logits, existence = (each.float() for each in model(batch["inputs"], batch["labels"].shape[2] + 1))
        losses, ordered = [], torch.full_like(batch["labels"], -1.0)
        for index, count in enumerate(counts):
            loss = self.config.existence_weight * existence_loss(existence[index], count)
            if count:
                own, order = permutation_free_loss(logits[index, :, :count], batch["labels"][index, :, :count])
                loss = loss + own
                ordered[index, :, :count] = logits[index][:, order].detach()
            losses.append(loss)
        found = (existence > 0).long().cumprod(1).sum(1)
        metrics = frame_metrics(ordered > 0, batch["labels"])
        return torch.stack(losses).mean(), {**metrics, "count_error": (found != batch["counts"]).float().mean()}

    def fingerprint(self) -> dict[str, Any]:
        """As of the base class."""
        own = {"model": to_dict(self.config.model), "existence_weight": self.config.existence_weight}
        return {**super().fingerprint(), **own}


def described(config: TSVADConfig | EENDConfig) -> DiarizationModelConfig:
    """What a bundle of the trained model says; neither data nor weights are read but the embedder's."""
    seconds, settings = config.data.chunk_seconds, to_dict(config.model)
    if isinstance(config, EENDConfig):
        return DiarizationModelConfig("eend", config.frontend, settings, seconds)
    bundle = read_bundle(open_name(Path(config.embedder)))
    told = bundle.config
    return DiarizationModelConfig(
        "tsvad", told.frontend, settings, seconds, told.model, told.embedding_size, bundle.digest()
    )
