"""Configurations of the models that diarize, and of their training. Torch-free: a bad one is found at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from speakerkit.config import require
from speakerkit.errors import ConfigError
from speakerkit.features import FrontEnd

MOST_SPEAKERS = 64


@dataclass(frozen=True)
class TSVADSettings:
    """Architecture of :class:`speakerkit.diarization.tsvad.TSVAD`; the defaults are those of USED's baseline.

    Attributes:
        size: d, half of it frame features and half speaker embedding.
        heads: of the attention.
        speaker_layers: transformer layers that see one speaker each.
        joint_layers: transformer layers that see all.
        feed_forward: width within the transformer layers; the paper does not give it.
        kernel: frames of the convolution between the two; the paper does not give it.
        slots: k, speakers at once.
        average: frames of the encoder that become one; 4 gives 40 ms with most encoders, on a quarter of the cost.
        dropout: in the transformer layers; the paper does not give it.
        window: seconds around a frame whose embedding stands for it, by the encoder's own pooling, in the space of the
            speakers' embeddings; 0 takes the encoder's features of the frame, projected. The paper can be read either
            way. Without this, little training teaches nothing.
        fusion: "concat" puts the frame's features beside the speaker's embedding, as in the paper; "product" puts them
            beside their product with it, which shows a match at once.
        positions: what the positional encoding is multiplied by.
    """

    size: int = 384
    heads: int = 4
    speaker_layers: int = 2
    joint_layers: int = 2
    feed_forward: int = 1536
    kernel: int = 5
    slots: int = 3
    average: int = 1
    dropout: float = 0.1
    window: float = 0.0
    fusion: Literal["concat", "product"] = "concat"
    positions: float = 1.0

    def __post_init__(self) -> None:
        for name in ("size", "heads", "speaker_layers", "joint_layers", "feed_forward", "kernel", "slots", "average"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "it is at least 1")
        require(self.kernel % 2 == 1, "model.kernel", self.kernel, "it is odd")
        require(0 <= self.window <= 30, "model.window", self.window, "it is from 0 to 30 s")
        require(self.positions >= 0, "model.positions", self.positions, "it is at least 0")
        require(self.slots <= MOST_SPEAKERS, "model.slots", self.slots, f"it is at most {MOST_SPEAKERS}")
        _require_attention(self.size, self.heads, self.dropout)


@dataclass(frozen=True)
class EENDSettings:
    """Architecture of :class:`speakerkit.diarization.eend.EEND`; the defaults are those of EEND-EDA.

    Attributes:
        size: D, of frame embeddings and attractors.
        heads, layers, feed_forward: of the transformer encoder.
        context: frames on each side that are stacked.
        subsampling: every how many frames a stack is taken.
        dropout: in the transformer layers.
    """

    size: int = 256
    heads: int = 4
    layers: int = 4
    feed_forward: int = 2048
    context: int = 7
    subsampling: int = 10
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("size", "heads", "layers", "feed_forward", "subsampling"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "it is at least 1")
        require(self.context >= 0, "model.context", self.context, "it is at least 0")
        _require_attention(self.size, self.heads, self.dropout)


def _require_attention(size: int, heads: int, dropout: float) -> None:
    require(size % (2 * heads) == 0, "model.size", size, f"it is a multiple of 2 x {heads} heads")
    require(0 <= dropout < 1, "model.dropout", dropout, "it is from 0 to below 1")


@dataclass(frozen=True)
class ConversationData:
    """What diarization is learnt from: conversations mixed on the fly, or real recordings.

    Attributes:
        train: Kaldi directory (or raw list) of utterances of single speakers, to be mixed; or a Kaldi directory with
            ``rttm`` beside ``wav.scp``, of recordings to cut chunks out of, as for adaptation.
        valid: the same, of other speakers, to watch the training by; ``None`` for none.
        noise, rir: stores for mixed conversations.
        batch_size: chunks a step on each rank.
        chunk_seconds: length of a chunk.
        chunks: cut one after another from one conversation, which is as long as they are.
        speakers: (fewest, most) in a mixed conversation.
        statistics: RTTM or folder of them whose turn-taking is followed; ``None`` for VoxConverse's.
        turn_seconds: mean length of turns, instead of the measured one.
        overlap_share: of the speaker changes those in overlap, instead of the measured share.
        noise_share, snr, reverb_share: see :class:`speakerkit.diarization.simulation.ConversationSettings`.
        valid_chunks: in a validation.
        workers: loading processes on each rank; 0 loads in the training process.
    """

    train: str
    valid: str | None = None
    noise: str | None = None
    rir: str | None = None
    batch_size: int = 16
    chunk_seconds: float = 4.0
    chunks: int = 4
    speakers: tuple[int, int] = (2, 4)
    statistics: str | None = None
    turn_seconds: float | None = None
    overlap_share: float | None = None
    noise_share: float = 0.8
    snr: tuple[float, float] = (5.0, 25.0)
    reverb_share: float = 0.5
    valid_chunks: int = 64
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunks", "valid_chunks"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "it is at least 1")
        require(0 < self.chunk_seconds <= 3600, "data.chunk_seconds", self.chunk_seconds, "above 0, up to an hour")
        require(self.workers >= 0, "data.workers", self.workers, "it is at least 0")


@dataclass(frozen=True, kw_only=True)
class TSVADConfig:
    """What an experiment with TS-VAD adds to :class:`speakerkit.training.config.RunConfig`.

    Attributes:
        embedder: bundle whose embeddings are the speakers', in training and in use; its backbone, which has to give
            frame features, is where the speech encoder starts from.
        embeddings: of the utterances to mix, made by ``embedder`` (``speakerkit embed --scp``), by utterance id;
            ``None`` makes them at the start, which pays for small corpora only.
        empty_share: p_em, how often a slot without speaker is given no embedding instead of that of somebody else.
        frozen_steps: steps at the start in which the speech encoder stays as it is.
        init: bundle of a trained TS-VAD to start from; ``None`` for new layers after the encoder.
    """

    data: ConversationData
    embedder: str
    embeddings: str | None = None
    model: TSVADSettings = field(default_factory=TSVADSettings)
    empty_share: float = 0.3
    frozen_steps: int = 0
    init: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        require(0 <= self.empty_share <= 1, "empty_share", self.empty_share, "it is from 0 to 1")
        require(self.frozen_steps >= 0, "frozen_steps", self.frozen_steps, "it is at least 0")


@dataclass(frozen=True, kw_only=True)
class EENDConfig:
    """What an experiment with EEND-EDA adds to :class:`speakerkit.training.config.RunConfig`.

    Attributes:
        existence_weight: alpha, of the loss of whether an attractor stands for a speaker.
        init: bundle of a trained EEND to start from.
    """

    data: ConversationData
    model: EENDSettings = field(default_factory=EENDSettings)
    frontend: FrontEnd = field(default_factory=lambda: FrontEnd(sample_rate=8000, num_mels=23))
    existence_weight: float = 1.0
    init: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        require(self.existence_weight > 0, "existence_weight", self.existence_weight, "it is above 0")
        if self.frontend.kind != "fbank":
            raise ConfigError("frontend.kind", f"is {self.frontend.kind!r}", "EEND hears fbank features")
