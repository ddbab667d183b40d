"""Training with heads that compare utterances, or have several parts: batches, validation, refusals at the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speakerkit.embedding.task import EmbeddingTask
from speakerkit.errors import ConfigError
from speakerkit.training.checkpoint import list_checkpoints
from speakerkit.training.experiment import read_experiment, run_experiment
from tests.training.states import identical, last_state, log_of

Experiment = Callable[..., Path]

PAIRS = {"sampling": "balanced", "utterances_per_speaker": 2}
KWON = {"parts": [{"name": "softmax"}, {"name": "angular_prototypical"}]}


@pytest.mark.parametrize("name", ["triplet", "prototypical", "angular_prototypical", "ge2e"])
def test_metric_losses_are_validated_by_trials(experiment: Experiment, tmp_path: Path, name: str) -> None:
    result = run_experiment(experiment(data=PAIRS, head={"name": name}, trainer={"valid_every": 3}))
    assert result.step == 6
    assert set(result.metrics) == {"valid_eer"}
    folder = tmp_path / "exp"
    log = log_of(folder)
    assert "nan" not in log
    assert "accuracy" not in log
    warnings = [line for line in log.splitlines() if "WARNING" in line]
    assert all("waiting for data" in line for line in warnings)  # as on a busy machine
    assert ("margin" in log) == (name == "triplet")
    assert (folder / "checkpoints" / "best.pt").is_file()


def test_without_trials_there_is_nothing_to_validate(experiment: Experiment, tmp_path: Path) -> None:
    result = run_experiment(experiment(data={**PAIRS, "valid_trials": None}, head={"name": "ge2e"}))
    assert result.metrics == {}
    assert list_checkpoints(tmp_path / "exp" / "checkpoints")


def test_a_joint_head_trains_and_goes_on_bit_for_bit(experiment: Experiment, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": {**PAIRS, "speeds": [1.0, 0.9]}, "head": {"name": "joint", "args": KWON}}
    whole = run_experiment(experiment("whole", **settings))
    assert set(whole.metrics) == {"valid_loss", "valid_accuracy", "valid_eer"}
    run_experiment(experiment("parts", **settings), stop_after=3)
    run_experiment(experiment("parts", **settings))
    assert identical(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    assert last_state(tmp_path / "whole")["model"]["head.parts.0.weight"].shape == (8, 16)


@pytest.mark.parametrize("name", ["arc_margin_intertopk_subcenter", "sphere", "sphereface2"])
def test_heads_with_a_schedule_of_margins_train(experiment: Experiment, tmp_path: Path, name: str) -> None:
    result = run_experiment(experiment(head={"name": name}, trainer={"precision": "bf16"}))
    assert set(result.metrics) == {"valid_loss", "valid_accuracy", "valid_eer"}
    assert "not finite" not in log_of(tmp_path / "exp")


def test_posteriors_of_sub_centres_can_be_taught(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment("teacher", head={"name": "arc_margin_intertopk_subcenter"}, trainer={"steps": 1}))
    (checkpoint,) = list_checkpoints(tmp_path / "teacher" / "checkpoints")
    lessons = {"teacher": str(checkpoint), "label_weight": 1.0}
    task = EmbeddingTask(read_experiment(experiment(distillation=lessons, head={"name": "sphereface2"})))
    loss, metrics = task.loss(task.build_model().train(), next(task.train_batches(0, 1)))
    assert metrics["distill_label"] > 0
    assert loss.isfinite()
    classless = experiment(distillation=lessons, head={"name": "ge2e"}, data=PAIRS)
    with pytest.raises(ConfigError, match="ge2e has no classes"):
        EmbeddingTask(read_experiment(classless)).build_model()


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        (
            {"head": {"name": "triplet"}},
            "data.sampling: is 'shuffle', 4 chunks, 2 a speaker: triplet cannot compare them",
        ),
        ({"head": {"name": "ge2e"}, "data": {**PAIRS, "utterances_per_speaker": 1}}, "4 chunks, 1 a speaker"),
        ({"head": {"name": "ge2e"}, "data": {**PAIRS, "batch_size": 2}}, "2 chunks, 2 a speaker"),
        ({"head": {"name": "joint", "args": KWON}}, "joint cannot compare them"),
        ({"head": {"name": "centre"}}, "centre tells no speakers apart"),
        ({"head": {"name": "sphere"}, "margin": {"final": 1.2}}, "margin: is 1.2"),
    ],
)
def test_what_a_head_cannot_use_is_refused_before_anything_is_written(
    experiment: Experiment, tmp_path: Path, sections: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_experiment(experiment(**sections))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exp").exists()
