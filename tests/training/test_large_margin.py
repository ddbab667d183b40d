"""Large-margin fine-tuning: with the speed perturbation of the training before it, and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speakerkit.config import read_yaml
from speakerkit.data.lists import read_utterance_list, write_utterance_list
from speakerkit.embedding.task import EmbeddingTask
from speakerkit.training.checkpoint import load_checkpoint, save_checkpoint
from speakerkit.training.experiment import read_experiment, run_experiment
from speakerkit.training.publish import publish
from tests.command import speakerkit
from tests.conftest import REPOSITORY
from tests.training.states import last_state, log_of

Experiment = Callable[..., Path]

SPEAKERS, SPEEDS = 4, [1.0, 0.9, 1.1]


@pytest.fixture
def average(experiment: Experiment, tmp_path: Path) -> Path:
    """``average.pt`` of a run over 4 speakers at 3 speeds."""
    run_experiment(experiment("first", trainer={"steps": 2}, data={"valid_trials": None, "speeds": SPEEDS}))
    publish(tmp_path / "first", tmp_path / "first" / "bundle")
    return tmp_path / "first" / "checkpoints" / "average.pt"


def started(config: Path) -> dict[str, torch.Tensor]:
    return EmbeddingTask(read_experiment(config)).build_model().state_dict()


def test_with_speed_perturbation_the_whole_head_is_taken(experiment: Experiment, average: Path) -> None:
    model = load_checkpoint(average)["model"]
    taken = started(experiment("lm", init=str(average), data={"speeds": SPEEDS}))
    assert taken.keys() == model.keys()
    for name, tensor in taken.items():
        assert torch.equal(tensor, model[name])


@pytest.mark.parametrize(("speeds", "rows"), [([1.0], [0, 1, 2, 3]), ([1.0, 1.1], [0, 1, 2, 3, 8, 9, 10, 11])])
def test_without_it_the_rows_of_the_unperturbed_speakers_are_taken(
    experiment: Experiment, average: Path, tmp_path: Path, speeds: list[float], rows: list[int]
) -> None:
    head = load_checkpoint(average)["model"]["head.weight"]
    assert head.shape[0] == SPEAKERS * len(SPEEDS)
    config = experiment("lm", init=str(average), data={"speeds": speeds, "valid_trials": None}, trainer={"steps": 1})
    assert torch.equal(started(config)["head.weight"], head[rows])
    run_experiment(config)
    assert last_state(tmp_path / "lm")["model"]["head.weight"].shape[0] == len(rows)
    assert f"init: of the head's rows at the speeds {SPEEDS}, those at {speeds} were taken" in log_of(tmp_path / "lm")
    assert f"{len(rows)} of 12 of head.weight" in log_of(tmp_path / "lm")


def test_an_unperturbed_class_is_told_as_before(experiment: Experiment, average: Path) -> None:
    """The cut head gives an utterance the very scores that the whole one gives to the same speakers."""
    task = EmbeddingTask(read_experiment(experiment("lm", init=str(average), data={"speeds": [1.0]})))
    cut = task.build_model().eval()
    whole = EmbeddingTask(read_experiment(experiment("all", init=str(average), data={"speeds": SPEEDS}))).build_model()
    (batch,) = task.valid_batches()
    with torch.no_grad():
        embedding = cut.backbone(cut.fbank(batch["inputs"]))  # type: ignore[misc]
        torch.testing.assert_close(cut.head.scores(embedding), whole.eval().head.scores(embedding)[:, :SPEAKERS])


@pytest.mark.parametrize(
    "head",
    [
        {"name": "softmax"},
        {"name": "arc_margin_intertopk_subcenter", "args": {"K": 3}},
        {"name": "sphereface2"},
    ],
    ids=lambda head: head["name"],
)
def test_heads_with_other_tensors(experiment: Experiment, tmp_path: Path, head: dict[str, Any]) -> None:
    task = EmbeddingTask(read_experiment(experiment("first", head=head, data={"speeds": SPEEDS})))
    torch.manual_seed(0)
    model = task.build_model().eval()
    path = tmp_path / "average.pt"
    save_checkpoint(path, {"model": model.state_dict(), "fingerprint": task.fingerprint()})
    cut = EmbeddingTask(read_experiment(experiment("lm", head=head, init=str(path), data={"speeds": [1.0]})))
    embedding = torch.randn(5, model.backbone.embed_dim)
    with torch.no_grad():
        expected = model.head.scores(embedding)[:, :SPEAKERS]
        torch.testing.assert_close(cut.build_model().eval().head.scores(embedding), expected)


def test_what_does_not_fit_is_one_line(experiment: Experiment, average: Path, corpus: Path, tmp_path: Path) -> None:
    fewer = [item for item in read_utterance_list(corpus / "train.list") if item.speaker != "s3"]
    write_utterance_list(tmp_path / "fewer.list", fewer)
    alone = {"train": str(tmp_path / "fewer.list"), "valid": None, "valid_trials": None, "speeds": SPEEDS}
    bare = tmp_path / "bare.pt"
    save_checkpoint(bare, {"model": load_checkpoint(average)["model"]})
    for name, init, data, fault in (
        (
            "other speakers",
            average,
            alone,
            "was trained on other speakers than data.train names; start from its bundle",
        ),
        ("other speeds", average, {"speeds": [1.0, 0.8]}, r"was trained at the speeds [1.0, 0.9, 1.1], not at 0.8"),
        ("no fingerprint", bare, {"speeds": [1.0]}, "size mismatch for head.weight"),
    ):
        done = speakerkit("train", experiment(name, init=str(init), data=data))
        assert done.code == 2, name
        assert len(done.errors) == 1
        assert fault in done.errors[0], done.err
    bundle = average.parent.parent / "bundle"
    assert "head.weight" in started(experiment("bundle", init=str(bundle), data=alone))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples" / "voxceleb" / "conf").glob("*_lm.yaml")), ids=str)
def test_the_recipes_are_those_behind_the_published_numbers(path: Path) -> None:
    """600 frames, margin 0.5 throughout, and the speeds, architecture and head of the training before it."""
    tuned, first = read_yaml(path), read_yaml(path.with_name(path.name.replace("_lm", "")))
    assert tuned["data"]["chunk_frames"] == 600
    assert tuned["margin"]["initial"] == tuned["margin"]["final"] == 0.5
    assert tuned["optim"]["lr"] in (1e-4, "1e-4")
    assert tuned["schedule"]["final_lr"] in (2.5e-5, "2.5e-5")
    assert tuned["data"]["speeds"] == first["data"].get("speeds", SPEEDS) == SPEEDS
    assert tuned["model"] == first["model"]
    assert tuned["frontend"] == first["frontend"]
