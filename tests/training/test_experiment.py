"""Embedding experiments from a configuration file: exact resumption, signals, bad files, refusals in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from speakerkit.cli.main import main
from speakerkit.config import read_yaml
from speakerkit.data.lists import Utterance, read_utterance_list, write_utterance_list
from speakerkit.embedding.task import EmbeddingTask
from speakerkit.errors import ConfigError, DataError, TrainingError
from speakerkit.training.checkpoint import list_checkpoints, load_checkpoint
from speakerkit.training.experiment import read_experiment, run_experiment
from tests.training.states import identical, last_state, log_of

Experiment = Callable[..., Path]


def train(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """``speakerkit train WORDS`` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["speakerkit", "train", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_embedding_stop_and_resume_is_bit_identical(experiment: Experiment, tmp_path: Path, workers: int) -> None:
    accumulate = 2 if workers else 1
    sections = {"data": {"workers": workers}, "trainer": {"accumulate": accumulate, "valid_every": 4}}
    run_experiment(experiment("whole", data={"workers": 0}, trainer=sections["trainer"]))
    parts = experiment("parts", **sections)
    run_experiment(parts, stop_after=3)
    assert last_state(tmp_path / "parts")["step"] == 3
    run_experiment(parts)
    whole, resumed = last_state(tmp_path / "whole"), last_state(tmp_path / "parts")
    assert identical(whole, resumed)
    assert whole["task"]["position"] == 6 * 4 * accumulate
    schedule = [
        re.findall(r"train (\d+)/6 .* lr (\S+)  margin (\S+)", log_of(tmp_path / run)) for run in ("whole", "parts")
    ]
    assert schedule[0] == schedule[1]
    assert [float(margin) for _, _, margin in schedule[0]] == sorted(float(margin) for _, _, margin in schedule[0])


@pytest.mark.parametrize("kind", ["raw", "shard"])
def test_loading_processes_change_nothing(experiment: Experiment, corpus: Path, kind: str) -> None:
    lists = {"raw": corpus / "train.list", "shard": corpus / "shards" / "shard.list"}
    streams = []
    for workers in (0, 1, 3):
        data = {"workers": workers, "train": str(lists[kind]), "format": kind, "valid_trials": None}
        task = EmbeddingTask(read_experiment(experiment(data=data)))
        batches = task.train_batches(0, 1)
        streams.append([next(batches) for _ in range(6)])
        assert task.position == 24
    for other in streams[1:]:
        assert identical(streams[0], other)


def test_what_a_run_leaves(experiment: Experiment, tmp_path: Path) -> None:
    result = run_experiment(experiment())
    assert set(result.metrics) == {"valid_loss", "valid_accuracy", "valid_eer"}
    folder = tmp_path / "exp"
    assert read_yaml(folder / "config.yaml")["seed"] == 7
    assert (folder / "speakers.txt").read_text().split() == ["s0", "s1", "s2", "s3"]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert list((folder / "tensorboard").iterdir())
    first = log_of(folder).splitlines()[0]
    assert "scale rule" in first
    assert "waiting" in log_of(folder)


def test_validation_is_without_margin_and_without_chance(experiment: Experiment) -> None:
    task = EmbeddingTask(read_experiment(experiment()))
    torch.manual_seed(0)
    model = task.build_model().eval()
    (batch,) = task.valid_batches()
    with torch.no_grad():
        losses = []
        for margin in (0.0, 0.3):
            model.head.update(margin)
            losses.append(task.loss(model, batch)[0])
        assert losses[0] == losses[1]
        assert task.loss(model.train(), batch)[0] > losses[0]
    assert identical([batch], list(task.valid_batches()))
    assert all(label < 4 for label in batch["labels"].tolist())  # at their own speed


def test_sigterm_saves_and_the_same_command_goes_on(experiment: Experiment, tmp_path: Path) -> None:
    """To the whole group of processes, as schedulers do: the loading one must not die before the trainer has saved."""
    steps = {"steps": 400, "valid_every": 0, "log_every": 10}
    config = experiment("killed", data={"workers": 1}, trainer=steps)
    command = [sys.executable, "-m", "speakerkit", "train", str(config)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if " 10/400 " in line or line.startswith("train 10/400"):
            break
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    state = last_state(tmp_path / "killed")
    assert 10 <= state["step"] < 400
    assert f"stopped at step {state['step']}" in stderr

    stop = state["step"] + 5
    run_experiment(config, stop_after=stop)
    whole = experiment("whole", trainer=steps)
    run_experiment(whole, stop_after=stop)
    assert identical(last_state(tmp_path / "whole"), last_state(tmp_path / "killed"))


def test_refusals_exit_2_in_one_line_and_overwrite_nothing(
    experiment: Experiment,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = experiment(trainer={"steps": 2})
    assert train(monkeypatch, config) == 0
    assert train(monkeypatch, config) == 0
    assert "training is complete: step 2 of 2" in capsys.readouterr().err
    before = {path: path.read_bytes() for path in (tmp_path / "exp").rglob("*") if path.is_file()}

    assert train(monkeypatch, config, "--resume", "none") == 2
    stderr = capsys.readouterr().err
    assert "holds checkpoints of an earlier run" in stderr
    assert stderr.count("\n") == 1

    fewer = [item for item in read_utterance_list(corpus / "train.list") if item.speaker != "s3"]
    write_utterance_list(tmp_path / "fewer.list", fewer)
    words = (
        "--set",
        f"data.train={tmp_path}/fewer.list",
        "--set",
        "data.valid=null",
        "--set",
        "data.valid_trials=null",
    )
    assert train(monkeypatch, config, *words) == 2
    assert "another speaker list" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "exp").rglob("*") if path.is_file()}


def test_nan_in_a_row_exits_2(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_bad_steps": 2, "steps": 20, "save_every": 1}
    config = experiment(optim={"lr": 1e30}, schedule={"name": "constant", "warmup_steps": 0}, trainer=settings)
    assert train(monkeypatch, config) == 2
    stderr = capsys.readouterr().err
    assert "2 steps in a row" in stderr or "is not finite; nothing was saved" in stderr
    assert "Traceback" not in stderr
    for path in list_checkpoints(tmp_path / "exp" / "checkpoints"):
        assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(path)["model"].values())


@pytest.fixture
def partly_bad(corpus: Path, tmp_path: Path) -> Callable[[int, int], str]:
    """``partly_bad(good, bad)``: a list of that many entries."""

    def write(good: int, bad: int) -> str:
        known = read_utterance_list(corpus / "all.list")
        entries = [Utterance(f"g{number}", f"s{number % 4}", known[number % 16].wav) for number in range(good)]
        entries += [Utterance(f"b{number}", "s0", str(tmp_path / f"none{number}.wav")) for number in range(bad)]
        write_utterance_list(tmp_path / "mixed.list", entries)
        return str(tmp_path / "mixed.list")

    return write


def test_a_few_bad_files_are_counted_and_passed_over(
    experiment: Experiment, tmp_path: Path, partly_bad: Callable[[int, int], str]
) -> None:
    data = {"train": partly_bad(149, 1), "valid": None, "valid_trials": None, "batch_size": 32}
    run_experiment(experiment(data=data, trainer={"steps": 10}))
    state = last_state(tmp_path / "exp")["task"]
    assert list(state["bad"]) == ["b0"]
    assert state["bad_draws"] == 2
    assert state["drawn"] == 322
    assert log_of(tmp_path / "exp").count("skipped b0") == 1
    assert "no such file" in log_of(tmp_path / "exp")


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_one_per_cent_of_bad_files_stop_the_run(
    experiment: Experiment, partly_bad: Callable[[int, int], str], workers: int
) -> None:
    data = {"train": partly_bad(90, 10), "valid": None, "valid_trials": None, "batch_size": 32, "workers": workers}
    with pytest.raises(TrainingError, match=r"% of what was drawn cannot be read .*none\d+.wav: no such file"):
        run_experiment(experiment(data=data, trainer={"steps": 100}))


def test_only_bad_files_stop_the_run_at_once(experiment: Experiment, partly_bad: Callable[[int, int], str]) -> None:
    data = {"train": partly_bad(0, 3), "valid": None, "valid_trials": None, "workers": 1}
    with pytest.raises(DataError, match="in a row cannot be read"):
        run_experiment(experiment(data=data))


def test_feature_lists_train_and_validate(experiment: Experiment, corpus: Path, tmp_path: Path) -> None:
    kaldiio = pytest.importorskip("kaldiio")
    from speakerkit.audio import load_audio
    from speakerkit.features import FrontEnd, fbank

    for name in ("train", "valid"):
        entries = read_utterance_list(corpus / f"{name}.list")
        with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/{name}.ark,{tmp_path}/{name}.scp") as writer:
            for entry in entries:
                writer(entry.key, fbank(load_audio(entry.wav).samples, FrontEnd(num_mels=20)))
        places = dict(line.split() for line in (tmp_path / f"{name}.scp").read_text().splitlines())
        write_utterance_list(
            tmp_path / f"{name}.list",
            [Utterance(entry.key, entry.speaker, feat=places[entry.key]) for entry in entries],
        )
    data = {"format": "feat", "train": str(tmp_path / "train.list"), "augment": []}
    result = run_experiment(experiment(data={**data, "valid": str(tmp_path / "valid.list")}))
    assert set(result.metrics) == {"valid_loss", "valid_accuracy", "valid_eer"}
    with pytest.raises(DataError, match="is not an entry of a feat list"):
        run_experiment(experiment("other", data=data))


def test_balanced_batches(experiment: Experiment) -> None:
    data = {"sampling": "balanced", "utterances_per_speaker": 2}
    batches = EmbeddingTask(read_experiment(experiment(data=data))).train_batches(0, 1)
    for _ in range(10):
        labels = next(batches)["labels"].tolist()
        assert labels[::2] == labels[1::2]
        assert len({label % 4 for label in labels}) == 2


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"speeds": [0.9, 1.0]}, "first factor is 1.0"),
        ({"speeds": [1.0, 1.0]}, "distinct"),
        ({"sampling": "balanced", "utterances_per_speaker": 3}, "multiple"),
        ({"workers": -1}, "negative"),
        ({"batch_size": 0}, "positive"),
    ],
)
def test_impossible_data_settings_are_refused(experiment: Experiment, data: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_experiment(experiment(data=data))


def test_commands_in_lists_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "pipes.list").write_text(json.dumps({"key": "k", "spk": "s0", "wav": f"touch {tmp_path}/ran |"}))
    with pytest.raises(DataError, match="is a command"):
        run_experiment(experiment(data={"train": str(tmp_path / "pipes.list")}))
    assert not (tmp_path / "ran").exists()


def test_a_killed_loading_process_is_a_clear_error(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    config = experiment(data={"workers": 1}, trainer={"steps": 100000})
    monkeypatch.setattr(EmbeddingTask, "start_step", _kill_a_loader)
    with pytest.raises(TrainingError, match="a loading process ended"):
        run_experiment(config)


def _kill_a_loader(self: EmbeddingTask, model: Any, step: int) -> dict[str, float]:
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()
    time.sleep(0.05)
    return {}


def test_average_of_a_run_is_a_bundle(experiment: Experiment, tmp_path: Path) -> None:
    from speakerkit.bundle import read_bundle
    from speakerkit.training.publish import publish

    run_experiment(experiment(trainer={"save_every": 2, "average": 3}))
    bundle = publish(tmp_path / "exp", tmp_path / "bundle")
    checkpoints = [load_checkpoint(path) for path in list_checkpoints(tmp_path / "exp" / "checkpoints")]
    assert [state["step"] for state in checkpoints] == [2, 4, 6]
    assert bundle.config.provenance["averaged"] == [f"step_{step:08d}.pt" for step in (2, 4, 6)]
    for name, tensor in read_bundle(tmp_path / "bundle").tensors().items():
        if tensor.is_floating_point():
            parts = [state["model"][f"backbone.{name}"].double() for state in checkpoints]
            torch.testing.assert_close(tensor, torch.stack(parts).mean(dim=0).float())
    assert yaml.safe_load((tmp_path / "bundle" / "config.yaml").read_text())["provenance"]["seed"] == 7
