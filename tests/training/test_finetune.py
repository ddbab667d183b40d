"""Fine-tuning from the command line: what it takes over, measures, leaves, resumes and refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from speakerkit.bundle import read_bundle
from speakerkit.config import NamedConfig, read_yaml
from speakerkit.data.ark import Embeddings
from speakerkit.data.lists import read_utterance_list, write_data_dir, write_utterance_list
from speakerkit.embedding.embedder import load
from speakerkit.embedding.model import backbone_for
from speakerkit.features import FrontEnd
from speakerkit.training.checkpoint import list_checkpoints, load_checkpoint
from speakerkit.verification.cosine import score_cosine
from speakerkit.verification.metrics import evaluate
from speakerkit.verification.trials import read_trials
from tests.command import Ran, speakerkit
from tests.training.states import identical, last_state, log_of

SMALL = (
    *("--set", "data.batch_size=4", "--set", "data.chunk_frames=24", "--set", "data.workers=0"),
    *("--set", "trainer.device=cpu", "--set", "trainer.threads=1"),
)


@pytest.fixture
def data_dir(corpus: Path, tmp_path: Path) -> Path:
    """A Kaldi directory of the 16 utterances of 4 speakers."""
    write_data_dir(tmp_path / "data", read_utterance_list(corpus / "all.list"))
    return tmp_path / "data"


@pytest.fixture
def tune(torch_bundle: Path, data_dir: Path, tmp_path: Path) -> Callable[..., Ran]:
    """``tune(*words, out="exp", data=None)``: a fine-tuning of 4 steps, with further words."""

    def run(*words: object, out: str = "exp", data: Path | None = None) -> Ran:
        base = ("finetune", "--init", torch_bundle, "--data", data or data_dir, "--out", tmp_path / out)
        return speakerkit(*base, "--steps", 4, *SMALL, *words)

    return run


def eer_of(bundle: Path, exp: Path) -> float:
    """EER in percent of a run's trials, by the public embedder and scorer."""
    entries = [*read_utterance_list(exp / "lists" / "train.list"), *read_utterance_list(exp / "lists" / "valid.list")]
    embedder = load(bundle, "cpu")
    keys = [entry.key for entry in entries]
    vectors = np.stack([embedder.embed(entry.wav) for entry in entries])
    return 100 * evaluate(score_cosine(Embeddings(keys, vectors), read_trials(exp / "lists" / "valid.trials"))).eer


def test_from_a_directory_to_a_bundle(
    tune: Callable[..., Ran], torch_bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    first = tune("--lr", 1e-3)
    assert first.code == 0, first.err
    loaded, new, dropped, eer, bundle = first.out.splitlines()
    tensors = read_bundle(torch_bundle).tensors()
    assert loaded.startswith(f"loaded: {len(tensors)} tensors (")
    assert new == "new: head.weight (4 x 16)"
    assert dropped == "dropped: none"
    assert bundle == f"bundle: {tmp_path / 'exp' / 'bundle'}"
    made = read_bundle(tmp_path / "exp" / "bundle")
    assert made.config.model == read_bundle(torch_bundle).config.model
    assert made.config.frontend == read_bundle(torch_bundle).config.frontend
    assert made.config.provenance["init"] == str(torch_bundle)
    assert any(not torch.equal(tensor, tensors[name]) for name, tensor in made.tensors().items())
    before, after = eer_of(torch_bundle, tmp_path / "exp"), eer_of(made.path, tmp_path / "exp")
    assert eer == f"EER on 48 trials: {before:.3f} % before, {after:.3f} % after"
    figures = json.loads((tmp_path / "exp" / "finetune.json").read_text())
    assert figures["eer_before"] == pytest.approx(before)
    assert figures["eer_after"] == pytest.approx(after)
    split = {
        name: {e.key for e in read_utterance_list(tmp_path / "exp" / "lists" / f"{name}.list")}
        for name in ("train", "valid")
    }
    done = speakerkit("data", "holdout", tmp_path / "data", tmp_path / "held")  # the same one
    assert done.code == 0
    for name, keys in split.items():
        assert keys == {entry.key for entry in read_utterance_list(tmp_path / "held" / f"{name}.list")}
    assert (tmp_path / "held" / "valid.trials").read_bytes() == (
        tmp_path / "exp" / "lists" / "valid.trials"
    ).read_bytes()
    optim = read_yaml(tmp_path / "exp" / "config.yaml")["optim"]
    assert optim["lr"] == 1e-3
    assert optim["lr_factors"] == {"head": 10.0}
    again = tune("--lr", 1e-3)  # complete: nothing is trained again, the same is said
    assert (again.code, again.out) == (0, first.out)
    assert "training is complete" in again.err


def test_a_stopped_one_goes_on_with_the_same_command(
    tune: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speakerkit.training import finetune as module

    assert tune(out="whole").code == 0
    whole = module.run_experiment
    monkeypatch.setattr(module, "run_experiment", lambda path: whole(path, stop_after=2))
    tune(out="parts")
    assert last_state(tmp_path / "parts")["step"] == 2
    monkeypatch.setattr(module, "run_experiment", whole)
    done = tune(out="parts")
    assert done.code == 0
    assert identical(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))


def test_frozen_parts_and_layer_decay(tune: Callable[..., Ran], torch_bundle: Path, tmp_path: Path) -> None:
    done = tune("--freeze", "backbone.layer1", "--freeze", "backbone.bn", "--layer-decay", 0.5, "--lr", 1e-2)
    assert done.code == 0, done.err
    before, after = read_bundle(torch_bundle).tensors(), read_bundle(tmp_path / "exp" / "bundle").tensors()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.startswith(("layer1.", "bn.")), name
    optim = read_yaml(tmp_path / "exp" / "config.yaml")["optim"]
    assert optim["lr_factors"] == {"head": 10.0, "backbone.layer1": 0.0, "backbone.bn": 0.0}
    assert optim["layer_decay"] == {"backbone": 0.5}
    assert "frozen: " in log_of(tmp_path / "exp")


def test_given_trials_are_measured_and_not_trained_on(tune: Callable[..., Ran], corpus: Path, tmp_path: Path) -> None:
    lines = ["u00 u01 target", "u00 u04 nontarget", "u05 u04 target", "u01 u05 nontarget"]
    (tmp_path / "mine").write_text("\n".join(lines) + "\n")
    done = tune("--trials", tmp_path / "mine")
    assert done.code == 0, done.err
    assert "EER on 4 trials: " in done.out
    trained = {entry.key for entry in read_utterance_list(tmp_path / "exp" / "lists" / "train.list")}
    assert trained == {entry.key for entry in read_utterance_list(corpus / "all.list")} - {"u00", "u01", "u04", "u05"}
    assert "valid_eer" in log_of(tmp_path / "exp")
    # Trials over speakers that are then not trained on: they are measured, and cannot watch the training.
    strangers = [
        f"u{n:02d} u{m:02d} {'target' if n // 4 == m // 4 else 'nontarget'}" for n in range(8) for m in range(n)
    ]
    (tmp_path / "mine").write_text("\n".join(strangers) + "\n")
    done = tune("--trials", tmp_path / "mine", out="strangers")
    assert done.code == 0, done.err
    assert "new: head.weight (2 x 16)" in done.out
    assert "EER on 28 trials: " in done.out
    assert "valid_eer" not in log_of(tmp_path / "strangers")


def test_a_raw_list_a_configuration_and_overrides(tune: Callable[..., Ran], corpus: Path, tmp_path: Path) -> None:
    settings = {"optim": {"name": "sgd", "lr": 0.01}, "head": {"name": "softmax"}, "trainer": {"steps": 9, "ema": 0.5}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    done = tune("--config", tmp_path / "c.yaml", "--set", "optim.lr=0.02", data=corpus / "all.list")
    assert done.code == 0, done.err
    config = read_yaml(tmp_path / "exp" / "config.yaml")
    assert (config["optim"]["name"], config["optim"]["lr"], config["optim"]["lr_factors"]) == ("sgd", 0.02, {})
    assert (config["head"]["name"], config["trainer"]["steps"], config["trainer"]["ema"]) == ("softmax", 4, 0.5)
    assert config["schedule"]["name"] == "cosine"
    assert "new: head.weight (4 x 16), head.bias (4)" in done.out
    assert read_bundle(tmp_path / "exp" / "bundle").config.provenance["ema"] is True
    state = load_checkpoint(list_checkpoints(tmp_path / "exp" / "checkpoints")[-1])
    published = read_bundle(tmp_path / "exp" / "bundle").tensors()["linear.weight"]
    torch.testing.assert_close(published, state["ema"]["model"]["backbone.linear.weight"])


def test_too_little_to_hold_out_says_so(tune: Callable[..., Ran], corpus: Path, tmp_path: Path) -> None:
    few = [entry for entry in read_utterance_list(corpus / "all.list") if entry.key in {"u00", "u01", "u04", "u05"}]
    write_utterance_list(tmp_path / "few.list", few)
    done = tune(data=tmp_path / "few.list")
    assert done.code == 0, done.err
    assert "no trials and no EER" in done.err
    assert "EER" not in done.out
    assert done.out.splitlines()[-1] == f"bundle: {tmp_path / 'exp' / 'bundle'}"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--set", "model.args.embed_dim=32"), "model.args: give embeddings of 32, .* has 16; fine-tuning keeps"),
        (("--set", "model.name=ResNet18"), "model.name: is ResNet18, in .* ECAPA_TDNN"),
        (("--set", "model.args.joined=64"), "does not fit .*size mismatch"),
        (("--set", "frontend.num_mels=40"), "frontend.num_mels: is 40, in .* 80"),
        (("--set", "frontend.window=povey"), "frontend.window: is 'povey'"),
        (("--set", "data.train=x"), "data.train: is 'x'; leave it out"),
        (("--set", "init=x"), "init: is 'x'; leave it out"),
        (("--set", "exp_dir=x"), "exp_dir: is 'x'"),
        (("--set", "optim=3"), "optim"),
        (("--freeze", "backbone.layer9"), "'backbone.layer9' .*did you mean 'backbone.layer"),
        (("--freeze", "nowhere"), r"choose from backbone, backbone\.bn, [^;]{,400}$"),
        (("--freeze", "backbone", "--freeze", "head"), "freezes the whole model"),
        (("--freeze", ""), "lr_factors"),
        (("--layer-decay", "0"), "layer_decay"),
        (("--layer-decay", "1.5"), "layer_decay"),
        (("--lr", "0"), "optim.lr"),
        (("--lr", "nan"), "optim.lr"),
        (("--steps", "0"), "steps"),
        (("--trials", "/nowhere"), "no such file"),
        (("--config", "/nowhere"), "no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_arguments_are_one_line_and_leave_no_bundle(
    tune: Callable[..., Ran], tmp_path: Path, words: tuple[str, ...], fault: str
) -> None:
    done = tune(*words)
    assert done.code == 2
    assert len(done.errors) == 1, done.err
    assert re.search(fault, done.errors[0]), done.errors[0]
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not (tmp_path / "exp" / "bundle").exists()
    assert not (tmp_path / "exp" / "checkpoints").exists()


def test_a_folder_of_wespeaker_drops_its_classifier(data_dir: Path, tmp_path: Path) -> None:
    args = {"feat_dim": 80, "embed_dim": 16, "pooling_func": "TSTP", "two_emb_layer": False, "m_channels": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = backbone_for(NamedConfig("ResNet18", args), FrontEnd())
    folder = tmp_path / "wespeaker"
    folder.mkdir()
    config = {"model": "ResNet18", "model_args": args, "dataset_args": {"fbank_args": {"num_mel_bins": 80}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({**backbone.state_dict(), "projection.weight": torch.zeros(7, 16)}, folder / "avg_model.pt")
    words = ("--data", data_dir, "--out", tmp_path / "exp", "--steps", 1, *SMALL)
    done = speakerkit("finetune", "--init", folder, *words)
    assert done.code == 0, done.err
    assert f"loaded: {len(backbone.state_dict())} tensors" in done.out
    assert "new: head.weight (4 x 16)\ndropped: projection.weight (7 x 16)\nEER on 48 trials" in done.out


def test_dither_is_the_trainings_affair(tune: Callable[..., Ran], tmp_path: Path) -> None:
    assert tune("--set", "frontend.dither=1.0").code == 0
    assert read_bundle(tmp_path / "exp" / "bundle").config.frontend.dither == 1.0


def test_data_that_cannot_be_learned_from(
    tune: Callable[..., Ran], corpus: Path, onnx_bundle: Path, tmp_path: Path
) -> None:
    entries = read_utterance_list(corpus / "all.list")
    write_utterance_list(tmp_path / "one.list", [entry for entry in entries if entry.speaker == "s0"])
    (tmp_path / "empty.list").write_text("")
    for name, lines in (
        ("unlabelled", "u00 u01\nu00 u04\n"),
        ("targets", "u00 u01 target\nu04 u05 target\n"),
        ("unknown", "u00 nobody target\nu00 u04 nontarget\n"),
        ("all", "".join(f"{e.key} u00 {'target' if e.speaker == 's0' else 'nontarget'}\n" for e in entries)),
    ):
        (tmp_path / name).write_text(lines)
    base = ("finetune", "--init", onnx_bundle, "--data", corpus / "all.list", "--out", tmp_path / "exp", *SMALL)
    cases: tuple[tuple[Any, str], ...] = (
        (lambda: tune(data=tmp_path / "one.list"), "one.list: leaves fewer than two speakers"),
        (lambda: tune(data=tmp_path / "empty.list"), "empty.list: names no utterances"),
        (lambda: tune(data=tmp_path / "none"), "no such file"),
        (lambda: tune("--trials", tmp_path / "unlabelled"), "does not hold both target and nontarget"),
        (lambda: tune("--trials", tmp_path / "targets"), "does not hold both target and nontarget"),
        (
            lambda: tune("--trials", tmp_path / "unknown"),
            "names 1 utterances that --data does not hold, 'nobody' first",
        ),
        (lambda: tune("--trials", tmp_path / "all"), "leaves fewer than two speakers"),
        (lambda: speakerkit(*base), "has no weights to train; this bundle runs from its model.onnx only"),
    )
    for run, fault in cases:
        done = run()
        assert done.code == 2
        assert len(done.errors) == 1, done.err
        assert fault in done.errors[0], done.errors[0]


def test_a_folder_of_something_else_stays_as_it_is(
    tune: Callable[..., Ran], torch_bundle: Path, tmp_path: Path
) -> None:
    """The folder of the bundle, whose weights `--out` would replace, and one with lists of somebody."""
    theirs = tmp_path / "theirs"
    (theirs / "lists").mkdir(parents=True)
    (theirs / "lists" / "train.list").write_text("mine")
    shutil.copytree(torch_bundle, tmp_path / "model" / "bundle")
    for out in ("theirs", "model"):
        before = {path: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()}
        done = tune(out=out)
        assert done.code == 2
        assert done.errors == [
            f"speakerkit: error: {tmp_path / out}: holds something else than a fine-tuning; name a new folder"
        ]
        assert {path: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_on_two_ranks(tune: Callable[..., Ran], tmp_path: Path) -> None:
    done = tune("--nproc", 2)
    assert done.code == 0, done.err
    assert "EER on 48 trials: " in done.out
    assert "2 rank(s)" in log_of(tmp_path / "exp")
