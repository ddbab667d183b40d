"""The VoxCeleb recipe: its configurations, its options, and a whole run on a few invented voices."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.embedding.registry import backbone_names
from speakerkit.training.experiment import read_experiment
from tests.conftest import REPOSITORY, speech_like
from tests.embedding.families import FAMILIES
from tests.recipes.recipe import assert_refused, run_recipe

RECIPE = REPOSITORY / "examples" / "voxceleb"
CONFIGS = sorted((RECIPE / "conf").glob("*.yaml"))
PATHS = ["exp_dir=exp", "data.train=train.list"]


run = partial(run_recipe, "voxceleb")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_each_configuration_is_valid(config: Path) -> None:
    experiment = read_experiment(config, PATHS)
    assert experiment.model.name in backbone_names()
    assert experiment.margin.end_step <= experiment.trainer.steps
    assert experiment.schedule.warmup_steps < experiment.trainer.steps


@pytest.mark.parametrize("file", sorted(FAMILIES.keys() - {"ecapa_zoo"}))  # those are only imported
def test_each_model_file_has_a_configuration(file: str) -> None:
    named = {read_experiment(config, PATHS).model.name for config in CONFIGS}
    assert named & set(FAMILIES[file].names)


def test_each_fine_tuning_configuration_has_its_base() -> None:
    tuned = [config for config in CONFIGS if config.stem.endswith("_lm")]
    assert tuned
    for config in tuned:
        base = read_experiment(config.with_stem(config.stem.removesuffix("_lm")), PATHS)
        tuning = read_experiment(config, PATHS)
        assert (tuning.model, tuning.frontend) == (base.model, base.frontend)
        assert tuning.margin.initial > base.margin.final
        assert tuning.data.chunk_frames > base.data.chunk_frames


def test_published_settings() -> None:
    experiment = read_experiment(RECIPE / "conf" / "resnet34.yaml", PATHS)
    assert (experiment.frontend.num_mels, experiment.data.chunk_frames, experiment.optim.name) == (80, 200, "sgd")
    assert (experiment.margin.initial, experiment.margin.final) == (0.0, 0.2)
    assert (experiment.optim.lr, experiment.schedule.final_lr) == (0.1, 5e-5)
    steps_an_epoch = 1_092_009 // (2 * experiment.data.batch_size)
    assert experiment.trainer.steps == 150 * steps_an_epoch
    assert experiment.schedule.warmup_steps == 6 * steps_an_epoch
    assert experiment.margin.start_step == 20 * steps_an_epoch


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--colour", "red"], "unknown option"),
        (["--stage"], "needs a value"),
        (["--corpus", "timit"], "unknown corpus"),
        (["--corpus", "voxceleb"], "needs --data"),
        (["--corpus", "mini", "--data", "/nowhere"], "no such folder"),
        (["--config", "nowhere.yaml"], "no such configuration"),
        (["--dev", "/nowhere"], "no such folder"),
        (["--stage", "three"], "not a number"),
        (["--stage", "11"], "from 1 to 10"),
        (["--stage", "4", "--stop-stage", "3"], "not before"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_end_with_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert_refused(run(*arguments, workdir=tmp_path), said)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The layout of librispeech-mini with ten speakers to train on and two to test on."""
    for subset, speakers in (("train-clean-100", range(11, 21)), ("test-other", range(8, 10))):
        for speaker in speakers:
            folder = tmp_path / "corpus" / "librispeech-mini" / subset / str(speaker) / "7"
            folder.mkdir(parents=True)
            for number in range(3):
                samples = speech_like(2.0 + 0.1 * number, seed=10 * speaker + number)
                seconds = np.arange(len(samples)) / 16000  # tones of their own tell the speakers apart
                tone = np.sin(2 * np.pi * 150 * speaker * seconds) * (
                    np.sin(2 * np.pi * (1 + speaker % 4) * seconds) > 0
                )
                samples = 0.5 * samples + 0.15 * tone
                soundfile.write(folder / f"{speaker}-7-{number:04d}.flac", samples, 16000)
    return tmp_path / "corpus"


def test_whole_recipe_then_nothing_left_to_do_then_a_broken_stage(corpus: Path, tmp_path: Path) -> None:
    tiny = ["trainer.steps=30", "schedule.warmup_steps=2", "data.batch_size=8", "data.workers=0"]
    tiny.append("model.args={channels: 16, joined: 32, embed_dim: 8, emb_bn: true}")
    options = ["--corpus", "mini", "--data", str(corpus), *(word for value in tiny for word in ("--set", value))]
    bad = corpus / "librispeech-mini" / "train-clean-100" / "11" / "7" / "11-7-0009.flac"
    bad.write_bytes(b"no audio")
    workdir = tmp_path / "a 'quoted' #folder"
    done = run(*options, workdir=workdir)
    assert done.returncode == 0, done.stderr
    assert "11-7-0009" in (workdir / "data" / "mini" / "train" / "failed.tsv").read_text(encoding="utf-8")
    exp = workdir / "exp" / "mini-mini"
    assert "librispeech-mini" in (exp / "results.txt").read_text(encoding="utf-8")
    for system in ("cosine", "cosine_mean", "plda"):
        assert f"trials_{system} " in done.stdout
    assert (exp / "scores" / "trials_as_norm").is_file()
    assert "PLDA is not adapted" in done.stdout
    assert "worst" in (exp / "report.html").read_text(encoding="utf-8").lower()
    assert json.loads((exp / "bundle" / "calibration.json").read_text(encoding="utf-8"))["thresholds"]
    assert str(exp / "bundle") in done.stdout
    checked = [sys.executable, str(REPOSITORY / "tools" / "check_recipe.py"), str(exp), "--max-eer"]
    assert subprocess.run([*checked, "100"], capture_output=True).returncode == 0
    assert subprocess.run([*checked, "-1"], capture_output=True).returncode == 2

    weights = (exp / "bundle" / "model.safetensors").read_bytes()
    again = run(*options, workdir=workdir)
    assert again.stdout.count("done before, skipped") == 10
    assert (exp / "bundle" / "model.safetensors").read_bytes() == weights

    scored = run(*options, "--stage", "5", "--stop-stage", "5", workdir=workdir)
    assert scored.returncode == 0, scored.stderr
    rest = run(*options, "--stop-stage", "6", workdir=workdir)
    assert rest.stdout.count("done before, skipped") == 5, "what follows a stage that ran again must run again"
    assert "stage 6 (AS-norm)" in rest.stdout
    assert not (exp / ".stage10.done").exists()

    (workdir / "data" / "mini" / "test" / "trials").write_text("8-7-0000 nobody target\n", encoding="utf-8")
    broken = run(*options, "--stage", "5", workdir=workdir)
    assert broken.returncode != 0
    assert "nobody" in broken.stderr
    assert "stage 5 (cosine) failed" in broken.stderr
    assert "--stage 5" in broken.stderr


DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("examples/*/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_holds_a_placeholder(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"\b[A-Z]+_TABLE\b|TODO|TBD|XXX|^SPEED$", text, re.MULTILINE)
