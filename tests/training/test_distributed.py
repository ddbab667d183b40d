"""Two ranks over gloo: the same as one process with the doubled batch, and no way to hang or to end without a word."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from speakerkit.data.lists import read_utterance_list, write_utterance_list
from speakerkit.training.checkpoint import list_checkpoints, load_checkpoint
from speakerkit.training.experiment import run_experiment
from tests.training.states import identical, last_state, log_of

Experiment = Callable[..., Path]

LIMIT = 180  # seconds after which a rank that still runs hangs


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command to its end; one that hangs fails the test."""
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=LIMIT, check=False, **options
    )


def ended_clearly(done: subprocess.CompletedProcess[str], message: str) -> None:
    """Assert exit code 2, with one message and no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stderr
    assert re.search(message, errors[0]), done.stderr


def test_two_ranks_equal_one_process_with_the_doubled_batch(tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the ranks meet here, as under torchrun
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.toy", str(tmp_path / "two"), "4"],
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    assert [process.wait(LIMIT) for process in ranks] == [0, 0]
    done = run("-m", "tests.training.toy", tmp_path / "one", "8")
    assert done.returncode == 0, done.stderr
    first, second, alone = (
        torch.load(tmp_path / name, weights_only=True) for name in ("two/rank0.pt", "two/rank1.pt", "one/rank0.pt")
    )
    assert identical(first["model"], second["model"])
    assert identical(first["ema"], second["ema"])
    assert sorted(first["drawn"] + second["drawn"]) == alone["drawn"] == list(range(32))
    assert not set(first["drawn"]) & set(second["drawn"])
    torch.testing.assert_close(first["model"], alone["model"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["ema"]["model"], alone["ema"]["model"], rtol=1e-5, atol=1e-6)
    shown = [re.findall(r"train \d/2  loss (\S+)  grad_norm (\S+)", log_of(tmp_path / run)) for run in ("two", "one")]
    for two, one in zip(*shown, strict=True):
        assert [float(value) for value in two] == pytest.approx([float(value) for value in one], rel=1e-3)


def test_train_nproc_2(experiment: Experiment, corpus: Path, tmp_path: Path) -> None:
    """Three shards on two ranks with more loading processes than shards each; then again to the end, in one process."""
    data = {"format": "shard", "train": str(corpus / "shards" / "shard.list"), "workers": 2, "valid_trials": None}
    config = experiment(data=data, trainer={"save_every": 3})
    done = run("-m", "speakerkit", "train", config, "--nproc", "2", "--stop-after", "4")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("step 4 of 6") == 1
    assert "2 rank(s)" in log_of(tmp_path / "exp")
    state = last_state(tmp_path / "exp")
    assert state["step"] == 4
    assert state["task"]["position"] == 4 * 4 * 2  # equal steps on both ranks
    assert run_experiment(config).step == 6  # one process takes up what two left


@pytest.mark.slow
def test_plain_torchrun(experiment: Experiment, tmp_path: Path) -> None:
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "speakerkit", "train", experiment())
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 6 of 6") == 1
    assert last_state(tmp_path / "exp")["task"]["position"] == 48


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit(experiment: Experiment, tmp_path: Path) -> None:
    settings = {"data": {"workers": 1}, "trainer": {"valid_every": 3}}
    for name, stops in (("whole", ()), ("parts", ("2",))):
        config = experiment(name, **settings)
        for words in [*(("--stop-after", stop) for stop in stops), ()]:
            done = run("-m", "speakerkit", "train", config, "--nproc", "2", *words)
            assert done.returncode == 0, done.stderr
    assert identical(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))


@pytest.mark.slow
def test_two_ranks_that_distil_have_the_same_weights(
    experiment: Experiment, torch_bundle: Path, tmp_path: Path
) -> None:
    """With a projection, an average, and a frozen part; each rank has its own teacher and its own batches."""
    config = experiment(
        distillation={"teacher": str(torch_bundle), "embedding": "mse"},
        model={"args": {"channels": 16, "joined": 24, "embed_dim": 12}},
        trainer={"ema": 0.9},
        optim={"lr_factors": {"backbone.layer1": 0.0}},
    )
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.training.ranked", config, tmp_path)
    done = run(*words)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["model"]["projection.weight"].shape == (16, 12)
    assert identical(first, second)
    assert last_state(tmp_path / "exp")["task"]["position"] == 48


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [("--nproc", "2"), ()])
def test_an_existing_folder_with_resume_none(experiment: Experiment, tmp_path: Path, launcher: tuple[str, ...]) -> None:
    config = experiment(trainer={"steps": 2})
    run_experiment(config)
    before = {path: path.read_bytes() for path in (tmp_path / "exp").rglob("*") if path.is_file()}
    done = run("-m", "speakerkit", "train", config, "--resume", "none", *launcher)
    ended_clearly(done, "holds checkpoints of an earlier run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "exp").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_unreadable_shard(experiment: Experiment, corpus: Path, tmp_path: Path) -> None:
    shards = (corpus / "shards" / "shard.list").read_text().split()
    (tmp_path / "bad.tar").write_bytes(Path(shards[0]).read_bytes()[:1000])
    (tmp_path / "shard.list").write_text("\n".join([*shards[1:], str(tmp_path / "bad.tar")]))
    data = {"format": "shard", "train": str(tmp_path / "shard.list"), "valid": None, "valid_trials": None}
    done = run("-m", "speakerkit", "train", experiment(data=data), "--nproc", "2")
    ended_clearly(done, r"bad\.tar: ")


@pytest.mark.slow
def test_bad_files_that_one_rank_meets(experiment: Experiment, corpus: Path, tmp_path: Path) -> None:
    entries = read_utterance_list(corpus / "train.list")
    for entry in entries[:3]:
        (tmp_path / Path(entry.wav).name).write_text("not audio")
    entries = [replace(entry, wav=str(tmp_path / Path(entry.wav).name)) for entry in entries[:3]] + entries[3:]
    write_utterance_list(tmp_path / "train.list", entries)
    data = {"train": str(tmp_path / "train.list"), "workers": 1, "valid_trials": None}
    config = experiment(data=data, trainer={"steps": 10000})
    done = run("-m", "speakerkit", "train", config, "--nproc", "2")
    ended_clearly(done, "% of what was drawn cannot be read")


@pytest.mark.slow
def test_a_device_that_is_not_there_is_said_once(experiment: Experiment) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = run("-m", "speakerkit", "train", experiment(trainer={"device": "cuda"}), "--nproc", "2")
    ended_clearly(done, "device cuda: cannot be used")


@pytest.mark.slow
def test_data_smaller_than_one_batch_repeats_with_a_warning(experiment: Experiment, tmp_path: Path) -> None:
    config = experiment(data={"batch_size": 32}, trainer={"steps": 2})
    done = run("-m", "speakerkit", "train", config, "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("12 utterances are fewer than a step takes") == 1


@pytest.mark.slow
def test_nan_on_one_rank_is_named_by_the_other(experiment: Experiment, tmp_path: Path) -> None:
    settings = {"max_bad_steps": 2, "steps": 20}
    config = experiment(optim={"lr": 1e30}, schedule={"name": "constant", "warmup_steps": 0}, trainer=settings)
    done = run("-m", "speakerkit", "train", config, "--nproc", "2")
    ended_clearly(done, "not finite")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_in_the_middle(experiment: Experiment, tmp_path: Path, victim: int) -> None:
    config = experiment(data={"workers": 1}, trainer={"steps": 100000, "save_every": 20, "log_every": 5})
    process = subprocess.Popen(
        [sys.executable, "-m", "speakerkit", "train", str(config), "--nproc", "2"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("train 60/"):
            break
    ranks = [child for child in children_of(process.pid) if b"spawn_main" in command_of(child)]
    assert len(ranks) == 2, lines
    everyone = [process.pid, *ranks, *(grandchild for rank in ranks for grandchild in children_of(rank))]
    os.kill(ranks[victim], signal.SIGKILL)
    began = time.monotonic()
    _, rest = process.communicate(timeout=LIMIT)
    done = subprocess.CompletedProcess([], process.returncode, stderr="".join(lines) + rest)
    ended_clearly(done, time.monotonic() - began, r"rank \d: was killed or crashed")
    wait_for_the_end_of(everyone)
    assert load_checkpoint(list_checkpoints(tmp_path / "exp" / "checkpoints")[-1])["step"] >= 40


@pytest.mark.slow
def test_stopping_the_launcher_saves_and_ends_all(experiment: Experiment, tmp_path: Path) -> None:
    config = experiment(data={"workers": 1}, trainer={"steps": 100000, "log_every": 5})
    process = subprocess.Popen(
        [sys.executable, "-m", "speakerkit", "train", str(config), "--nproc", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train 20/"):
            break
    began = time.monotonic()
    ranks = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all of them, and the launcher passes its own on
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert time.monotonic() - began < 25  # the launcher kills after 30 s whatever has not ended by itself
    assert "death signal" not in stderr
    assert re.search(r"stopped at step \d+; the same command goes on from there", stderr)
    assert last_state(tmp_path / "exp")["step"] >= 20
    wait_for_the_end_of(ranks)


def children_of(process: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{process}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def command_of(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def wait_for_the_end_of(processes: list[int]) -> None:
    """Fail where one of them is still there after some seconds."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        left = [process for process in processes if Path(f"/proc/{process}").exists() and not is_zombie(process)]
        if not left:
            return
        time.sleep(0.2)
    pytest.fail(f"still running: {left}")


def is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
