"""The configuration of an embedding experiment, as its YAML file spells it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from speakerkit.config import NamedConfig, require
from speakerkit.errors import ConfigError
from speakerkit.features import FrontEnd

SLOWEST, FASTEST = 0.5, 2.0  # speed factors that still sound like speech


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Arguments of :class:`speakerkit.nn.fbank.SpecAugment`; ``prob`` 0 switches it off."""

    prob: float = 0.0
    time_masks: int = 1
    time_width: int = 10
    freq_masks: int = 1
    freq_width: int = 8

    def __post_init__(self) -> None:
        require(0 <= self.prob <= 1, "data.spec_augment.prob", self.prob, "it is from 0 to 1")
        for name in ("time_masks", "time_width", "freq_masks", "freq_width"):
            value = getattr(self, name)
            require(value >= 0, f"data.spec_augment.{name}", value, "it is at least 0")


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
        fits = all(SLOWEST <= speed <= FASTEST for speed in self.speeds) and len(set(self.speeds)) == len(self.speeds)
        require(fits, "data.speeds", self.speeds, f"factors are distinct and from {SLOWEST} to {FASTEST}")
        require(
            self.speeds[:1] == [1.0], "data.speeds", self.speeds, "the first factor is 1.0, the speakers as they are"
        )
        require(self.shuffle_shards >= 1, "data.shuffle_shards", self.shuffle_shards, "it is at least 1")
        repeats = self.utterances_per_speaker
        require(repeats >= 1, "data.utterances_per_speaker", repeats, "it is at least 1")
        require(self.workers >= 0, "data.workers", self.workers, "it is at least 0")
        require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "it is from 0 to 1")
        if self.sampling == "balanced" and self.batch_size % repeats:
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
        require(self.start_step >= 0, "margin.start_step", self.start_step, "it is at least 0")
        require(self.end_step >= 0, "margin.end_step", self.end_step, "it is at least 0")
        if self.start_step > self.end_step:
            raise ConfigError("margin.end_step", "is before start_step", "the margin is final from end_step on")


@dataclass(frozen=True)
class DistillationConfig:
    """Losses towards a teacher that hears the same augmented inputs, added to that of the head.

    Attributes:
        teacher: a bundle, or for its classes ``EXP/checkpoints/average.pt`` of its experiment.
        embedding: "cosine" (1 - cosine), "mse" (mean squared difference), or ``None`` for no such loss.
        embedding_weight: what that loss is multiplied by.
        label_weight: what the divergence of the class posteriors is multiplied by; 0 for none.
        temperature: T of these posteriors, softmax(logits / T).
    """

    teacher: str
    embedding: Literal["cosine", "mse"] | None = "cosine"
    embedding_weight: float = 1.0
    label_weight: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        for name in ("embedding_weight", "label_weight"):
            require(getattr(self, name) >= 0, f"distillation.{name}", getattr(self, name), "it is at least 0")
        require(self.temperature > 0, "distillation.temperature", self.temperature, "it is above 0")
        if not (self.embedding and self.embedding_weight) and not self.label_weight:
            raise ConfigError("distillation", "learns nothing from its teacher", "set embedding or label_weight")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """What an embedding experiment adds to :class:`speakerkit.training.config.RunConfig`.

    Attributes:
        model: registered backbone; its ``feat_dim`` comes from the front-end.
        init: what the training starts from: a bundle (its backbone), or a checkpoint such as
            ``checkpoints/average.pt`` (backbone and head); ``None`` for random weights.
        pretrained: published weights for the self-supervised part of the model, see
            :func:`speakerkit.embedding.ssl.load_pretrained`; not read where there is an ``init``, which brings all.
        distillation: a teacher to learn from; ``None`` for none.
        head_shards: split the classes of the head over the ranks, for more than one rank can hold.
    """

    data: DataConfig
    model: NamedConfig
    seed: int = 42
    init: str | None = None
    pretrained: str | None = None
    frontend: FrontEnd = field(default_factory=FrontEnd)
    head: NamedConfig = field(default_factory=lambda: NamedConfig("arc_margin"))
    margin: MarginConfig = field(default_factory=MarginConfig)
    distillation: DistillationConfig | None = None
    head_shards: bool = False
