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

import numpy as np
import pytest
import soundfile
import torch
import yaml

from speakerkit.cli.main import main
from speakerkit.config import read_yaml
from speakerkit.data.lists import Utterance, read_utterance_list, write_utterance_list
from speakerkit.embedding.task import EmbeddingTask, whole_features
from speakerkit.errors import ConfigError, DataError, TrainingError
from speakerkit.features import features
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
        ({"speeds": [1.0, 30.0]}, "data.speeds .*0.5 to 2.0"),
        ({"speeds": [1.0, 0.4]}, "data.speeds .*0.5 to 2.0"),
        ({"speeds": []}, "first factor is 1.0"),
        ({"workers": -1}, "data.workers is -1"),
        ({"max_bad_share": 1.5}, "data.max_bad_share is 1.5"),
        ({"spec_augment": {"prob": 1.5}}, "spec_augment.prob is 1.5"),
        ({"spec_augment": {"time_width": -1}}, "spec_augment.time_width is -1"),
        ({"spec_augment": {"freq_masks": -1}}, "spec_augment.freq_masks is -1"),
        ({"batch_size": 0}, "positive"),
    ],
)
def test_impossible_data_settings_are_refused(experiment: Experiment, data: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_experiment(experiment(data=data))


@pytest.mark.parametrize(
    "override",
    [
        *("optim.lr=0", "optim.lr=-1", "optim.betas=[0.9, 1.0]", "optim.weight_decay=-1", "optim.momentum=1"),
        *("trainer.threads=-1", "trainer.grad_clip=-1", "trainer.valid_every=-1", "trainer.save_every=-1"),
        *("schedule.warmup_steps=-1", "schedule.final_lr=-1", "margin.start_step=-1", "margin.end_step=-1"),
        *("margin.initial=1.6", "margin.final=-0.1", "frontend.dither=-1", "optim.reference_batch=-1"),
    ],
)
def test_settings_out_of_range_are_refused(experiment: Experiment, override: str) -> None:
    path = experiment(schedule={"name": "cosine"})
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{key.partition('.')[0]}.* (is|goes from) "):
        read_experiment(path, [override])


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("model.args={channels: -8}", "model.args: do not build a ECAPA_TDNN"),
        ("model.args={channels: x}", "model.args: do not build a ECAPA_TDNN"),
        ("model.args.embed_dim=0", "model.args: do not build a ECAPA_TDNN"),
        ("model.args.feat_dim=21", "frontend.num_mels: is 20, that of its model 21"),
        ("head={name: arc_margin, args: {scale: abc}}", "scale is 'abc'"),
        ("head={name: arc_margin, args: {scale: 0}}", "scale is 0"),
        ("init={config}", "is refused"),
        ("init={empty}", "is no checkpoint of a training run"),
    ],
)
def test_what_builds_no_model_exits_2_in_one_line(
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    override: str,
    fault: str,
) -> None:
    config = experiment()
    torch.save({"weights": {}}, tmp_path / "empty.pt")
    override = override.replace("{config}", str(config)).replace("{empty}", str(tmp_path / "empty.pt"))
    assert train(monkeypatch, config, "--set", override) == 2
    stderr = capfd.readouterr().err
    assert fault in stderr
    assert stderr.count("\n") == 1, stderr


def test_resuming_from_a_text_file_exits_2(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = experiment()
    assert train(monkeypatch, config, "--resume", config) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("optim.lr=0.5", "optim"),
        ("optim.name=adam", "optim"),
        ("schedule.final_lr=0.01", "schedule"),
        ("margin.final=0.3", "margin"),
        ("data.batch_size=8", "data"),
        ("data.spec_augment.prob=0.1", "data"),
        ("data.augment=[]", "data"),
        ("trainer.grad_clip=1", "trainer"),
    ],
)
@pytest.mark.parametrize("stop", [None, 2])
def test_a_run_never_reports_what_it_was_not_trained_with(
    experiment: Experiment,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    name: str,
    stop: int | None,
) -> None:
    config = experiment(trainer={"steps": 3}, data={"valid_trials": None})
    run_experiment(config, stop_after=stop)
    before = {path: path.read_bytes() for path in (tmp_path / "exp").rglob("*") if path.is_file()}
    assert train(monkeypatch, config, "--set", override) == 2
    assert f"was trained with another {name} (" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "exp").rglob("*") if path.is_file()}
    free = ["data.workers=1", "data.max_bad_share=0.5", f"data.train={corpus}/all.list", "trainer.log_every=2"]
    assert run_experiment(config, free).step == 3
    reported = read_yaml(tmp_path / "exp" / "config.yaml")["data"]["train"]
    assert Path(reported).name == ("all.list" if stop else "train.list")


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


def test_a_bundle_accepts_nothing_shorter_than_its_model_takes(experiment: Experiment, tmp_path: Path) -> None:
    from speakerkit.embedding.model import backbone_for
    from speakerkit.training.publish import publish

    config = experiment(frontend={"min_duration": 0.01}, trainer={"steps": 1})
    run_experiment(config)
    wanted = read_experiment(config)
    frames = backbone_for(wanted.model, wanted.frontend).min_frames
    frontend = publish(tmp_path / "exp", tmp_path / "bundle").config.frontend
    assert wanted.frontend.num_frames(wanted.frontend.min_samples) < frames
    assert frontend.num_frames(frontend.min_samples) == frames


def test_average_of_less_than_planned_says_so(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from speakerkit.training.publish import publish

    config = experiment(trainer={"save_every": 2, "average": 3})
    run_experiment(config, stop_after=4)
    for options, message in (
        ({}, "2 checkpoints are averaged, trainer.average is 3; training is at step 4 of 6"),
        ({"last": 1}, "training is at step 4 of 6"),
    ):
        caplog.clear()
        publish(tmp_path / "exp", tmp_path / "bundle", **options)
        assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}/exp: {message}"]
    run_experiment(config)
    caplog.clear()
    publish(tmp_path / "exp", tmp_path / "bundle")
    assert not caplog.records


def test_the_revision_is_that_of_speakerkit_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speakerkit.training import experiment as module

    package = tmp_path / "venv" / "lib" / "speakerkit"
    package.mkdir(parents=True)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-C"]
    monkeypatch.setattr(module, "PACKAGE", package)
    for top in (tmp_path, package.parent):
        subprocess.run([*git, top, "init", "-q"], check=True)
        subprocess.run([*git, top, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
        revision = module.provenance()["git_revision"]
        assert (revision is None) == (top == tmp_path)


def test_trials_hear_the_speech_segments_only(experiment: Experiment, corpus: Path, tmp_path: Path) -> None:
    spans = ((0.1, 0.25), (0.3, 0.5))
    entries = read_utterance_list(corpus / "valid.list")
    write_utterance_list(
        tmp_path / "vad.list", [Utterance(entry.key, entry.speaker, entry.wav, spans) for entry in entries]
    )
    task = EmbeddingTask(read_experiment(experiment(data={"valid": str(tmp_path / "vad.list")})))
    samples, rate = soundfile.read(entries[0].wav, dtype="float32")
    speech = np.concatenate([samples[round(start * rate) : round(end * rate)] for start, end in spans])
    np.testing.assert_allclose(
        whole_features(task.valid[0], task.config.frontend), features(speech, task.config.frontend), atol=1e-5
    )
