"""The configuration of an embedding experiment, as its YAML file spells it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from speakerkit.config import NamedConfig
from speakerkit.errors import ConfigError
from speakerkit.features import FrontEnd


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Arguments of :class:`speakerkit.nn.fbank.SpecAugment`; ``prob`` 0 switches it off."""

    prob: float = 0.0
    time_masks: int = 1
    time_width: int = 10
    freq_masks: int = 1
    freq_width: int = 8


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes batches.

    Attributes:
        train: ``raw.list``, ``shard.list`` or ``feat.list``.
        format: which of the three ``train`` is.
        valid: held-out utterances of training speakers (loss and accuracy), a raw list, or a feat list where ``train``
            is one; ``None`` for none.
        valid_trials: trials over utterances of ``valid`` and of a raw or feat ``train`` (EER); ``None`` for no EER.
        noise, rir: stores (LMDB, folder or Kaldi directory) for augmentation.
        batch_size: chunks a step on each rank.
        chunk_frames: frames of a training chunk.
        speeds: speed factors, 1.0 first; each of the others makes a new speaker of every speaker.
        augment: chain of augmentations, each ``{name, prob, ...}`` (``speakerkit data augmentations`` lists them).
        sampling: "shuffle", or "balanced" (P speakers x ``utterances_per_speaker``).
        shuffle_shards: shards whose utterances are shuffled together.
        workers: loading processes on each rank; 0 loads in the training process.
        max_bad_share: share of unreadable draws above which the run stops.
        allow_pipes: run commands and fetch URLs that lists name.
        shard_cache: folder that keeps fetched shards.
    """

    train: str
    format: Literal["raw", "shard", "feat"] = "raw"
    valid: str | None = None
    valid_trials: str | None = None
    noise: str | None = None
    rir: str | None = None
    batch_size: int = 64
    chunk_frames: int = 200
    speeds: list[float] = field(default_factory=lambda: [1.0, 0.9, 1.1])
    augment: list[dict[str, Any]] = field(default_factory=list)
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    utterances_per_speaker: int = 2
    shuffle_shards: int = 16
    workers: int = 1
    max_bad_share: float = 0.01
    allow_pipes: bool = False
    shard_cache: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.chunk_frames < 1:
            raise ConfigError("data", "batch_size and chunk_frames must be positive", "set them to at least 1")
        if not self.speeds or min(self.speeds) <= 0 or len(set(self.speeds)) < len(self.speeds):
            raise ConfigError("data.speeds", f"is {self.speeds}", "give distinct positive factors, such as [1.0, 0.9]")
        if self.speeds[0] != 1.0:
            raise ConfigError("data.speeds", f"is {self.speeds}", "the first factor is 1.0, the speakers as they are")
        if min(self.shuffle_shards, self.utterances_per_speaker) < 1 or min(self.workers, self.max_bad_share) < 0:
            raise ConfigError(
                "data",
                "has a negative count",
                "shuffle_shards and utterances_per_speaker start at 1, workers and max_bad_share at 0",
            )
        if self.sampling == "balanced" and self.batch_size % self.utterances_per_speaker:
            raise ConfigError(
                "data.batch_size", "is no multiple of utterances_per_speaker", "P speakers x K utterances make a batch"
            )


@dataclass(frozen=True)
class MarginConfig:
    """Margin of the head over the steps: ``initial`` up to ``start_step``, ``final`` from ``end_step`` on."""

    initial: float = 0.0
    final: float = 0.2
    start_step: int = 0
    end_step: int = 0
    shape: Literal["exponential", "linear"] = "exponential"

    def __post_init__(self) -> None:
        if not (0 <= self.initial < math.pi / 2 and 0 <= self.final < math.pi / 2):
            raise ConfigError(
                "margin", f"goes from {self.initial} to {self.final}", "margins are from 0 to below pi / 2"
            )
        if self.start_step > max(0, self.end_step):
            raise ConfigError("margin.end_step", "is before start_step", "the margin is final from end_step on")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """What an embedding experiment adds to :class:`speakerkit.training.config.RunConfig`.

    Attributes:
        model: registered backbone; its ``feat_dim`` comes from the front-end.
        init: what the training starts from: a bundle (its backbone), or a checkpoint such as
            ``checkpoints/average.pt`` (backbone and head); ``None`` for random weights.
    """

    data: DataConfig
    model: NamedConfig
    seed: int = 42
    init: str | None = None
    frontend: FrontEnd = field(default_factory=FrontEnd)
    head: NamedConfig = field(default_factory=lambda: NamedConfig("arc_margin"))
    margin: MarginConfig = field(default_factory=MarginConfig)
