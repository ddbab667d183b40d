"""The CALLHOME recipe: its configurations and options, its tools, and a whole run on invented voices."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.data.lists import read_lines, read_table
from speakerkit.diarization.clustering import settings_for
from speakerkit.diarization.der import score_diarization
from speakerkit.diarization.formats import read_turns, to_text, write_text
from speakerkit.diarization.turns import Diarization, Turn
from speakerkit.training.experiment import read_experiment
from tests.conftest import REPOSITORY
from tests.recipes.recipe import RATE, assert_refused, run_recipe, tone, write_librispeech
from tools import diarization_results, tune_diarization

RECIPE = REPOSITORY / "examples" / "callhome"
SHARES = ("missed", "false_alarm", "confusion")


run = partial(run_recipe, "callhome")


@pytest.mark.parametrize("config", sorted((RECIPE / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_configuration_is_valid(config: Path) -> None:
    embedder = ["embedder=bundle"] if config.stem.startswith("tsvad") else []
    experiment = read_experiment(config, ["exp_dir=exp", "data.train=train", *embedder])
    assert experiment.schedule.warmup_steps < experiment.trainer.steps


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--colour", "red"], "unknown option"),
        (["--stage"], "needs a value"),
        (["--corpus", "timit"], "unknown corpus"),
        (["--corpus", "callhome"], "needs --data"),
        (["--corpus", "callhome", "--data", "/tmp"], "needs --train"),
        (["--corpus", "mini", "--data", "/nowhere"], "no such folder"),
        (["--bundle", "/nowhere"], "no such folder"),
        (["--bundle", "/tmp"], "no embedding model"),
        (["--config", "nowhere.yaml"], "no such configuration"),
        (["--conversations", "many"], "not a number"),
        (["--stage", "9"], "from 1 to 8"),
        (["--stage", "4", "--stop-stage", "3"], "not before"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_end_with_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert_refused(run(*arguments, workdir=tmp_path), said)


def test_missing_ldc_data_ends_in_the_first_stage(tmp_path: Path) -> None:
    for folder in ("data", "train"):
        (tmp_path / folder).mkdir()
    options = ["--corpus", "callhome", "--data", str(tmp_path / "data"), "--train", str(tmp_path / "train")]
    done = run(*options, workdir=tmp_path / "work")
    assert done.returncode == 2
    fault, stage = done.stderr.splitlines()
    assert "r65_8_1" in fault
    assert "LDC2001S97" in fault
    assert "stage 1 (prepare) failed" in stage


def test_speakers_are_split_with_durations_or_without(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text("".join(f"u{n} u{n}.wav\n" for n in range(6)))
    (tmp_path / "utt2spk").write_text("".join(f"u{n} s{n // 2}\n" for n in range(6)))
    command = [sys.executable, str(REPOSITORY / "tools" / "split_speakers.py")]
    command += [str(tmp_path), str(tmp_path / "rest"), str(tmp_path / "part"), "--every", "3"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert sorted(read_table(tmp_path / "rest" / "utt2spk")) == ["u0", "u1", "u2", "u3"]
    assert sorted(read_table(tmp_path / "part" / "utt2spk")) == ["u4", "u5"]
    assert not (tmp_path / "rest" / "utt2dur").exists()
    (tmp_path / "utt2dur").write_text("".join(f"u{n} 1.5\n" for n in range(6)))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert read_table(tmp_path / "part" / "utt2dur") == {"u4": "1.5000", "u5": "1.5000"}
    (tmp_path / "utt2spk").unlink()
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """Two recordings of two speakers of 6 s each, with their turns."""
    diarizations, lines = [], []
    for number in range(2):
        parts = [tone(speaker, 6.0, 10 * number + speaker) for speaker in range(2)]
        soundfile.write(tmp_path / f"r{number}.wav", np.concatenate(parts), RATE)
        lines.append(f"r{number} {tmp_path}/r{number}.wav\n")
        diarizations.append(Diarization(f"r{number}", (Turn(0.0, 6.0, "a"), Turn(6.0, 12.0, "b"))))
    (tmp_path / "wav.scp").write_text("".join(lines))
    write_text(tmp_path / "reference.rttm", to_text(diarizations, "rttm"))
    return tmp_path


@pytest.mark.parametrize("method", sorted(tune_diarization.GRIDS))
def test_the_grids_are_of_options_that_exist(method: str) -> None:
    points = tune_diarization.points(method)
    assert len(set(points)) == len(points) > 1
    for point in points:
        settings_for(method, **dict(point))


def test_tuning_takes_the_point_with_the_lowest_error_rate(conversations: Path, small_bundle: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "tune_diarization.py"), "wav.scp", "reference.rttm", "out"]
    command += ["--model", str(small_bundle), "--methods", "ahc", "spectral"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=conversations)
    assert done.returncode == 0, done.stderr
    words = read_lines(conversations / "out" / "ahc")
    assert words[:3] == ["--cluster", "ahc", "--cluster-threshold"]
    rates = {}
    for (threshold,) in (point for point in map(dict.values, map(dict, tune_diarization.points("ahc")))):
        rates[threshold] = _error_rate(conversations, small_bundle, threshold)
    assert rates[float(words[3])] == min(rates.values())
    both = {method: read_lines(conversations / "out" / method) for method in ("ahc", "spectral")}
    assert read_lines(conversations / "out" / "best") in both.values()

    done = subprocess.run(
        [*command[:2], "nowhere.scp", *command[3:]], capture_output=True, text=True, cwd=conversations
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def _error_rate(folder: Path, model: Path, threshold: float) -> float | None:
    """DER by the pipeline itself."""
    from speakerkit.diarization.pipeline import DiarizationSettings, Diarizer
    from speakerkit.embedding.embedder import load

    reference = read_turns(folder / "reference.rttm")
    diarizer = Diarizer(load(model, "cpu"), DiarizationSettings(clustering=settings_for("ahc", threshold=threshold)))
    found = {key: diarizer.diarize(folder / f"{key}.wav", speech=reference[key].speech) for key in reference}
    return score_diarization(reference, found, None, tune_diarization.CONVENTION).errors.der


def _score(reference: list[Turn], hypothesis: list[Turn], recording: str = "r0") -> dict[str, object]:
    one, other = Diarization(recording, tuple(reference)), Diarization(recording, tuple(hypothesis))
    return score_diarization({recording: one}, {recording: other}).to_dict()


def test_the_table_names_silence_and_puts_trivial_answers_beside(tmp_path: Path) -> None:
    truth = [Turn(0.0, 6.0, "a"), Turn(6.0, 8.0, "b")]
    scores = {
        "oracle-ahc": _score(truth, [Turn(0.0, 7.0, "x"), Turn(7.0, 8.0, "y")]),
        "oracle-one_speaker": _score(truth, [Turn(0.0, 8.0, "x")]),
        "none-silence": _score(truth, []),
    }
    (tmp_path / "exp" / "scores" / "set").mkdir(parents=True)
    for name, score in scores.items():
        (tmp_path / "exp" / "scores" / "set" / f"{name}.json").write_text(json.dumps(score))
    soundfile.write(tmp_path / "r0.wav", np.zeros(8 * RATE), RATE)
    (tmp_path / "wav.scp").write_text(f"r0 {tmp_path}/r0.wav\n")
    command = [
        sys.executable,
        diarization_results.__file__,
        str(tmp_path / "exp"),
        "--label",
        "x",
        "--command",
        "run.sh",
    ]
    command += ["--revision", "abc", "--set", "set", str(tmp_path / "wav.scp")]
    subprocess.run(command, check=True)
    text = (tmp_path / "exp" / "results.txt").read_text(encoding="utf-8")
    assert "1 of 1 recordings are digital silence" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("oracle", "none"))]
    assert [row[:3] for row in rows] == [
        ["none", "silence", "100.00"],
        ["oracle", "ahc", "12.50"],
        ["oracle", "one", "speaker"],
    ]
    assert rows[2][3:7] == ["25.00", "0.00", "0.00", "25.00"]
    assert read_lines(tmp_path / "exp" / "worst") == ["r0", f"{tmp_path}/r0.wav", "oracle-ahc"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The layouts of librispeech-mini, with twenty speakers to train on and four to test on, and of ami-mini."""
    root = tmp_path / "corpus"
    write_librispeech(root / "librispeech-mini" / "train-clean-100", range(10, 30))
    write_librispeech(root / "librispeech-mini" / "test-other", range(4))
    (root / "ami-mini").mkdir()
    soundfile.write(root / "ami-mini" / "dev00.flac", np.zeros(6 * RATE), RATE)
    write_text(root / "ami-mini" / "dev00.rttm", to_text([Diarization("dev00", (Turn(0.0, 5.0, "a"),))], "rttm"))
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whole_recipe_then_nothing_left_to_do(corpus: Path, small_bundle: Path, tmp_path: Path) -> None:
    tiny = ["trainer.steps=2", "schedule.warmup_steps=1", "data.batch_size=2", "data.workers=0", "data.valid_chunks=2"]
    options = ["--corpus", "mini", "--data", str(corpus), "--bundle", str(small_bundle), "--conversations", "4"]
    options += [word for value in tiny for word in ("--set", value)]
    workdir = tmp_path / "a folder"
    done = run(*options, workdir=workdir)
    assert done.returncode == 0, done.stderr
    lists, exp = workdir / "data" / "mini" / "simulated", workdir / "exp" / "mini-clusters"
    parts = [set(read_table(lists / part / "wav.scp")) for part in ("part1", "part2")]
    assert [len(part) for part in parts] == [2, 2]
    assert parts[0] | parts[1] == set(read_table(lists / "wav.scp"))
    results = json.loads((exp / "results.json").read_text(encoding="utf-8"))["sets"]
    systems = results["simulated"]["systems"]
    methods = ("ahc", "spectral", "nme-sc", "best+tsvad", "eend", "one_speaker")
    assert {f"{speech}-{method}" for speech in ("oracle", "silero") for method in methods} <= systems.keys()
    assert systems["none-silence"]["errors"]["der"] == 1.0
    one = systems["oracle-one_speaker"]["errors"]
    assert one["false_alarm"] == 0.0
    assert one["der"] == pytest.approx(sum(one[part] for part in SHARES) / one["speech"])
    assert results["ami"]["silent"] == results["ami"]["recordings"] == 1
    assert "digital silence" in done.stdout
    assert "dev00" not in (exp / "report.html").read_text(encoding="utf-8")

    again = run(*options, workdir=workdir)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before, skipped") == 8
