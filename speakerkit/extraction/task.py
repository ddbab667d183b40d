"""The training of extraction models, on mixtures drawn on the fly or prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.audio import Samples
from speakerkit.bundle import Bundle, read_bundle
from speakerkit.config import to_dict
from speakerkit.data.loading import load_batches
from speakerkit.data.mixing.lists import ListedMixture
from speakerkit.data.sampling import PositionBatches
from speakerkit.data.sources import read_genders, read_voices
from speakerkit.data.stores import open_store
from speakerkit.embedding.embedder import Embedder
from speakerkit.embedding.model import load_tensors, open_backbone
from speakerkit.errors import ConfigError
from speakerkit.extraction.bundle import VOICE, ExtractionBundle, ExtractorConfig, read_extractor
from speakerkit.extraction.config import JOINT, ExtractionConfig
from speakerkit.extraction.losses import (
    ScenarioWeights,
    leakage,
    magnitude_mse,
    multi_scale,
    pairwise,
    permutation_invariant,
    scenario_loss,
    sdr,
    si_sdr,
)
from speakerkit.extraction.magnitude import MagnitudeExtractor
from speakerkit.extraction.mixtures import Mixture, Mixtures, PreparedMixtures
from speakerkit.extraction.model import Conditioned, ExtractionNet, VoiceEncoder, build_conditioned
from speakerkit.extraction.registry import Extracted, Extractor
from speakerkit.zoo.store import open_name

Batch = dict[str, Any]

VALID_SEED = 0  # of validation mixtures, whatever the run's seed
NOBODY = -1  # class of a speaker who is not trained on
ALONE = 30.0  # dB of SI-SDR, from which on there is hardly anything in a mixture but its target
CENTRED_ON = 1000  # enrolments at most, whose embeddings' mean is taken from every embedding


class ExtractionTask:
    """Voices out of mixtures, each by an enrolment; or, blindly, in whichever order.

    Implements :class:`speakerkit.training.task.Task`.

    Raises:
        DataError: lists that are missing or contradict themselves.
        ConfigError: a model, embedder and data that do not go together.
    """

    def __init__(self, config: ExtractionConfig) -> None:
        self.config, self.data = config, config.data
        self.bundle: Bundle | None = None
        self.settings = config.data.mixing
        if config.embedder not in (None, JOINT):
            self.bundle = read_bundle(open_name(Path(str(config.embedder))))
            self.settings = replace(self.settings, enrolment_rate=self.bundle.config.frontend.sample_rate)
        self.train = self._mixtures(config.data.train, config.seed, config.data.voices)
        self.valid = self._mixtures(config.data.valid, VALID_SEED, None) if config.data.valid else None
        self._check_targets()
        learns_speakers = config.embedder is not None and (config.embedder == JOINT or config.tune)
        self.classes = self.train.speakers if learns_speakers and config.loss.speaker else []
        self._numbers = {speaker: number for number, speaker in enumerate(self.classes)}
        self.position = 0

    def _mixtures(self, path: str, seed: int, voices: str | None) -> Mixtures | PreparedMixtures:
        data = self.data
        noise, rir = (open_store(store) if store else None for store in (data.noise, data.rir))
        if (Path(path) / "ref.scp").is_file():
            recordings = read_voices(voices) if voices else None
            return PreparedMixtures(path, self.settings, seed, recordings, noise, rir)
        genders = read_genders(data.genders) if data.genders else None
        settings = self.settings
        if seed == VALID_SEED and path == data.valid:  # which is no easier at first
            settings = replace(settings, curriculum=0, first_sir=None, first_same_gender_share=None)
        return Mixtures(read_voices(path), settings, seed, noise, rir, genders)

    def _check_targets(self) -> None:
        """Refuse mixtures whose numbers of targets do not go into one batch."""
        mixing = self.settings
        for name, mixtures in (("train", self.train), ("valid", self.valid)):
            counts = {mixing.targets or count for count in mixing.speakers}
            remedy = "set data.mixing.targets, of whom each mixture then has as many"
            if isinstance(mixtures, PreparedMixtures):
                counts = {mixing.targets or len(each.targets) for each in mixtures.listed}
                remedy += ", or prepare mixtures of equally many"
            if mixtures is not None and len(counts) > 1:
                fault = f"has mixtures of {' and '.join(map(str, sorted(counts)))} targets"
                raise ConfigError(f"data.{name}", fault, remedy)

    def build_model(self) -> nn.Module:
        """The network, from ``init`` where one is named."""
        config = self.config
        size = None if self.bundle is None else self.bundle.config.embedding_size
        conditioned = build_conditioned(config.model, self.settings.sample_rate, size)
        self._check(conditioned)
        self._extractor = conditioned.extractor
        encoder = None
        if self.bundle is not None:
            encoder = VoiceEncoder(open_backbone(self.bundle), self.bundle.config.frontend, config.tune)
            conditioned.centre.copy_(torch.from_numpy(self._mean_embedding(self.bundle)))
        if config.init is not None:
            load_tensors(conditioned, self._start(config.init).tensors(), config.init)
        return ExtractionNet(conditioned, encoder, len(self.classes))

    def _start(self, path: str) -> ExtractionBundle:
        """The model to start from, whose voices have to be those of this one."""
        start = read_extractor(path)
        own = start.voice().digest() if start.config.voices == "embedding" else None
        if own is not None and self.bundle is not None and own != self.bundle.digest():
            fault = f"heard the embeddings of another model than {self.bundle.path}"
            raise ConfigError("init", fault, f"take {start.path / VOICE} as embedder")
        return start

    def _check(self, conditioned: Conditioned) -> None:
        """Refuse what does not go together, before any step."""
        extractor, name, loss = conditioned.extractor, self.config.model.name, self.config.loss
        if extractor.sources and self.config.embedder is not None:
            raise ConfigError("embedder", f"is given, {name} separates blindly", "leave it out, or set model.args")
        if not extractor.sources and self.config.embedder is None:
            raise ConfigError("embedder", f"is missing, {name} needs voices", f"name an embedding model, or {JOINT!r}")
        if extractor.sources and self.settings.speakers != (extractor.sources, extractor.sources):
            fault = f"are {self.settings.speakers}, {name} separates {extractor.sources}"
            raise ConfigError("data.mixing.speakers", fault, "give that number twice")
        self._check_complete(extractor)
        asked = {len(each.targets) for each in self._listed()}
        if extractor.sources and self.settings.targets:
            raise ConfigError("data.mixing.targets", f"is set, {name} separates all", "leave it out")
        if extractor.sources and asked - {extractor.sources}:
            fault = f"are mixtures of {asked.pop()} targets, {name} separates {extractor.sources}"
            raise ConfigError("data", fault, "give mixtures of that many")
        separated = self.config.model.args.get("separate", 0)
        known = not self.settings.targets and not self.settings.absent_share
        fits = self.settings.speakers == (separated, separated) and not asked - {separated}
        if separated and not (known and fits):
            fault = f"is {separated}, which asks for mixtures of that many targets"
            remedy = "set data.mixing.speakers to it, targets and absent_share to 0"
            raise ConfigError("model.args.separate", fault, remedy)
        size = round(self.settings.seconds * self.settings.sample_rate)
        if size < extractor.min_samples:
            fault = f"makes {size} samples, {name} needs {extractor.min_samples}"
            raise ConfigError("data.mixing.seconds", fault, "raise it")
        if loss.kind == "magnitude" and not isinstance(extractor, MagnitudeExtractor):
            raise ConfigError("loss.kind", f"is magnitude, {name} gives none", "take si_sdr")

    def _listed(self) -> list[ListedMixture]:
        """All prepared mixtures."""
        prepared = (each for each in (self.train, self.valid) if isinstance(each, PreparedMixtures))
        return [listed for mixtures in prepared for listed in mixtures.listed]

    def _check_complete(self, extractor: Extractor) -> None:
        settings, data = self.settings, self.data
        if not self.config.complete_share:
            return
        if not extractor.can_complete:
            raise ConfigError("complete_share", f"is of no use to {self.config.model.name}", "leave it out")
        noisy = data.noise is not None and settings.noise_share
        if settings.targets or settings.absent_share or noisy or isinstance(self.train, PreparedMixtures):
            raise ConfigError(
                "complete_share",
                "asks for mixtures of nothing but targets",
                "draw them on the fly, with data.mixing.targets, absent_share and noise_share at 0",
            )

    def _mean_embedding(self, bundle: Bundle) -> npt.NDArray[np.float32]:
        """Of one enrolment of each of the first training mixtures' first speakers."""
        embedder, rows = Embedder(bundle), []
        rate = bundle.config.frontend.sample_rate
        for position in range(min(CENTRED_ON, 2 * len(self.train.speakers))):
            samples = self.train[position].enrolments[0]
            rows.append(embedder.embed(samples, rate=rate, short="pad"))
        return np.mean(rows, axis=0, dtype=np.float32)

    def train_batches(self, rank: int, world: int) -> Iterator[Batch]:
        """This rank's batches from the current position on."""
        size = self.data.batch_size
        positions = PositionBatches(self.position, size, rank, world)
        for batch in load_batches(self.train, positions, self.data.workers, self.stack):
            self.position += size * world
            yield self._completed(batch, rank)

    def _completed(self, batch: Batch, rank: int) -> Batch:
        if not self.config.complete_share:
            return batch
        drawn = np.random.default_rng([self.config.seed, self.position, rank]).random(len(batch["keys"]))
        return {**batch, "complete": torch.from_numpy(drawn < self.config.complete_share).float()}  # (B,)

    def valid_batches(self) -> Iterable[Batch]:
        """The same mixtures at every call."""
        if self.valid is None:
            return
        count, size = self.data.valid_mixtures, self.data.batch_size
        if isinstance(self.valid, PreparedMixtures):
            count = min(count, len(self.valid))
        for first in range(0, count, size):
            yield self.stack([self.valid[index] for index in range(first, min(first + size, count))])

    def stack(self, mixtures: Sequence[Mixture]) -> Batch:
        """A batch of some mixtures, all with equally many targets."""
        batch: Batch = {
            "mixture": torch.from_numpy(np.stack([each.mixture for each in mixtures])),  # (B, S)
            "targets": torch.from_numpy(np.stack([each.targets for each in mixtures])),  # (B, K, S)
            "present": torch.from_numpy(np.stack([each.present for each in mixtures])),  # (B, K)
            "keys": [each.key for each in mixtures],
        }
        if self.config.loss.kind == "scenario":
            batch["speaking"] = torch.from_numpy(np.stack([speaking(each) for each in mixtures]))
        if self.config.embedder is not None:
            waveforms = [enrolment for each in mixtures for enrolment in each.enrolments]
            longest = max(len(each) for each in waveforms)
            filled = [self._filled(each, longest) for each in waveforms]
            shape = len(mixtures), len(mixtures[0].enrolments)
            batch["enrolments"] = torch.from_numpy(np.stack(filled)).unflatten(0, shape)  # (B, K, samples)
            batch["lengths"] = torch.tensor([len(each) for each in waveforms]).unflatten(0, shape)
            numbers = [[self._numbers.get(name, NOBODY) for name in each.speakers] for each in mixtures]
            batch["labels"] = torch.tensor(numbers)  # (B, K)
        return batch

    def _filled(self, enrolment: Samples, size: int) -> Samples:
        """As long as the longest: an embedding model hears it repeated, an encoder of the model's own no zeros."""
        if self.bundle is not None:
            return np.resize(enrolment, size)
        return np.pad(enrolment, (0, size - len(enrolment)))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that the configuration names, and the improvement of SI-SDR over the mixture where targets speak."""
        extracted, logits = model(batch["mixture"], *map(batch.get, ("enrolments", "lengths", "complete")))
        if self.config.embedder is None:
            batch = _in_order(batch, extracted.waveform)
        loss = self._extraction_loss(extracted, batch)
        metrics = {"si_sdr_improvement": _improvement(extracted.waveform.detach(), batch)}
        if extracted.separated is not None:
            own = Extracted(extracted.separated)
            loss = loss + self.config.loss.separation * self._waveform_loss(own, _in_order(batch, own.waveform))
        if logits is not None and self.config.loss.speaker:
            known = batch["labels"] != NOBODY
            if known.any():
                wrong = F.cross_entropy(logits[known].float(), batch["labels"][known])
                loss = loss + self.config.loss.speaker * wrong
                metrics["speaker_loss"] = wrong.detach()
        return loss, metrics

    def _extraction_loss(self, extracted: Extracted, batch: Batch) -> Tensor:
        settings = self.config.loss
        if settings.kind != "magnitude" or extracted.magnitude is None:
            return self._waveform_loss(extracted, batch)
        wanted = self._extractor.magnitudes(batch["targets"])
        return magnitude_mse(extracted.magnitude, wanted, settings.power).mean()

    def _waveform_loss(self, extracted: Extracted, batch: Batch) -> Tensor:
        settings, targets = self.config.loss, batch["targets"]
        estimates = (extracted.waveform, *extracted.scales)
        weights = settings.scale_weights if extracted.scales else (1.0,)
        if settings.kind == "scenario":
            own = batch["speaking"]
            other = (own.sum(1, keepdim=True) - own) > 0

            def by_scenario(estimate: Tensor, target: Tensor) -> Tensor:
                return scenario_loss(estimate, target, own, other, self.settings.sample_rate, ScenarioWeights())

            return multi_scale(by_scenario, estimates, targets, weights).mean()
        measure = sdr if settings.kind == "sdr" else si_sdr
        mixture = batch["mixture"].unsqueeze(1)
        gained = multi_scale(lambda *pair: measure(*pair).clamp(max=settings.ceiling), estimates, targets, weights)
        left = multi_scale(lambda estimate, _: leakage(estimate, mixture), estimates, targets, weights)
        return torch.where(batch["present"], -gained, settings.absent * left).mean()

    def evaluate(self, model: Any) -> dict[str, float]:
        """Nothing but what :meth:`loss` gives."""
        return {}

    def start_step(self, model: Any, step: int) -> dict[str, float]:
        """Nothing is scheduled: the curriculum is a function of the position."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's position."""
        self.position = int(state["position"])

    def fingerprint(self) -> dict[str, Any]:
        """Architecture, mixtures, recordings, speakers and seed: what a checkpoint belongs to."""
        config = self.config
        return {
            "model": to_dict(config.model),
            "loss": to_dict(config.loss),
            "mixing": to_dict(self.settings),
            "complete_share": config.complete_share,
            "batch_size": config.data.batch_size,
            "recordings": self._recordings(),
            "init": read_extractor(config.init).digest() if config.init else None,
            "embedder": self.bundle.digest() if self.bundle is not None else str(config.embedder),
            "tune": config.tune,
            "speakers": hashlib.sha256("\n".join(self.train.speakers).encode()).hexdigest(),
            "seed": config.seed,
        }

    def _recordings(self) -> str:
        """Which ones there are, by their names, wherever they lie: of voices or mixtures, noises and rooms."""
        if isinstance(self.train, PreparedMixtures):
            names = [f"{each.key} {'/'.join(Path(each.wav).parts[-2:])}" for each in self.train.listed]
        else:
            names = [each.key for each in self.train.voices]
            names += [key for store in (self.train.noise, self.train.rir) if store is not None for key in store]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


def described(config: ExtractionConfig) -> ExtractorConfig:
    """What the folder of the trained model says; neither data nor weights are read."""
    voices: Literal["embedding", "joint", "none"] = "embedding"
    if config.embedder in (None, JOINT):
        voices = "none" if config.embedder is None else "joint"
    size = 0
    if voices == "embedding":
        size = read_bundle(open_name(Path(str(config.embedder)))).config.embedding_size
    mixing = config.data.mixing
    scale_free = config.loss.kind in ("si_sdr", "scenario")
    return ExtractorConfig(config.model, mixing.sample_rate, voices, size, mixing.seconds, scale_free)


def speaking(mixture: Mixture) -> npt.NDArray[np.float32]:
    """(K, S) 1 where each target speaks."""
    mask = np.zeros_like(mixture.targets)
    for row, spans in zip(mask, mixture.activity, strict=True):
        for first, last in spans:
            row[first:last] = 1
    return mask


def _in_order(batch: Batch, estimates: Tensor) -> Batch:
    """The batch with targets in the order in which estimates (B, K, S) are nearest, by SI-SDR for every loss."""
    losses = pairwise(lambda estimate, target: -si_sdr(estimate, target), estimates, batch["targets"])
    order = torch.argsort(permutation_invariant(losses)[1], dim=1)  # (B, K) the target of each estimate
    known = [name for name in ("targets", "present", "speaking") if name in batch]
    ordered: Batch = {name: _reordered(batch[name], order) for name in known}
    return {**batch, **ordered}


def _reordered(values: Tensor, order: Tensor) -> Tensor:
    return torch.take_along_dim(values, order.unsqueeze(-1) if values.ndim == 3 else order, dim=1)


def _improvement(estimates: Tensor, batch: Batch) -> Tensor:
    """Mean of SI-SDR over that of the mixture, of the targets that speak and do not speak alone."""
    targets = batch["targets"]
    before = si_sdr(batch["mixture"].unsqueeze(1), targets)
    counted = batch["present"] & (before < ALONE)
    return ((si_sdr(estimates, targets) - before) * counted).sum() / counted.sum().clamp_min(1)
