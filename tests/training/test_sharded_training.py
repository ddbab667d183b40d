"""Classes split over two ranks: losses, gradients and trainings are those of the whole head, checkpoints are whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from speakerkit.errors import ConfigError
from speakerkit.training.checkpoint import checkpoint_path, load_checkpoint
from speakerkit.training.experiment import run_experiment
from speakerkit.training.publish import AVERAGE, publish
from tests.training.sharded import CLASSES, HEADS, OPTIMIZERS, class_trainer, outcome
from tests.training.states import identical, last_state, log_of

Experiment = Callable[..., Path]

LIMIT = 120  # seconds within which every rank has ended
EXACT = {"rtol": 1e-12, "atol": 1e-14}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of ``python -m tests.training.sharded`` on two ranks, and what each has left."""
    folder = tmp_path_factory.mktemp("sharded")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the ranks meet here, as under torchrun
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.sharded", str(folder)],
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(LIMIT) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", HEADS)
def test_two_shares_are_the_whole_head(two_ranks: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    whole = outcome(name, tied=False)
    shares = [left["heads"][f"{name}, False"] for left in two_ranks[1]]
    per_class = len(whole["rows"]["weight"]) // CLASSES
    assert [len(share["rows"]["weight"]) for share in shares] == [4 * per_class, 3 * per_class]
    for key, rows in whole["rows"].items():
        assert torch.equal(torch.cat([share["rows"][key] for share in shares]), rows)
    assert torch.equal(torch.cat([share["correct"] for share in shares]), whole["correct"])
    assert 0 < whole["correct"].sum() < len(whole["correct"])
    for share in shares:
        assert torch.equal(share["next"], whole["next"])
        torch.testing.assert_close(share["loss"], whole["loss"], **EXACT)
        torch.testing.assert_close(share["before"], whole["before"], **EXACT)
    for key, gradient in whole["gradients"].items():
        torch.testing.assert_close(torch.cat([share["gradients"][key] for share in shares]), gradient, **EXACT)


@pytest.mark.parametrize("name", HEADS)
def test_as_many_of_equal_classes_are_penalised(two_ranks: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    whole = outcome(name, tied=True)
    for left in two_ranks[1]:
        torch.testing.assert_close(left["heads"][f"{name}, True"]["loss"], whole["loss"], **EXACT)
        torch.testing.assert_close(left["heads"][f"{name}, True"]["before"], whole["before"], **EXACT)


def test_of_equal_scores_the_first_class_wins(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [left["tie"].tolist() for left in two_ranks[1]] == [[0, 0, 0]] * 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_in_shards_is_that_of_the_whole(
    two_ranks: tuple[Path, list[dict[str, Any]]], optimizer: str
) -> None:
    folder = two_ranks[0]
    plain, sharded = (last_state(folder / f"{optimizer}-{name}") for name in ("plain", "sharded"))
    close = {"rtol": 1e-4, "atol": 1e-5}
    for part in ("model", "optimizer", "ema", "metrics"):
        torch.testing.assert_close(sharded[part], plain[part], **close)
    assert sharded["metrics"].keys() == {"valid_loss", "valid_accuracy"}
    assert sharded["skipped"] == plain["skipped"] == 1
    assert sharded["model"]["head.weight"].shape == (2 * CLASSES, 4)
    started = load_checkpoint(checkpoint_path(folder / f"{optimizer}-plain" / "checkpoints", 2))
    assert not torch.allclose(started["model"]["head.weight"], plain["model"]["head.weight"], **close)
    shown = [
        re.findall(r"train \d/5  loss (\S+)  accuracy (\S+)  grad_norm (\S+)", log_of(folder / f"{optimizer}-{name}"))
        for name in ("plain", "sharded")
    ]
    assert len(shown[0]) == len(shown[1]) == 4  # one of the five is skipped
    for one, other in zip(*shown, strict=True):
        assert [float(value) for value in one] == pytest.approx([float(value) for value in other], rel=1e-3)
        assert optimizer == "frozen" or float(one[2]) > 0.3  # what is clipped


def test_each_rank_holds_its_share_only(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (left["sizes"] for left in two_ranks[1])
    assert first["plain"]["head.weight"] == 2 * 7
    assert first["sharded"]["head.weight"] == 2 * 4
    assert second["sharded"]["head.weight"] == 2 * 3
    assert "head.weight: 8 of 14 rows here, split over 2 ranks" in log_of(two_ranks[0] / "sgd-sharded")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stop_and_resume_is_bit_identical(two_ranks: tuple[Path, list[dict[str, Any]]], optimizer: str) -> None:
    whole, parts = (last_state(two_ranks[0] / f"{optimizer}-{name}") for name in ("sharded", "parts"))
    assert whole["step"] == 5
    assert identical(whole, parts)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_process_takes_up_what_two_left(
    two_ranks: tuple[Path, list[dict[str, Any]]], optimizer: str, tmp_path: Path
) -> None:
    states = []
    for name in ("plain", "sharded"):
        shutil.copytree(two_ranks[0] / f"{optimizer}-{name}", tmp_path / name)
        checkpoint_path(tmp_path / name / "checkpoints", 5).unlink()
        trainer = class_trainer(tmp_path / name, optimizer, sharded=name == "sharded")
        trainer.resume()
        assert trainer.step == 4
        trainer.fit()
        states.append(last_state(tmp_path / name))
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[0]["ema"], states[1]["ema"], rtol=1e-4, atol=1e-5)


def test_a_distilled_posterior_needs_the_whole_head(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment("teacher", data={"valid_trials": None}, trainer={"steps": 1}))
    publish(tmp_path / "teacher", tmp_path / "bundle")
    lessons = {"teacher": str(tmp_path / "teacher" / "checkpoints" / AVERAGE), "label_weight": 0.5}
    with pytest.raises(ConfigError, match=r"distillation\.label_weight: needs the scores of all classes"):
        run_experiment(experiment(distillation=lessons, head_shards=True))


def train(config: Path) -> None:
    """``speakerkit train`` on two ranks."""
    words = [sys.executable, "-m", "speakerkit", "train", str(config), "--nproc", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_experiment_in_shards_and_its_large_margin_fine_tuning(experiment: Experiment, tmp_path: Path) -> None:
    """Through the command: four speakers at three speeds, then on from their average at one, whole and in shards."""
    gentle = {"grad_clip": 1.0, "ema": 0.5, "save_every": 3, "average": 2}  # rounding must not be blown up
    shared: dict[str, Any] = {"optim": {"lr": 0.002}, "trainer": gentle}
    train(experiment("first", **shared, head_shards=True))
    publish(tmp_path / "first", tmp_path / "bundle")
    shared["init"] = str(tmp_path / "first" / "checkpoints" / AVERAGE)
    shared["margin"] = {"initial": 0.5, "final": 0.5}
    for name in ("whole", "shards"):
        train(experiment(name, **shared, head_shards=name == "shards", data={"speeds": [1.0]}))
    first, whole, shards = (last_state(tmp_path / name) for name in ("first", "whole", "shards"))
    assert first["model"]["head.weight"].shape == (12, 16)
    assert shards["model"]["head.weight"].shape == (4, 16)
    assert shards["metrics"].keys() == {"valid_loss", "valid_accuracy", "valid_eer"}
    torch.testing.assert_close(shards["model"], whole["model"], rtol=1e-4, atol=1e-5)
    notes = [re.findall(r"init: (.*)", log_of(tmp_path / name)) for name in ("whole", "shards")]
    assert notes[0] == notes[1]
    assert "4 of 12 of head.weight" in notes[0][-1]
