"""Configuration of extraction models and of their training. Torch-free: a bad one is found at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from speakerkit.config import NamedConfig, require
from speakerkit.errors import ConfigError
from speakerkit.extraction.mixtures import MixtureSettings

JOINT = "joint"  # embedder of a model that learns its own speaker encoder


@dataclass(frozen=True)
class MixtureData:
    """What extraction is learnt from.

    Attributes:
        train: Kaldi directory, raw list or shard list of utterances of single speakers, mixed on the fly; or a
            directory of prepared mixtures (with ``ref.scp``).
        voices: of prepared mixtures, recordings of their speakers to enrol with, as ``train`` names them; ``None``
            takes the enrolments of the directory.
        valid: either of the two, of other speakers, to watch the training by; ``None`` for none.
        noise, rir: stores for mixing on the fly.
        genders: ``spk2gender`` or ``SPEAKERS.TXT``, for ``mixing.same_gender_share``.
        mixing: what mixtures are like, and how long.
        batch_size: mixtures a step on each rank.
        valid_mixtures: in a validation; of prepared ones at most all there are.
        workers: loading processes on each rank; 0 loads in the training process.
    """

    train: str
    voices: str | None = None
    valid: str | None = None
    noise: str | None = None
    rir: str | None = None
    genders: str | None = None
    mixing: MixtureSettings = field(default_factory=lambda: MixtureSettings(sample_rate=8000))
    batch_size: int = 8
    valid_mixtures: int = 100
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "valid_mixtures"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "it is at least 1")
        require(self.workers >= 0, "data.workers", self.workers, "it is at least 0")


@dataclass(frozen=True)
class LossSettings:
    """What an extraction model is trained by.

    Attributes:
        kind: "si_sdr" and "sdr" of the waveform; "magnitude", the squared error of the model's magnitudes; "scenario",
            USED's scenario-aware loss.
        scale_weights: of a multi-scale model's estimates, for all kinds but "magnitude".
        power: of magnitudes, for "magnitude".
        ceiling: dB from which on a better estimate gains nothing, for "si_sdr" and "sdr"; else crops in which the
            target speaks alone would count most.
        absent: weight of what is left of the mixture where the target is silent, for "si_sdr" and "sdr".
        separation: weight of the same loss, by PIT, of what a model separates before it hears a voice.
        speaker: weight of the cross-entropy of training speakers, told by the voices of a model with an encoder of its
            own or of a tuned one; 0 for none.
    """

    kind: Literal["si_sdr", "sdr", "magnitude", "scenario"] = "si_sdr"
    scale_weights: tuple[float, ...] = (0.8, 0.1, 0.1)
    power: float = 0.3
    ceiling: float = 30.0
    absent: float = 0.1
    separation: float = 0.5
    speaker: float = 0.5

    def __post_init__(self) -> None:
        require(bool(self.scale_weights), "loss.scale_weights", self.scale_weights, "give one for each scale")
        require(0 < self.power <= 1, "loss.power", self.power, "it is above 0 and at most 1")
        for name in ("absent", "separation", "speaker"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "it is at least 0")


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """What an experiment with an extraction model adds to :class:`speakerkit.training.config.RunConfig`.

    Attributes:
        model: its name and arguments; ``voice_size`` is that of the embedder.
        embedder: embedding model whose embeddings are the voices; "joint" where the model has an encoder of its own;
            ``None`` for blind separation.
        tune: whether the embedder is trained on, by what it is good for here.
        init: folder of a trained extraction model to start from.
        complete_share: of the mixtures, those of which the model is told that its voices are all that is heard.
    """

    data: MixtureData
    model: NamedConfig
    embedder: str | None = None
    tune: bool = False
    loss: LossSettings = field(default_factory=LossSettings)
    init: str | None = None
    complete_share: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        if self.tune and self.embedder in (None, JOINT):
            raise ConfigError("tune", "is on without an embedding model", "name one as embedder")
        require(0 <= self.complete_share <= 1, "complete_share", self.complete_share, "it is from 0 to 1")
        mixing = self.data.mixing
        if self.loss.kind == "scenario" and (mixing.targets or mixing.absent_share):
            fault = "needs to know of all voices when they speak"
            raise ConfigError("loss.kind", f"scenario {fault}", "set data.mixing.targets and absent_share to 0")
