"""Knowledge distillation: a teacher that is only listened to, and the losses that draw a student towards it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.bundle import read_bundle
from speakerkit.config import NamedConfig, parse, read_yaml
from speakerkit.data.lists import read_lines
from speakerkit.embedding.config import DataConfig, DistillationConfig
from speakerkit.embedding.joint import build_head
from speakerkit.embedding.model import SpeakerNet, accuracy, backbone_for, load_tensors, open_backbone
from speakerkit.embedding.objective import Objective
from speakerkit.embedding.registry import Backbone
from speakerkit.errors import ConfigError
from speakerkit.features import FrontEnd
from speakerkit.nn.fbank import front_end_module
from speakerkit.weights import load_checkpoint, model_of

PROJECTION = "projection."  # tensors that serve the training only


def embedding_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Distance of embeddings (B, D): mean of 1 - cosine ("cosine"), or mean squared difference ("mse").

    Wang et al. 2019, "Knowledge distillation for small foot-print deep speaker embedding", section 3.2.
    """
    student, teacher = _at_least_float32(student), _at_least_float32(teacher)
    if kind == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
    return (student - teacher).square().mean()


def label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the posteriors softmax(logits / T), logits (B, classes), averaged over the batch.

    Hinton et al. 2015, 1503.02531, section 2; T^2 keeps the gradient's size whatever the temperature.
    """
    heard = F.log_softmax(_at_least_float32(student) / temperature, dim=1)
    taught = F.log_softmax(_at_least_float32(teacher) / temperature, dim=1)
    return temperature**2 * F.kl_div(heard, taught, reduction="batchmean", log_target=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Lesson(NamedTuple):
    """What a teacher says of a batch: embeddings (B, D), and logits (B, classes) where it has a head."""

    embedding: Tensor
    scores: Tensor | None


class Teacher:
    """A trained model with its own front-end; no part of the student, never trained.

    Attributes:
        embed_dim: D of its embeddings.
        digest: SHA-256 of its weights.
    """

    def __init__(self, backbone: Backbone, frontend: FrontEnd, head: Objective | None, digest: str) -> None:
        self.frontend, self.embed_dim, self.digest = frontend, backbone.embed_dim, digest
        self._parts = nn.ModuleDict({"backbone": backbone, "fbank": front_end_module(frontend)})
        if head is not None:
            self._parts["head"] = head
        self._parts.eval().requires_grad_(False)
        self._device = torch.device("cpu")

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Lesson:
        """Waveforms (B, samples), or features (B, T, F) of its own kind, to what it says of them."""
        if inputs.device != self._device:
            self._parts.to(inputs.device)
            self._device = inputs.device
        features = self._parts["fbank"](inputs) if inputs.ndim == 2 else inputs  # (B, T, F)
        embedding = self._parts["backbone"](features)
        return Lesson(embedding, self._parts["head"].scores(embedding) if "head" in self._parts else None)  # type: ignore[operator]


class DistilledNet(SpeakerNet):
    """A student: its classification loss, plus its distance from what the teacher says of the same inputs.

    Where the teacher's embeddings have another dimension, a linear ``projection`` of the student's meets them; it is
    trained, and left out of what is published.
    """

    def __init__(self, *parts: Any, config: DistillationConfig, teacher_dim: int) -> None:
        super().__init__(*parts)
        self.distillation = config
        self.projection: nn.Module = nn.Identity()
        if config.embedding and self.backbone.embed_dim != teacher_dim:
            self.projection = nn.Linear(self.backbone.embed_dim, teacher_dim, bias=False)
        if config.label_weight and not self.head.classifies:
            raise ConfigError(
                "distillation.label_weight", "needs a head with classes", "choose another, or set it to 0"
            )

    def forward(self, inputs: Tensor, labels: Tensor, lesson: Lesson | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """As :class:`SpeakerNet`; with a ``lesson``, its weighted losses are added and are metrics as well."""
        embedding = self.embed(inputs)  # (B, D)
        loss, scores = self.head.loss_and_scores(embedding, labels)
        metrics = accuracy(self.head, scores, labels)
        if lesson is None:
            return loss, metrics
        config = self.distillation
        if config.embedding:
            distance = embedding_loss(self.projection(embedding), lesson.embedding, config.embedding)
            loss = loss + config.embedding_weight * distance
            metrics = {**metrics, "distill_embedding": distance.detach()}
        if lesson.scores is not None and scores is not None:
            divergence = label_loss(scores, lesson.scores, config.temperature)
            loss = loss + config.label_weight * divergence
            metrics = {**metrics, "distill_label": divergence.detach()}
        return loss, metrics


def open_teacher(config: DistillationConfig, frontend: FrontEnd, data: DataConfig, speakers: list[str]) -> Teacher:
    """The teacher that a configuration names, fit for a student's front-end and classes.

    Args:
        frontend: the student's; the teacher's may differ in all but the rate, unless the inputs are features.
        speakers: the student's, in the order of its classes.

    Raises:
        BundleError: no such model, or a damaged one.
        ConfigError: another rate, features that the teacher does not take, or other classes.
    """
    path = Path(config.teacher)
    teacher = _from_checkpoint(path, config, data, speakers) if path.is_file() else _from_bundle(path, config)
    key, theirs = "distillation.teacher", teacher.frontend
    if theirs.sample_rate != frontend.sample_rate:
        fault = f"{path} hears {theirs.sample_rate} Hz, the student {frontend.sample_rate} Hz"
        raise ConfigError(key, fault, "choose a teacher of the same rate")
    if data.format == "feat" and _features_of(theirs) != _features_of(frontend):
        raise ConfigError(key, f"{path} has another front-end than the features of {data.train}", "train on waveforms")
    return teacher


def _features_of(frontend: FrontEnd) -> FrontEnd:
    """What of a front-end shows in features that were extracted with it."""
    return replace(frontend, dither=0.0, min_duration=0.0)


def _from_bundle(path: Path, config: DistillationConfig) -> Teacher:
    if config.label_weight > 0:
        fault = f"{path} is a bundle, which has no classes to learn label_weight from"
        raise ConfigError("distillation.teacher", fault, "name checkpoints/average.pt of the teacher's experiment")
    bundle = read_bundle(path)
    return Teacher(open_backbone(bundle), bundle.config.frontend, None, bundle.digest())


def _from_checkpoint(path: Path, config: DistillationConfig, data: DataConfig, speakers: list[str]) -> Teacher:
    """The teacher of ``EXP/checkpoints/NAME.pt``, built as ``EXP/config.yaml`` says."""
    exp_dir = path.resolve().parent.parent
    tensors = model_of(load_checkpoint(path), path)
    values = read_yaml(exp_dir / "config.yaml")
    frontend = parse(FrontEnd, values.get("frontend", {}), "frontend")
    backbone = backbone_for(parse(NamedConfig, values.get("model"), "model"), frontend)
    load_tensors(backbone, _below("backbone.", tensors), path)
    head = None
    if config.label_weight > 0:
        theirs = parse(DataConfig, values.get("data"), "data")
        known, speeds = read_lines(exp_dir / "speakers.txt"), _speeds_in_effect(theirs)
        if known != speakers or speeds != _speeds_in_effect(data):
            fault = f"{path} tells other classes apart: {len(known)} speakers at speeds {speeds}"
            raise ConfigError("distillation.teacher", fault, "label_weight needs the student's speakers and speeds")
        described = parse(NamedConfig, values.get("head", {"name": "arc_margin"}), "head")
        head = build_head(described, backbone.embed_dim, len(known) * len(speeds))
        if not head.classifies:
            raise ConfigError("distillation.teacher", f"{path} has a head without classes", "set label_weight to 0")
        load_tensors(head, _below("head.", tensors), path)
    return Teacher(backbone, frontend, head, hashlib.sha256(path.read_bytes()).hexdigest())


def _speeds_in_effect(data: DataConfig) -> list[float]:
    return [1.0] if data.format == "feat" else list(data.speeds)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
