"""Distillation: its formulas in float64, a teacher that stays outside the student, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from speakerkit.bundle import BundleConfig, read_bundle, write_bundle
from speakerkit.config import NamedConfig
from speakerkit.embedding.config import DistillationConfig
from speakerkit.embedding.distillation import DistilledNet, embedding_loss, label_loss
from speakerkit.embedding.model import backbone_for
from speakerkit.embedding.task import EmbeddingTask
from speakerkit.errors import ConfigError
from speakerkit.features import FrontEnd, features
from speakerkit.training.experiment import read_experiment, run_experiment
from speakerkit.training.publish import publish
from tests.command import speakerkit
from tests.training.states import identical, last_state, log_of

Experiment = Callable[..., Path]


def softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_embedding_losses_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 7, 5)) * 3
    cosines = (student * teacher).sum(axis=1) / np.linalg.norm(student, axis=1) / np.linalg.norm(teacher, axis=1)
    one, other = torch.from_numpy(student), torch.from_numpy(teacher)
    assert embedding_loss(one, other, "cosine").item() == pytest.approx(np.mean(1 - cosines), rel=1e-12)
    assert embedding_loss(one, other, "mse").item() == pytest.approx(np.mean((student - teacher) ** 2), rel=1e-12)
    assert embedding_loss(3 * one, one, "cosine").item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_label_loss_is_hintons(temperature: float) -> None:
    rng = np.random.default_rng(1)
    student, teacher = 10 * rng.standard_normal((2, 6, 9))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * np.mean((p * np.log(p / q)).sum(axis=1))
    heard = torch.from_numpy(student).requires_grad_()
    loss = label_loss(heard, torch.from_numpy(teacher), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    loss.backward()
    assert heard.grad is not None
    # Section 2 of the paper: the gradient of a logit is T (q - p), here over the batch.
    np.testing.assert_allclose(heard.grad.numpy(), temperature * (q - p) / len(p), rtol=1e-8, atol=1e-12)


def test_losses_are_in_float32_at_least() -> None:
    a, b = torch.randn(4, 6).bfloat16(), torch.randn(4, 6).bfloat16()
    for loss in (embedding_loss(a, b, "cosine"), embedding_loss(a, b, "mse"), label_loss(a, b, 2.0)):
        assert loss.dtype == torch.float32


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a front-end (24 mels, every 8 ms) and an embedding size (12) of its own."""
    model, frontend = (
        NamedConfig("ECAPA_TDNN", {"channels": 16, "joined": 24, "embed_dim": 12}),
        FrontEnd(num_mels=24, frame_shift=8.0, dither=1.0),
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        backbone = backbone_for(model, frontend)
    path = tmp_path_factory.mktemp("teacher") / "bundle"
    write_bundle(path, BundleConfig(model, frontend, 12), backbone.state_dict())
    return path


def task_of(config: Path) -> EmbeddingTask:
    return EmbeddingTask(read_experiment(config))


def test_the_teacher_hears_the_same_inputs_through_its_own_front_end(experiment: Experiment, teacher: Path) -> None:
    task = task_of(experiment(distillation={"teacher": str(teacher)}))
    torch.manual_seed(0)
    model = task.build_model()
    batch = next(task.train_batches(0, 1))
    assert task.teacher is not None
    lesson = task.teacher(batch["inputs"])
    bundle = read_bundle(teacher)
    backbone = backbone_for(bundle.config.model, bundle.config.frontend).eval()
    backbone.load_state_dict(bundle.tensors())
    feats = np.stack([features(row.numpy(), bundle.config.frontend) for row in batch["inputs"]])
    with torch.no_grad():
        expected = backbone(torch.from_numpy(feats))
    torch.testing.assert_close(lesson.embedding, expected, rtol=1e-3, atol=1e-4)
    assert not lesson.embedding.requires_grad
    assert lesson.scores is None

    def losses(net: torch.nn.Module) -> tuple[float, dict[str, float]]:
        torch.manual_seed(3)
        loss, metrics = task.loss(net, batch)
        return float(loss.detach()), {name: float(value) for name, value in metrics.items()}

    assert isinstance(model, DistilledNet)
    assert model.projection.weight.shape == (12, 16)
    loss, metrics = losses(model.train())
    torch.manual_seed(3)
    own, _ = model(batch["inputs"], batch["labels"])
    assert loss == pytest.approx(float(own.detach()) + metrics["distill_embedding"], rel=1e-6)
    # Validation is by the student's own loss, as without a teacher.
    assert set(losses(model.eval())[1]) == {"accuracy"}


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_a_student_comes_nearer_to_its_teacher(experiment: Experiment, teacher: Path, kind: str) -> None:
    settings = {"teacher": str(teacher), "embedding": kind, "embedding_weight": 100.0}
    task = task_of(experiment(distillation=settings, data={"spec_augment": {"prob": 0.0}}))
    torch.manual_seed(0)
    model, batch = task.build_model().train(), next(task.train_batches(0, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    distances = []
    for _ in range(15):
        loss, metrics = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(float(metrics["distill_embedding"]))
    assert distances[-1] < 0.5 * distances[0]


def test_the_teacher_is_no_part_of_the_student(experiment: Experiment, teacher: Path, tmp_path: Path) -> None:
    """Nothing of it is trained, saved or published, and the projection is left out of what is."""
    before = {path: path.read_bytes() for path in teacher.iterdir()}
    settings = {"teacher": str(teacher), "embedding_weight": 5.0}
    config = experiment(
        distillation=settings, optim={"name": "adam", "lr": 0.02}, trainer={"steps": 3}, data={"valid_trials": None}
    )
    run_experiment(config)
    model = last_state(tmp_path / "exp")["model"]
    prefixes = {name.split(".")[0] for name in model}
    assert prefixes == {"backbone", "head", "projection"}
    assert "distill_embedding" in log_of(tmp_path / "exp")
    assert "valid_distill" not in log_of(tmp_path / "exp")
    bundle = publish(tmp_path / "exp", tmp_path / "bundle")
    assert not any("projection" in name for name in bundle.tensors())
    assert bundle.config.provenance["teacher"] == str(teacher)
    average = torch.load(tmp_path / "exp" / "checkpoints" / "average.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in average} == {"backbone", "head"}
    assert before == {path: path.read_bytes() for path in teacher.iterdir()}
    # What was distilled can be fine-tuned, from its average and from a checkpoint, without and with a new teacher.
    for name, init in (("a", "average.pt"), ("b", "step_00000003.pt")):
        for taught in ({}, {"distillation": settings}):
            start = {"init": str(tmp_path / "exp" / "checkpoints" / init), **taught}
            tuned = task_of(experiment(f"{name}{len(taught)}", **start))
            started = tuned.build_model().state_dict()
            torch.testing.assert_close(started["backbone.conv.weight"], average["backbone.conv.weight"])
            assert tuned.inheritance is not None
            assert list(tuned.inheritance.new) == (["projection.weight"] if taught else [])
            assert list(tuned.inheritance.dropped) == ([] if name == "a" else ["projection.weight"])


def test_stop_and_resume_is_bit_identical(experiment: Experiment, teacher: Path, tmp_path: Path) -> None:
    sections = {
        "distillation": {"teacher": str(teacher), "embedding": "mse"},
        "trainer": {"ema": 0.9, "valid_every": 2},
        "optim": {"lr_factors": {"backbone.layer1": 0.0, "head": 2.0}, "layer_decay": {"backbone": 0.9}},
    }
    run_experiment(experiment("whole", **sections))
    parts = experiment("parts", **sections)
    run_experiment(parts, stop_after=3)
    run_experiment(parts)
    assert identical(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))


def taught_by_labels(path: Path, **changed: Any) -> dict[str, Any]:
    return {"teacher": str(path), "embedding": None, "label_weight": 1.0, "temperature": 2.0, **changed}


@pytest.fixture
def average(experiment: Experiment, tmp_path: Path) -> Path:
    """``average.pt`` of a run, which has learned the classes of the corpus at three speeds."""
    run_experiment(experiment("teacher", trainer={"steps": 2}, data={"valid_trials": None}))
    publish(tmp_path / "teacher", tmp_path / "teacher" / "bundle")
    return tmp_path / "teacher" / "checkpoints" / "average.pt"


def test_posteriors_are_learned_from_a_checkpoint_with_its_head(
    experiment: Experiment, average: Path, tmp_path: Path
) -> None:
    settings = taught_by_labels(average)
    run_experiment(experiment(distillation=settings))
    state = last_state(tmp_path / "exp")
    assert not any("projection" in name for name in state["model"])
    task = task_of(experiment(distillation=settings))
    net, batch = task.build_model(), next(task.train_batches(0, 1))
    assert task.teacher is not None
    lesson = task.teacher(batch["inputs"])
    assert lesson.scores is not None
    assert lesson.scores.shape == (4, 12)
    torch.manual_seed(3)
    loss, metrics = task.loss(net.train(), batch)
    torch.manual_seed(3)
    own, _ = net(batch["inputs"], batch["labels"])
    torch.manual_seed(3)
    scores = net.head.scores(net.embed(batch["inputs"]))
    p, q = (softmax(x.detach().double().numpy() / 2.0) for x in (lesson.scores, scores))
    expected = 4.0 * np.mean((p * np.log(p / q)).sum(axis=1))
    assert float(metrics["distill_label"]) == pytest.approx(expected, rel=1e-4)
    assert float(loss.detach()) == pytest.approx(float(own.detach()) + expected, rel=1e-4)


@pytest.mark.parametrize("changed", [{"temperature": 3.0}, {"label_weight": 0.5}, {"embedding": "cosine"}], ids=str)
def test_resuming_with_other_lessons_is_refused(
    experiment: Experiment, average: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    run_experiment(experiment(distillation=taught_by_labels(average), trainer={"steps": 4}), stop_after=1)
    done = speakerkit("train", experiment(distillation=taught_by_labels(average, **changed), trainer={"steps": 4}))
    assert done.code == 2
    assert "was trained with another distillation (" in done.errors[0]
    moved = average.rename(tmp_path / "teacher" / "checkpoints" / "moved.pt")  # the same teacher at another place
    assert run_experiment(experiment(distillation=taught_by_labels(moved), trainer={"steps": 4})).step == 4


def test_what_teaches_nothing_is_refused(
    experiment: Experiment, corpus: Path, teacher: Path, average: Path, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    text = (teacher / "config.yaml").read_text().replace("sample_rate: 16000", "sample_rate: 8000")
    (slow / "config.yaml").write_text(text)
    (slow / "model.safetensors").write_bytes((teacher / "model.safetensors").read_bytes())
    graph = tmp_path / "graph"
    graph.mkdir()
    (graph / "model.onnx").write_bytes(b"")
    (graph / "config.yaml").write_text((teacher / "config.yaml").read_text().replace("name: ECAPA_TDNN", "name: onnx"))
    for name, settings, data, fault in (
        ("a bundle", taught_by_labels(teacher), {}, "is a bundle, which has no classes"),
        ("another rate", {"teacher": str(slow)}, {}, "hears 8000 Hz, the student 16000 Hz"),
        ("other speeds", taught_by_labels(average), {"speeds": [1.0]}, "tells other classes apart"),
        ("nowhere", {"teacher": str(tmp_path / "none")}, {}, "no such model folder"),
        ("a graph", {"teacher": str(graph)}, {}, "is an ONNX graph without weights"),
        ("no experiment", taught_by_labels(corpus / "train.list"), {}, "train.list: is refused"),
    ):
        done = speakerkit("train", experiment(name, distillation=settings, data=data))
        assert done.code == 2, name
        assert len(done.errors) == 1
        assert fault in done.errors[0], done.err
    (tmp_path / "teacher" / "speakers.txt").write_text("s0\ns1\ns2\nsX\n")
    with pytest.raises(ConfigError, match="tells other classes apart: 4 speakers"):
        task_of(experiment("other speakers", distillation=taught_by_labels(average)))
    assert task_of(experiment("embeddings only", distillation={"teacher": str(average)})).teacher is not None


def test_features_need_a_teacher_of_the_same_front_end(
    experiment: Experiment, corpus: Path, teacher: Path, average: Path, tmp_path: Path
) -> None:
    kaldiio = pytest.importorskip("kaldiio")
    from speakerkit.audio import load_audio
    from speakerkit.data.lists import Utterance, read_utterance_list, write_utterance_list
    from speakerkit.features import fbank

    with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/f.ark,{tmp_path}/f.scp") as writer:
        for entry in read_utterance_list(corpus / "train.list"):
            writer(entry.key, fbank(load_audio(entry.wav).samples, FrontEnd(num_mels=20)))
    places = dict(line.split() for line in (tmp_path / "f.scp").read_text().splitlines())
    entries = [Utterance(e.key, e.speaker, feat=places[e.key]) for e in read_utterance_list(corpus / "train.list")]
    write_utterance_list(tmp_path / "feat.list", entries)
    data = {"train": str(tmp_path / "feat.list"), "format": "feat", "augment": [], "valid": None, "valid_trials": None}
    with pytest.raises(ConfigError, match="another front-end than the features"):
        task_of(experiment("other", data=data, distillation={"teacher": str(teacher)}))
    assert run_experiment(experiment("same", data=data, distillation={"teacher": str(average)})).step == 6


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"temperature": 0.0}, "temperature: is 0.0"),
        ({"embedding_weight": -1.0}, "embedding_weight: is -1.0"),
        ({"label_weight": -1.0}, "label_weight: is -1.0"),
        ({"embedding": None}, "learns nothing"),
        ({"embedding_weight": 0.0}, "learns nothing"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        DistillationConfig(**{"teacher": "x", **settings})


def test_the_configuration_reads_back(experiment: Experiment, teacher: Path) -> None:
    text = experiment(distillation={"teacher": str(teacher), "embedding": None, "label_weight": 2}).read_text()
    assert yaml.safe_load(text)["distillation"]["embedding"] is None
    with pytest.raises(ConfigError, match=r"distillation\.embedding: is 'l2'|embedding is 'l2'"):
        read_experiment(experiment(distillation={"teacher": "x", "embedding": "l2"}))
