"""Checkpoints: whole or not at all, never code, kept by rule, averaged as in float64."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speakerkit.errors import BundleError
from speakerkit.training.checkpoint import (
    average_states,
    checkpoint_path,
    keep_best,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune,
    save_checkpoint,
)


def state(step: int, value: float = 0.0) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.full((3, 2), value), "count": torch.tensor(step)}}


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 7)
    save_checkpoint(path, {**state(7, 1.5), "nested": {"bad": {"a": "why"}, "betas": (0.9, 0.99), "none": None}})
    loaded = load_checkpoint(path)
    assert loaded["step"] == 7
    assert loaded["nested"] == {"bad": {"a": "why"}, "betas": (0.9, 0.99), "none": None}
    assert torch.equal(loaded["model"]["weight"], torch.full((3, 2), 1.5))


KILLED_IN_SAVING = """
import os, sys, torch
from pathlib import Path
from speakerkit.training.checkpoint import save_checkpoint
class Dies:
    def __reduce__(self):
        os.kill(os.getpid(), 9)
save_checkpoint(Path(sys.argv[1]), {"model": {"weight": torch.zeros(1000, 1000)}, "end": Dies()})
"""


def test_killed_in_a_save_leaves_the_last_good_one(tmp_path: Path) -> None:
    save_checkpoint(checkpoint_path(tmp_path, 1), state(1))
    save_checkpoint(checkpoint_path(tmp_path, 2), state(2, 2.0))
    for step in (2, 3):  # over an older one, and beside it
        done = subprocess.run(
            [sys.executable, "-c", KILLED_IN_SAVING, checkpoint_path(tmp_path, step)], env={**os.environ}, check=False
        )
        assert done.returncode == -9
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 2)]
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 2
    assert found[1]["model"]["weight"].eq(2.0).all()


def test_a_failing_disk_is_one_clear_error_and_leaves_the_older_one(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, state(1))
    before = path.read_bytes()
    with pytest.raises(BundleError, match="cannot be written"):
        save_checkpoint(Path("/proc/nothing/step.pt"), state(2))
    tiny = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    code = tiny + KILLED_IN_SAVING.replace('"end": Dies()', '"end": 0')
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert "BundleError" in done.stderr.splitlines()[-1]
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    plain, zipped = checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 2)
    plain.write_bytes(pickle.dumps({"model": Bomb()}))
    torch.save({"model": Bomb()}, zipped)
    for path in (plain, zipped):
        with pytest.raises(BundleError, match="refused"):
            load_checkpoint(path)
    with pytest.raises(BundleError, match="refused"):
        newest_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_newest_one_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(checkpoint_path(tmp_path, 1), state(1))
    save_checkpoint(checkpoint_path(tmp_path, 2), state(2))
    newest = checkpoint_path(tmp_path, 2)
    newest.write_bytes(newest.read_bytes()[:-50])
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    assert "going on from" in caplog.text


def test_damage_is_a_bundle_error_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    save_checkpoint(path, state(1))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(150):
        damaged = bytearray(data)
        if number % 3:
            for _ in range(1 + number % 7):
                damaged[rng.integers(len(damaged))] = int(rng.integers(256))
        else:
            damaged = damaged[: int(rng.integers(len(damaged)))]
        path.write_bytes(damaged)
        with suppress(BundleError):  # anything else fails the test
            load_checkpoint(path)
    for text in (
        b"",
        b"not a checkpoint",
        b"\x80\x02}q\x00.",
        b"\x80\x04K\x01.",
        b"exp_dir: exp\nseed: 1\n",
        b"optim: {}\n",
    ):
        path.write_bytes(text)
        with pytest.raises(BundleError):
            average_states([path])
    with pytest.raises(BundleError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        save_checkpoint(checkpoint_path(tmp_path, step), state(step))
    keep_best(tmp_path, checkpoint_path(tmp_path, 10))
    (tmp_path / "step_extra.pt").write_bytes(b"mine")
    prune(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000020.pt", "step_00000100.pt"]
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 10
    assert (tmp_path / "step_extra.pt").exists()


def test_average_is_that_of_float64(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((10, 50, 3)) * 10.0 ** rng.integers(-6, 6, (10, 50, 1))).astype(np.float32)
    paths = [checkpoint_path(tmp_path, step) for step in range(10)]
    for step, path in enumerate(paths):
        model = {"weight": torch.from_numpy(weights[step]), "count": torch.tensor(step)}
        save_checkpoint(path, {"step": step, "model": model})
    averaged = average_states(paths)
    expected = weights.astype(np.float64).mean(axis=0).astype(np.float32)
    assert averaged["weight"].dtype == torch.float32
    np.testing.assert_array_equal(averaged["weight"].numpy(), expected)
    assert averaged["count"] == 9  # a counter is that of the last


def test_averaging_another_architecture_names_the_file(tmp_path: Path) -> None:
    save_checkpoint(checkpoint_path(tmp_path, 1), state(1))
    save_checkpoint(checkpoint_path(tmp_path, 2), {"step": 2, "model": {"weight": torch.zeros(4, 2)}})
    with pytest.raises(BundleError, match=r"step_00000002.*other tensors"):
        average_states(list_checkpoints(tmp_path))
    with pytest.raises(BundleError, match="no checkpoint"):
        average_states([])
