"""The LibriMix recipe: its configurations, its options, and whole runs on a few invented voices."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
import soundfile
import torch

from speakerkit.data.lists import read_table
from speakerkit.data.mixing.lists import read_mixture_dir
from speakerkit.extraction.bundle import read_extractor
from speakerkit.extraction.model import build_conditioned
from speakerkit.training.experiment import ExtractionExperiment, read_experiment
from tests.conftest import REPOSITORY
from tests.recipes.recipe import assert_refused, run_recipe, tone, write_librispeech

RECIPE = REPOSITORY / "examples" / "librimix"
CONFIGS = sorted((RECIPE / "conf").glob("*.yaml"))
PUBLISHED = {  # parameters in millions, of the papers' sizes and an embedding of 256 values, of Atss-Net's baseline 128
    "spex_plus": (256, 11.112),
    "voicefilter": (128, 9.453),
    "atss_net": (128, 4.676),
    "bsrnn": (256, 21.435),
    "conv_tasnet": (0, 4.985),
    "dprnn": (0, 2.610),
}

run = partial(run_recipe, "librimix")


def experiment_of(config: Path) -> ExtractionExperiment:
    experiment = read_experiment(config, ["exp_dir=exp", "data.train=train"])
    assert isinstance(experiment, ExtractionExperiment)
    return experiment


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_each_configuration_is_valid(config: Path) -> None:
    experiment = experiment_of(config)
    assert experiment.schedule.warmup_steps < experiment.trainer.steps
    size = None if experiment.embedder in (None, "joint") else 192
    with torch.device("meta"):
        extractor = build_conditioned(experiment.model, experiment.data.mixing.sample_rate, size).extractor
    assert (extractor.sources > 0) == (experiment.embedder is None)


@pytest.mark.parametrize("model", PUBLISHED)
def test_each_model_has_its_published_sizes_and_a_small_configuration(model: str) -> None:
    assert experiment_of(RECIPE / "conf" / f"{model}_mini.yaml").model.name == model
    experiment = experiment_of(RECIPE / "conf" / f"{model}.yaml")
    size, millions = PUBLISHED[model]
    with torch.device("meta"):
        told = size if experiment.embedder == "bundle" else None
        extractor = build_conditioned(experiment.model, 16000, told).extractor
    assert sum(each.numel() for each in extractor.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_voicefilter_with_the_papers_bins() -> None:
    """18.88 M parameters with embeddings of 256 values; all else is as without."""
    usual, paper = (experiment_of(RECIPE / "conf" / f"{name}.yaml") for name in ("voicefilter", "voicefilter_paper"))
    assert paper.model.args == {**usual.model.args, "n_fft": 1200}
    assert replace(paper, model=usual.model) == usual
    with torch.device("meta"):
        extractor = build_conditioned(paper.model, 16000, 256).extractor
    assert sum(each.numel() for each in extractor.parameters()) / 1e6 == pytest.approx(18.88, abs=5e-3)


def test_the_ablations_differ_from_their_model_in_one_thing() -> None:
    whole = experiment_of(RECIPE / "conf" / "atss_net.yaml")
    without = experiment_of(RECIPE / "conf" / "atss_net_no_attention.yaml")
    assert {**without.model.args, "attention": True} == {**whole.model.args, "attention": True}
    assert (without.optim, without.trainer, without.data) == (whole.optim, whole.trainer, whole.data)
    blind = experiment_of(RECIPE / "conf" / "atss_net_pit.yaml")
    assert blind.embedder is None
    assert blind.model.args == {**whole.model.args, "voice_size": 0, "sources": 2}
    assert (blind.optim, blind.trainer, blind.loss) == (whole.optim, whole.trainer, whole.loss)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--colour", "red"], "unknown option"),
        (["corpus"], "unknown option"),
        (["--model"], "needs a value"),
        (["--corpus", "wsj0"], "unknown corpus"),
        (["--corpus", "librimix"], "needs --data"),
        (["--corpus", "mini", "--data", "/nowhere"], "no such folder"),
        (["--bundle", "/nowhere"], "no such folder"),
        (["--bundle", "/tmp"], "no embedding model"),
        (["--model", "tfgridnet"], "no such configuration"),
        (["--config", "nowhere.yaml"], "no such configuration"),
        (["--mode", "mean"], "unknown mode"),
        (["--condition", "noisy"], "unknown condition"),
        (["--rate", "44100"], "unknown rate"),
        (["--speakers", "4"], "unknown number of speakers"),
        (["--mixtures", "many"], "not a number"),
        (["--stage", "9"], "from 1 to 8"),
        (["--stage", "4", "--stop-stage", "3"], "not before"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_end_with_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert_refused(run(*arguments, workdir=tmp_path), said)


def test_a_corpus_that_is_not_there_ends_in_the_first_stage(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done = run("--corpus", "librimix", "--data", str(tmp_path / "data"), workdir=tmp_path / "work")
    assert done.returncode == 2
    fault, stage = done.stderr.splitlines()
    assert "neither Libri2Mix/wav16k/max nor metadata/Libri2Mix" in fault
    assert "stage 1 (prepare) failed" in stage


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """The layout of librispeech-mini, with twenty speakers to train on and four to test on."""
    root = tmp_path / "corpus"
    for subset, speakers in (("train-clean-100", range(10, 30)), ("test-other", range(4))):
        write_librispeech(root / "librispeech-mini" / subset, speakers)
    lines = [f"{speaker} | {'FM'[speaker % 2]} | x | 1 | name\n" for speaker in (*range(4), *range(10, 30))]
    (root / "librispeech-mini" / "SPEAKERS.TXT").write_text("".join(lines))
    return root


def tiny(*changes: str) -> list[str]:
    values = ["trainer.steps=2", "schedule.warmup_steps=1", "data.batch_size=2", "data.workers=0"]
    values += ["data.valid_mixtures=2", "data.mixing.seconds=1.0", *changes]
    return [word for value in values for word in ("--set", value)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whole_recipe_then_nothing_left_to_do(mini: Path, small_bundle: Path, tmp_path: Path) -> None:
    options = ["--corpus", "mini", "--data", str(mini), "--bundle", str(small_bundle), "--mixtures", "4"]
    bsrnn = [*options, *tiny("model.args.features=8", "model.args.hidden=8")]
    workdir = tmp_path / "a folder"
    done = run(*bsrnn, workdir=workdir)
    assert done.returncode == 0, done.stderr
    lists, exp = workdir / "data" / "mini" / "2mix-8k-max-clean", workdir / "exp" / "mini-bsrnn-2mix-8k-max-clean"
    listed = {part: read_mixture_dir(lists / part) for part in ("valid", "absent", "test")}
    names = {part: {turn[2] for each in mixtures for turn in each.turns} for part, mixtures in listed.items()}
    assert names["test"] <= {str(speaker) for speaker in range(4)}
    assert not names["valid"] & names["test"]
    assert any(not target.reference for each in listed["absent"] for target in each.targets)
    results = json.loads((exp / "results.json").read_text(encoding="utf-8"))
    assert (results["scores"]["count"], results["scores"]["errors"], results["told_by"]) == (8, 0, "enrolment")
    assert {"genders F+M", "2 speakers"} <= results["scores"]["groups"].keys()
    rows = [line.split() for line in (exp / "results.txt").read_text(encoding="utf-8").splitlines()]
    mixture, estimate = (next(row for row in rows if row[:1] == [name]) for name in ("mixture", "bsrnn"))
    assert mixture[6:9] == ["0.00", "-", "0.00"]
    assert float(estimate[1]) - float(mixture[1]) == pytest.approx(float(estimate[6]), abs=0.011)
    assert results["complete"]["count"] == 8
    assert any(row[:2] == ["bsrnn,", "complete"] for row in rows)
    bundle = read_extractor(exp / "bundle")
    assert bundle.graph is not None
    assert list(bundle.config.results) == ["mixtures of librispeech-mini, 2 speakers, 8 kHz, max, clean"]
    assert (bundle.path / "presence.json").is_file()

    again = run(*bsrnn, workdir=workdir)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before, skipped") == 8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_blind_outputs_are_told_by_references_or_embeddings(mini: Path, small_bundle: Path, tmp_path: Path) -> None:
    options = ["--corpus", "mini", "--data", str(mini), "--mixtures", "4", "--model", "conv_tasnet"]
    options += tiny("model.args={sources: 2, filters: 8, features: 8, hidden: 8, skip: 8, blocks: 2, stacks: 1}")
    for added, told_by in (([], "oracle"), (["--bundle", str(small_bundle), "--stage", "5"], "embedding")):
        done = run(*options, *added, workdir=tmp_path / "work")
        assert done.returncode == 0, done.stderr
        exp = tmp_path / "work" / "exp" / "mini-conv_tasnet-2mix-8k-max-clean"
        results = json.loads((exp / "results.json").read_text())
        assert (results["scores"]["count"], results["scores"]["errors"]) == (8, 0)
        assert results["told_by"] == told_by
        if told_by == "oracle":
            assert results["scores"]["shares"]["swapped"]["rate"] <= 0.5


@pytest.fixture
def libri2mix(tmp_path: Path) -> Path:
    """Libri2Mix at 8 kHz as published, of six speakers a split, with LibriSpeech beside it."""
    root = tmp_path / "corpus"
    write_librispeech(root / "LibriSpeech" / "train-clean-100", range(10, 16))
    for split, first in (("train-100", 10), ("dev", 20), ("test", 30)):
        folder = root / "Libri2Mix" / "wav8k" / "min" / split
        for name in ("s1", "s2", "mix_clean"):
            (folder / name).mkdir(parents=True)
        for number, pair in enumerate(combinations(range(first, first + 3), 2)):
            voices = [0.2 * tone(speaker % 10, 2.0, 10 * speaker + number)[::2] for speaker in pair]
            key = "_".join(f"{speaker}-7-{number % 3:04d}" for speaker in pair)
            for name, samples in zip(("s1", "s2", "mix_clean"), (*voices, sum(voices)), strict=True):
                soundfile.write(folder / name / f"{key}.wav", samples, 8000)
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_published_mixtures_are_read_where_they_lie(libri2mix: Path, tmp_path: Path) -> None:
    options = ["--corpus", "librimix", "--data", str(libri2mix), "--mode", "min", "--rate", "8000"]
    sizes = "model.args={filters: 8, features: 8, hidden: 8, blocks: 2, stacks: 1}"
    done = run(*options, "--model", "spex_plus", *tiny(sizes), "--stop-stage", "6", workdir=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    lists = tmp_path / "work" / "data" / "librimix" / "2mix-8k-min-clean"
    assert len(read_mixture_dir(lists / "train")) == 3
    exp = tmp_path / "work" / "exp" / "librimix-spex_plus-2mix-8k-min-clean"
    scores = json.loads((exp / "scores" / "scores.json").read_text())
    assert (scores["count"], scores["errors"]) == (6, 0)


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """LibriSpeech and LibriMix's metadata, of which mixtures of two are to be made; a file of it is no audio."""
    root = tmp_path / "corpus"
    splits = {"train-clean-100": range(10, 13), "train-clean-360": range(13, 16), "test-clean": range(30, 33)}
    (root / "metadata" / "Libri2Mix").mkdir(parents=True)
    for split, speakers in splits.items():
        write_librispeech(root / "LibriSpeech" / split, speakers)
        lines = ["mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain"]
        for number, pair in enumerate(combinations(speakers, 2)):
            names = [f"{speaker}-7-{number:04d}" for speaker in pair]
            paths = [f"{split}/{speaker}/7/{name}.flac" for speaker, name in zip(pair, names, strict=True)]
            lines.append(f"{'_'.join(names)},{paths[0]},0.5,{paths[1]},0.4")
        (root / "metadata" / "Libri2Mix" / f"libri2mix_{split}.csv").write_text("\n".join(lines) + "\n")
    (root / "LibriSpeech" / "train-clean-100" / "10" / "7" / "10-7-0009.flac").write_bytes(b"no audio")
    people = [
        f"{speaker} | {'FM'[speaker % 2]} | x | 1 | name\n" for speakers in splits.values() for speaker in speakers
    ]
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text("".join(people))
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lists_of_enrolments_go_with_mixtures_that_are_made_here(librispeech: Path, tmp_path: Path) -> None:
    """USED's dev, of two and of three speakers, which is a part of train-100; wesep's two lists, and SpEx+'s."""
    held = "10-7-0000_11-7-0000"
    used = [
        f"{key}\tLibri{count}Mix/wav16k/max/train-100/mix_both/{key}.wav"
        f"\tLibri{count}Mix/wav16k/max/train-100/s{number + 1}/{key}.wav"
        f"\tLibriSpeech/train-clean-100/1{number}/7/1{number}-7-0002.flac\t1{number}\n"
        for count, key in ((2, held), (3, f"{held}_12-7-0000"))
        for number in range(2)
    ]
    lists = librispeech / "enrolments"
    (lists / "test").mkdir(parents=True)
    (lists / "dev.tsv").write_text("".join(used))
    keys = ["30-7-0000_31-7-0000", "30-7-0001_32-7-0001", "31-7-0002_32-7-0002"]
    (lists / "test" / "spk1.enroll").write_text(f"{keys[0]} s1/{keys[1]}.wav\n{keys[1]} s1/{keys[0]}.wav")
    (lists / "test" / "spk2.enroll").write_text(f"{keys[0]} s1/{keys[2]}.wav\n{keys[1]} s2/{keys[2]}.wav\n")
    enrolled = ("31-7-0001", "32-7-0000")
    (lists / "test.scp").write_text("".join(f"{keys[2]}_{name} gone/{name}.flac\n" for name in enrolled))
    options = ["--corpus", "librimix", "--data", str(librispeech), "--rate", "8000", "--model", "spex_plus"]
    done = run(*options, "--stop-stage", "2", workdir=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    data = tmp_path / "work" / "data" / "librimix" / "2mix-8k-max-clean"
    (dev,) = read_mixture_dir(data / "dev")
    assert dev.key == held
    assert [Path(target.enrolment).name for target in dev.targets] == ["10-7-0002.flac", "11-7-0002.flac"]
    train = read_mixture_dir(data / "train")
    assert len(train) == 2 + 3
    assert held not in {each.key for each in train}
    assert all(len(each.targets) == len({turn[2] for turn in each.turns}) == 2 for each in train)
    assert [len(each.targets) for each in read_mixture_dir(data / "test")] == [2, 2, 2]
    assert read_table(data / "test" / "spk2gender") == {"30": "f", "31": "m", "32": "f"}
    voices = read_table(tmp_path / "work" / "embedding" / "data" / "librimix" / "train" / "utt2spk")
    assert sorted(set(voices.values())) == [str(speaker) for speaker in range(10, 16)]
