"""The embedding task: classify training speakers, and judge by held-out trials."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speakerkit.config import to_dict
from speakerkit.data.ark import Embeddings
from speakerkit.data.augment import Chain, build_chain
from speakerkit.data.dataset import (
    FeatureSource,
    RawSource,
    Sample,
    ShardSource,
    Source,
    TrainingDataset,
    read_features,
    read_speech,
)
from speakerkit.data.lists import Utterance, open_entry, read_utterance_list
from speakerkit.data.loading import load_batches
from speakerkit.data.sampling import BalancedOrder, Order, PositionBatches, ShuffledOrder
from speakerkit.data.shards import read_shard_list
from speakerkit.data.stores import open_store
from speakerkit.embedding.config import EmbeddingConfig
from speakerkit.embedding.distillation import DistilledNet, open_teacher
from speakerkit.embedding.initial import Inheritance, start_from
from speakerkit.embedding.joint import build_head
from speakerkit.embedding.margin import margin_at
from speakerkit.embedding.model import SpeakerNet, backbone_for
from speakerkit.embedding.objective import Objective
from speakerkit.embedding.registry import Backbone
from speakerkit.embedding.sharded import build_sharded_head
from speakerkit.errors import ConfigError, DataError, TrainingError
from speakerkit.features import Features, FrontEnd, features
from speakerkit.nn.fbank import SpecAugment, front_end_module
from speakerkit.verification.cosine import score_cosine
from speakerkit.verification.metrics import evaluate
from speakerkit.verification.trials import Trials, read_trials

logger = logging.getLogger("speakerkit.training")

Batch = dict[str, Any]

DRAWS_BEFORE_JUDGING = 200  # a share of bad files means little on fewer

# Settings that may differ on resuming: where things lie, and how they are read. Speeds are judged by those in effect.
FREE_DATA_SETTINGS = {
    *("train", "valid", "valid_trials", "noise", "rir", "shard_cache"),
    *("workers", "max_bad_share", "allow_pipes", "speeds"),
}


class EmbeddingTask:
    """Implements :class:`speakerkit.training.task.Task` for :class:`speakerkit.embedding.config.EmbeddingConfig`.

    Raises:
        DataError: lists that are missing or contradict themselves.
        ConfigError: an unknown backbone, head or augmentation, or a wrong argument.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        _require_samples(config)
        self.config = config
        self.source = _open_source(config)
        self.classes = {speaker: index for index, speaker in enumerate(sorted(set(self.source.speakers)))}
        self.speeds = (1.0,) if config.data.format == "feat" else tuple(config.data.speeds)
        self.dataset = TrainingDataset(
            self.source,
            _order(config, self.source),
            self.classes,
            config.frontend,
            chunk_frames=config.data.chunk_frames,
            speeds=self.speeds,
            chain=_chain(config),
            seed=config.seed,
        )
        self.valid = _read_list(config.data.valid, config) if config.data.valid else []
        strangers = sorted({utterance.speaker for utterance in self.valid} - self.classes.keys())
        if strangers:
            raise DataError(
                config.data.valid,
                f"holds {len(strangers)} speakers not trained on, {strangers[0]!r} first",
                "validation utterances are held-out ones of training speakers",
            )
        self.trials = self._trials()
        self.teacher = (
            open_teacher(config.distillation, config.frontend, config.data, list(self.classes))
            if config.distillation
            else None
        )
        self.inheritance: Inheritance | None = None
        self.unused: list[str] | None = None  # tensors of ``pretrained`` that the model has no use for
        self.classifies = True
        self.position = 0
        self.drawn = 0
        self.bad_draws = 0
        self.bad: dict[str, str] = {}

    def build_model(self) -> SpeakerNet:
        """Front-end, backbone and head, from ``init`` where one is named."""
        config = self.config
        backbone = backbone_for(config.model, config.frontend)
        build = build_sharded_head if config.head_shards else build_head
        head = build(config.head, backbone.embed_dim, len(self.classes) * len(self.speeds))
        _require_fit(head, config)
        self.classifies = head.classifies
        fbank = None if config.data.format == "feat" else front_end_module(config.frontend)
        spec_augment = config.data.spec_augment
        parts = backbone, head, fbank, SpecAugment(**to_dict(spec_augment))
        if config.distillation and self.teacher:
            model: SpeakerNet = DistilledNet(*parts, config=config.distillation, teacher_dim=self.teacher.embed_dim)
        else:
            model = SpeakerNet(*parts)
        if config.init:
            self.inheritance = start_from(model, config.init, self._classes())
        elif config.pretrained:
            from speakerkit.embedding.ssl import load_pretrained

            self.unused = load_pretrained(backbone, config.pretrained)
        return model

    def train_batches(self, rank: int, world: int) -> Iterator[Batch]:
        """This rank's batches from the current position on."""
        data = self.config.data
        if rank == 0 and len(self.source.keys) < data.batch_size * world:
            logger.warning("%d utterances are fewer than a step takes: they repeat within it", len(self.source.keys))
        if rank == 0 and self.position == 0 and self.inheritance:
            for line in self.inheritance.to_lines():
                logger.info("init: %s", line)
        if rank == 0 and self.position == 0 and self.unused is not None:
            logger.info("pretrained: %s, without %s", self.config.pretrained, ", ".join(self.unused) or "exception")
        positions = PositionBatches(self.position, data.batch_size, rank, world)
        for batch in load_batches(self.dataset, positions, data.workers, _stack):
            self.position += data.batch_size * world
            self._count_failures(batch)
            yield batch

    def _count_failures(self, batch: Batch) -> None:
        self.drawn += len(batch["keys"]) + len(batch["failures"])
        for key, reason in batch["failures"]:
            if key not in self.bad:
                logger.warning("skipped %s: %s", key, reason)
            self.bad[key] = reason
        self.bad_draws += len(batch["failures"])
        share = self.bad_draws / self.drawn
        if share > self.config.data.max_bad_share and self.drawn >= DRAWS_BEFORE_JUDGING:
            key, reason = next(iter(self.bad.items()))
            raise TrainingError(
                self.config.data.train,
                f"{share:.1%} of what was drawn cannot be read ({len(self.bad)} files, first {key}: {reason})",
                "run `speakerkit data check --decode`, or raise data.max_bad_share",
            )

    def valid_batches(self) -> Iterable[Batch]:
        """Held-out utterances: one fixed chunk each, at its own speed, not augmented.

        None for a head without classes: utterances that need not be of the same speakers give it nothing to compare.
        """
        if not self.valid or not self.classifies:
            return
        source = FeatureSource if self.config.data.format == "feat" else RawSource
        dataset = TrainingDataset(
            source(self.valid, self.config.frontend),
            ShuffledOrder([range(len(self.valid))], seed=0),
            self.classes,
            self.config.frontend,
            chunk_frames=self.config.data.chunk_frames,
            speeds=(1.0,),
            chain=None,
            seed=0,
        )
        size = self.config.data.batch_size
        for first in range(0, len(self.valid), size):
            yield _stack([dataset[index] for index in range(first, min(first + size, len(self.valid)))])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of :class:`speakerkit.embedding.model.SpeakerNet`; accuracy is that without margin."""
        if self.teacher is None or not model.training:
            return model(batch["inputs"], batch["labels"])
        return model(batch["inputs"], batch["labels"], self.teacher(batch["inputs"]))

    def evaluate(self, model: Any) -> dict[str, float]:
        """``valid_eer`` in percent, from whole utterances; nothing where there are no held-out trials."""
        if self.trials is None:
            return {}
        known = {utterance.key: utterance for utterance in self._trial_utterances()}
        return {"valid_eer": 100 * trial_eer(model.backbone, self.config.frontend, known, self.trials)}

    def start_step(self, model: Any, step: int) -> dict[str, float]:
        """Set the head's margin, where it has one."""
        value = margin_at(step, self.config.margin)
        model.head.update(value)
        return {} if model.head.margin is None else {"margin": value}

    def fingerprint(self) -> dict[str, Any]:
        """Classes, architecture, front-end, margin, data settings and seed: what a checkpoint belongs to."""
        data = {name: value for name, value in to_dict(self.config.data).items() if name not in FREE_DATA_SETTINGS}
        return {
            **self._classes(),
            "model": to_dict(self.config.model),
            "head": to_dict(self.config.head),
            "frontend": to_dict(self.config.frontend),
            "margin": to_dict(self.config.margin),
            "distillation": self._lessons(),
            "data": data,
            "seed": self.config.seed,
        }

    def _classes(self) -> dict[str, Any]:
        """What the classes stand for."""
        names = "\n".join(self.classes)
        return {"speaker list": hashlib.sha256(names.encode()).hexdigest(), "speeds": list(self.speeds)}

    def _lessons(self) -> dict[str, Any] | None:
        """How the teacher is listened to, and which it is: by its weights, wherever they lie."""
        if self.config.distillation is None or self.teacher is None:
            return None
        return {**to_dict(self.config.distillation), "teacher": self.teacher.digest}

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream, and the files found bad so far."""
        return {"position": self.position, "drawn": self.drawn, "bad_draws": self.bad_draws, "bad": dict(self.bad)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's position."""
        self.position, self.drawn = int(state["position"]), int(state["drawn"])
        self.bad_draws, self.bad = int(state["bad_draws"]), dict(state["bad"])

    def _trial_utterances(self) -> list[Utterance]:
        trained_on = [] if isinstance(self.source, ShardSource) else self.source.utterances
        return [*self.valid, *trained_on]

    def _trials(self) -> Trials | None:
        if not self.config.data.valid_trials:
            return None
        trials = read_trials(self.config.data.valid_trials)
        missing = sorted(
            {*trials.enrol_ids, *trials.test_ids} - {utterance.key for utterance in self._trial_utterances()}
        )
        if missing:
            raise DataError(
                self.config.data.valid_trials,
                f"names {len(missing)} utterances that are in neither list, {missing[0]!r} first",
                "trials are over utterances of data.valid and of a raw or feat data.train",
            )
        return trials


@torch.no_grad()
def trial_eer(backbone: Backbone, frontend: FrontEnd, utterances: Mapping[str, Utterance], trials: Trials) -> float:
    """Equal error rate in [0, 1] of cosine scores of trials, from the embeddings of whole utterances.

    Args:
        backbone: in evaluation mode.
        utterances: those of the trials, by key.
    """
    device = next(backbone.parameters()).device
    vectors = []
    keys = sorted({*trials.enrol_ids, *trials.test_ids})
    for key in keys:
        feats = torch.from_numpy(whole_features(utterances[key], frontend))[None].to(device)  # (1, T, F)
        vectors.append(backbone(feats)[0].float().cpu().numpy())
    return evaluate(score_cosine(Embeddings(keys, np.stack(vectors)), trials)).eer


def whole_features(utterance: Utterance, frontend: FrontEnd) -> Features:
    """Features (T, F) of the whole of an utterance, as at inference."""
    if not utterance.feat:
        return features(read_speech(open_entry(utterance.wav), frontend, utterance.vad), frontend)
    matrix = read_features(utterance.feat, frontend)
    return matrix - matrix.mean(axis=0) if frontend.mean_norm else matrix


def _require_fit(head: Objective, config: EmbeddingConfig) -> None:
    """Refuse margins that a head does not take, and batches or a distillation that it can make nothing of."""
    data, name = config.data, config.head.name
    for margin in (config.margin.final, config.margin.initial):
        head.update(margin)
    if not (head.classifies or head.compares):
        raise ConfigError("head", f"{name} tells no speakers apart", "join it to one that does: head.name joint")
    repeats = data.utterances_per_speaker
    if head.compares and (data.sampling != "balanced" or repeats < 2 or data.batch_size < 2 * repeats):
        fault = f"is {data.sampling!r}, {data.batch_size} chunks, {repeats} a speaker: {name} cannot compare them"
        remedy = "sampling: balanced, utterances_per_speaker from 2 on, batch_size of 2 speakers or more"
        raise ConfigError("data.sampling", fault, remedy)
    if config.distillation and config.distillation.label_weight and config.head_shards:
        raise ConfigError("distillation.label_weight", "needs the scores of all classes", "set it or head_shards off")
    if config.distillation and config.distillation.label_weight and not head.classifies:
        raise ConfigError("distillation.label_weight", f"{name} has no classes to learn them for", "set it to 0")


def _require_samples(config: EmbeddingConfig) -> None:
    """Refuse what does not go with samples as features.

    Raises:
        ConfigError: features that are there already, or masks over mel bands.
    """
    if config.frontend.kind != "waveform":
        return
    if config.data.format == "feat":
        raise ConfigError("frontend.kind", "is 'waveform', and a feat list holds none", "use raw or shard lists")
    if config.data.spec_augment.prob > 0:
        raise ConfigError("data.spec_augment.prob", "masks mel bands, not samples", "set it to 0")


def _open_source(config: EmbeddingConfig) -> RawSource | ShardSource | FeatureSource:
    data = config.data
    source: RawSource | ShardSource | FeatureSource
    if data.format == "shard":
        source = ShardSource(
            read_shard_list(data.train, allow_pipes=data.allow_pipes, cache=data.shard_cache), config.frontend
        )
    else:
        source = (FeatureSource if data.format == "feat" else RawSource)(
            _read_list(data.train, config), config.frontend
        )
    return source


def _read_list(path: str, config: EmbeddingConfig) -> list[Utterance]:
    """A raw list, or a feat list where the training list is one."""
    data = config.data
    utterances = read_utterance_list(path, data.allow_pipes)
    kind = "feat" if data.format == "feat" else "raw"
    wrong = next((utterance.key for utterance in utterances if bool(utterance.feat) != (kind == "feat")), None)
    if wrong is not None:
        raise DataError(path, f"{wrong!r} is not an entry of a {kind} list", "set data.format")
    if not utterances:
        raise DataError(path, "names no utterances", "run the preparation stage again")
    return utterances


def _order(config: EmbeddingConfig, source: Source) -> Order:
    if config.data.sampling == "balanced":
        by_speaker: dict[str, list[int]] = {}
        for index, speaker in enumerate(source.speakers):
            by_speaker.setdefault(speaker, []).append(index)
        repeats = config.data.utterances_per_speaker
        return BalancedOrder(
            [by_speaker[speaker] for speaker in sorted(by_speaker)],
            repeats,
            config.data.batch_size // repeats,
            config.seed,
        )
    groups: dict[str, list[int]] = {}
    for index in range(len(source.keys)):
        shard = str(source.members[index].shard) if isinstance(source, ShardSource) else ""
        groups.setdefault(shard, []).append(index)
    return ShuffledOrder(list(groups.values()), config.seed, config.data.shuffle_shards)


def _chain(config: EmbeddingConfig) -> Chain | None:
    data = config.data
    if not data.augment:
        return None
    if data.format == "feat":
        raise ConfigError("data.augment", "acts on waveforms, not on a feat list", "use raw or shard lists, or drop it")
    return build_chain(
        data.augment,
        noise_store=open_store(data.noise) if data.noise else None,
        rir_store=open_store(data.rir) if data.rir else None,
    )


def _stack(samples: Sequence[Sample]) -> Batch:
    """Inputs (B, samples) or (B, T, F), labels (B,), keys, and the failures met on the way."""
    return {
        "inputs": torch.from_numpy(np.stack([sample.input for sample in samples])),
        "labels": torch.tensor([sample.label for sample in samples]),
        "keys": [sample.key for sample in samples],
        "failures": [failure for sample in samples for failure in sample.failures],
    }
