"""``speakerkit enroll``, ``verify``, ``identify`` and ``voices``, as a user meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speakerkit.data.ark import read_embeddings
from tests.command import Ran, speakerkit
from tests.conftest import speech_like


@pytest.fixture
def calibrated(onnx_bundle: Path, tmp_path: Path) -> Path:
    """The small model with a threshold and a map to log-likelihood ratios."""
    folder = tmp_path / "calibrated"
    shutil.copytree(onnx_bundle, folder)
    values = {"threshold": 0.9, "source": "far 1 % on dev", "llr": {"scale": 10.0, "offset": -9.0}}
    (folder / "calibration.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def place(tmp_path: Path, onnx_bundle: Path, write_wav: Callable[..., Path]) -> Callable[..., Ran]:
    """Runs a command with the model and the database; ``name.wav`` are made where they are not there."""

    def run(command: str, *arguments: object, model: Path | None = onnx_bundle) -> Ran:
        words = []
        for argument in map(str, arguments):
            if argument.endswith(".wav") and "/" not in argument:
                path = tmp_path / argument
                words.append(path if path.exists() else write_wav(argument, 2.0, seed=sum(argument.encode())))
            else:
                words.append(argument)
        with_model = ["-m", model, "--device", "cpu"] if model else []
        return speakerkit(*command.split(), *with_model, "--db", tmp_path / "voices.db", *words)

    return run


def told(ran: Ran) -> Any:
    """The JSON that a command printed."""
    assert ran.code == 0, ran
    return json.loads(ran.out)


def test_from_enrolment_to_identification(place: Callable[..., Ran], onnx_bundle: Path) -> None:
    ran = place("enroll", "ana", "a.wav", "b.wav")
    assert (ran.code, ran.out) == (0, "ana: 2 added, now 2 recordings, 4.0 s (4.0 s without pauses)\n"), ran
    result = told(place("enroll", "ana", "--json", "a.wav", "c.wav"))
    assert (result["recordings"], result["added"], result["known"]) == (3, 1, 1)
    assert any("a.wav: was enrolled already" in line for line in result["warnings"])
    assert told(place("enroll", "bo", "--json", "d.wav"))["recordings"] == 1
    assert "is enrolled as 'ana' too" in place("enroll", "bo", "a.wav").err

    listed = told(place("voices list", "--json", model=None))
    assert [(voice["name"], voice["recordings"]) for voice in listed["voices"]] == [("ana", 3), ("bo", 2)]
    assert listed["model"]["dimension"] == 16
    shown = told(place("voices show", "ana", "--json", model=None))
    assert [Path(row["source"]).name for row in shown["enrolments"]] == ["a.wav", "b.wav", "c.wav"]
    assert shown["model"]["normalisation"] == "length"

    found = told(place("identify", "--json", "--match", "exemplars", "--threshold", 0.999, "b.wav"))
    assert found["name"] == "ana"
    assert found["candidates"][0]["cosine"] == pytest.approx(1, abs=1e-6)
    assert all(-1 <= candidate["cosine"] <= 1 for candidate in found["candidates"])
    exemplar = told(place("verify", "--json", "--match", "exemplars", "ana", "b.wav"))
    assert exemplar["cosine"] == found["candidates"][0]["cosine"]
    assert told(place("verify", "--json", "ana", "b.wav"))["cosine"] < exemplar["cosine"]


def test_verify_two_recordings(place: Callable[..., Ran], onnx_bundle: Path, write_wav: Callable[..., Path]) -> None:
    one, other = write_wav("one.wav"), write_wav("other.wav", seed=1)
    ran = speakerkit("verify", "-m", onnx_bundle, one, other, "--json")
    similar = speakerkit("similarity", "-m", onnx_bundle, one, other, "--json")
    assert told(ran)["cosine"] == pytest.approx(told(similar)["cosine"], abs=2e-6)
    assert told(ran)["decision"] == "undecided"
    place("enroll", "ana", one)
    assert told(place("verify", "--json", one, other))["cosine"] == told(ran)["cosine"]
    assert told(place("verify", "--json", "ana", other))["cosine"] == pytest.approx(told(ran)["cosine"], abs=1e-6)


def test_a_name_and_a_file(
    place: Callable[..., Ran],
    onnx_bundle: Path,
    write_wav: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two recordings need no database; what is both a name and a file is never silently taken for one of them."""
    one, other = write_wav("one.wav"), write_wav("other.wav", seed=1)
    arguments = ["verify", "-m", onnx_bundle, "--json"]
    expected = told(speakerkit(*arguments, one, other))
    assert speakerkit(*arguments, "ana", other).errors[0].startswith("speakerkit: error: ana: no such file")
    monkeypatch.setenv("SPEAKERKIT_VOICES", str(tmp_path / "voices.db"))
    assert told(speakerkit(*arguments, one, other)) == expected
    assert not (tmp_path / "voices.db").exists()
    assert "voices.db: no such database" in speakerkit(*arguments, "ana", other).errors[0]
    place("enroll", "ana", one)
    assert told(speakerkit(*arguments, one, other)) == expected
    fault = f"bo: is neither a voice of {tmp_path}/voices.db nor a file"
    assert fault in speakerkit(*arguments, "bo", other).errors[0]
    monkeypatch.chdir(tmp_path)
    speakerkit("enroll", "-m", onnx_bundle, "other.wav", one)
    ran = speakerkit(*arguments, "other.wav", one)
    assert (ran.code, ran.out) == (2, "")
    assert "other.wav: is a file and a voice of" in ran.errors[0]
    assert told(speakerkit(*arguments, "./other.wav", one))["cosine"] == expected["cosine"]
    long = "日" * 200  # longer than the name of a file can be
    place("enroll", long, one)
    assert told(speakerkit(*arguments, long, other))["cosine"] == pytest.approx(expected["cosine"], abs=1e-6)


def test_text_may_be_asked_for(place: Callable[..., Ran]) -> None:
    place("enroll", "ana", "a.wav")
    assert place("verify", "--text", "--threshold", -1, "ana", "a.wav").out.endswith(
        "uncalibrated: yes: same speaker\n"
    )


def test_no_bare_yes_of_an_uncalibrated_model(place: Callable[..., Ran]) -> None:
    place("enroll", "ana", "a.wav")
    for arguments in ((), ("--threshold", -1), ("--threshold", 1)):
        for command in (("verify", "ana"), ("identify",)):
            ran = place(command[0], *arguments, *command[1:], "a.wav")
            assert ran.code == 0
            assert ran.out.splitlines()[-1].startswith("uncalibrated: ")
    assert "yes" not in place("verify", "ana", "a.wav").out
    assert place("verify", "--threshold", -1, "ana", "a.wav").out.endswith("uncalibrated: yes: same speaker\n")
    assert place("identify", "a.wav").out.endswith("uncalibrated: unknown (no threshold is known for this model)\n")


def test_a_calibrated_model_decides(place: Callable[..., Ran], calibrated: Path) -> None:
    place("enroll", "ana", "a.wav", model=calibrated)
    ran = place("verify", "ana", "a.wav", model=calibrated)
    lines = ran.out.splitlines()
    assert lines[0] == "cosine 1.0000"
    assert lines[1] == "LLR 1.00"
    assert lines[2] == "threshold 0.9000 (far 1 % on dev)"
    assert lines[3] == "yes: same speaker"
    assert place("verify", "--threshold", 1, "ana", "b.wav", model=calibrated).out.endswith("no: another speaker\n")
    found = told(place("identify", "--json", "a.wav", model=calibrated))
    assert found["name"] == "ana"
    assert found["candidates"][0]["llr"] == pytest.approx(1, abs=1e-4)
    assert (found["threshold"], found["threshold_source"]) == (0.9, "far 1 % on dev")


def test_strangers_are_unknown(place: Callable[..., Ran], calibrated: Path) -> None:
    for name in ("ana", "bo", "cy"):
        place("enroll", name, f"{name}.wav", model=calibrated)
    for arguments in (("--threshold", 1), ("--threshold", -1, "--margin", 2)):
        assert told(place("identify", "--json", *arguments, "x.wav", model=calibrated))["name"] == "unknown"
    ran = place("identify", "--threshold", -1, "-k", 2, "x.wav", model=calibrated)
    lines = ran.out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("1. ")
    assert lines[-1] == lines[0].split()[1]


def test_outliers_and_several_speakers_are_warned_about(
    place: Callable[..., Ran], calibrated: Path, tmp_path: Path
) -> None:
    """With a threshold that the odd one stays under and the others do not."""
    same = [speech_like(2.0, seed=1) for _ in range(3)]
    noise = np.random.default_rng(5).normal(size=32000) * 1e-3
    for number, samples in enumerate(same):
        soundfile.write(tmp_path / f"{number}.wav", samples + number * noise, 16000)
    odd = (np.sin(2 * np.pi * 300 * np.arange(32000) / 16000) * speech_like(2.0, seed=9)).astype(np.float32)
    soundfile.write(tmp_path / "odd.wav", odd, 16000)
    cosine = told(place("verify", "--json", tmp_path / "0.wav", tmp_path / "odd.wav"))["cosine"]
    values = {"threshold": (1 + cosine) / 2, "source": "x"}
    (calibrated / "calibration.json").write_text(json.dumps(values))
    ran = place("enroll", "ana", "0.wav", "1.wav", "2.wav", model=calibrated)
    assert "unlike" not in ran.err
    ran = place("enroll", "ana", "odd.wav", model=calibrated)
    assert ran.code == 0
    assert "odd.wav: is unlike the other recordings of this voice" in ran.err
    assert "0.wav: is unlike" not in ran.err

    part = np.tile(same[0], 2)[:48000]
    two = np.concatenate([part, part, part, np.tile(odd, 2)[:48000]])
    soundfile.write(tmp_path / "two.wav", two, 16000)
    assert (
        "two.wav: may hold several speakers: it sounds unlike itself from 9.0 s"
        in place("enroll", "bo", "two.wav", model=calibrated).err
    )
    soundfile.write(tmp_path / "alone.wav", np.tile(part, 4), 16000)
    assert "several" not in place("enroll", "cy", "alone.wav", model=calibrated).err


@pytest.mark.parametrize("kind", ["zeros", "tone", "short", "noise", "missing"])
def test_without_speech_there_is_no_voice(place: Callable[..., Ran], tmp_path: Path, kind: str) -> None:
    """Exit 2 and no score, and nothing is enrolled, not even the good recording beside it."""
    time = np.arange(32000) / 16000
    samples = {
        "zeros": np.zeros(32000),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * time),
        "short": speech_like(0.1),
        "noise": np.random.default_rng(0).normal(size=32000) / 10,
    }
    bad = tmp_path / "bad.wav"
    if kind in samples:
        soundfile.write(bad, samples[kind], 16000)
    place("enroll", "ana", "a.wav")
    for command in (
        ("enroll", "new", "b.wav", bad),
        ("verify", "ana", bad),
        ("verify", "--threshold", -1, bad, "a.wav"),
        ("verify", "--json", tmp_path / "a.wav", bad),
        ("identify", "--threshold", -1, bad),
    ):
        ran = place(*command)
        assert (ran.code, ran.out) == (2, ""), ran
        assert len(ran.errors) == 1
        assert "bad.wav" in ran.errors[0]
    assert "new" not in place("voices list", model=None).out


def test_short_audio_may_be_padded(place: Callable[..., Ran], write_wav: Callable[..., Path]) -> None:
    short = write_wav("short.wav", 0.2)
    assert place("enroll", "ana", short).code == 2
    assert told(place("enroll", "--json", "--short", "pad", "ana", short))["seconds"] == pytest.approx(0.2)


def test_another_model_is_refused(
    place: Callable[..., Ran], onnx_bundle: Path, tmp_path: Path, write_wav: Callable[..., Path]
) -> None:
    from tests.graphs import write_mean_graph

    other = tmp_path / "other"
    shutil.copytree(onnx_bundle, other)
    write_mean_graph(other / "model.onnx", size=16)
    place("enroll", "ana", "a.wav")
    before = (tmp_path / "voices.db").read_bytes()
    for command in (("enroll", "bo", "a.wav"), ("verify", "ana", "a.wav"), ("identify", "a.wav")):
        ran = place(*command, model=other)
        assert (ran.code, ran.out) == (2, "")
        assert "voices.db: holds voiceprints of model" in ran.errors[0]
    assert (tmp_path / "voices.db").read_bytes() == before


def test_empty_and_missing_databases(place: Callable[..., Ran], tmp_path: Path) -> None:
    for command in (("identify", "a.wav"), ("verify", "ana", "a.wav")):
        ran = place(*command)
        assert ran.code == 2
        assert "voices.db: no such database" in ran.errors[0]
    for command in ("voices list", "voices show ana", "voices remove ana", "voices export x.npy", "voices index"):
        ran = place(command, model=None)
        assert (ran.code, ran.out) == (2, "")
        assert "voices.db: no such database" in ran.errors[0]
    place("enroll", "ana", "a.wav")
    assert place("voices remove", "ana", model=None).out == "ana: removed\n"
    for command in (("identify", "a.wav"), ("verify", "ana", "a.wav")):
        ran = place(*command)
        assert ran.code == 2
        assert "voices.db: holds no voices" in ran.errors[0]
    assert told(place("voices list", "--json", model=None)) == {"model": None, "voices": []}


def test_voices_are_renamed_and_removed(place: Callable[..., Ran]) -> None:
    place("enroll", "ana", "a.wav")
    place("enroll", "bo", "b.wav")
    assert "has a voice 'bo' already" in place("voices rename", "ana", "bo", model=None).errors[0]
    assert place("voices rename", "ana", "Ána Ng", model=None).code == 0
    assert (
        place("voices list", model=None)
        .out.splitlines()[1]
        .startswith("Ána Ng  1 recording, 2.0 s (2.0 s without pauses)  since 20")
    )
    assert "Ána Ng: 1 recording, 2.0 s (2.0 s without pauses); model " in place("voices show", "Ána Ng", model=None).out
    ran = place("voices remove", "bo", "nobody", model=None)
    assert (ran.code, ran.out) == (2, "")  # all or none
    assert len(place("voices list", model=None).out.splitlines()) == 2
    assert place("voices remove", "bo", "Ána Ng", model=None).out == "bo: removed\nÁna Ng: removed\n"
    assert place("voices list", model=None).out == ""
    assert place("enroll", "unknown", "a.wav").code == 2


@pytest.mark.parametrize("form", ["npy", "jsonl", "scp"])
def test_out_and_in_again(place: Callable[..., Ran], tmp_path: Path, form: str, onnx_bundle: Path) -> None:
    place("enroll", "ana", "a.wav", "b.wav")
    place("enroll", "bo", "c.wav")
    out = tmp_path / f"out.{form}"
    ran = place("voices export", out, "--vectors", "exemplars", model=None)
    assert ran.out == f"{out}: 2 voices\n"
    assert len(read_embeddings(out)) == 3
    other = tmp_path / "other.db"
    ran = speakerkit("voices", "import", out, "--db", other)
    assert ran.out == "2 voices: 3 recordings added, 0 were there\n", ran
    assert speakerkit("voices", "import", out, "--db", other).out.endswith("0 recordings added, 3 were there\n")
    assert speakerkit("voices", "list", "--db", other).out == place("voices list", model=None).out
    here = told(place("identify", "--json", "d.wav"))
    there = told(speakerkit("identify", "-m", onnx_bundle, "--db", other, "--json", tmp_path / "d.wav"))
    assert here == there


def test_embeddings_of_a_corpus_are_enrolled(tmp_path: Path, onnx_bundle: Path, write_wav: Callable[..., Path]) -> None:
    """What `embed --scp` wrote knows its model; utt2spk says whose each is."""
    (tmp_path / "wav.scp").write_text("".join(f"u{n} {write_wav(f'{n}.wav', seed=n)}\n" for n in range(3)))
    (tmp_path / "utt2spk").write_text("u0 s\nu1 s\nu2 t\n")
    speakerkit("embed", "-m", onnx_bundle, "--scp", tmp_path / "wav.scp", "--out", tmp_path / "e.scp")
    db = tmp_path / "voices.db"
    ran = speakerkit("voices", "import", tmp_path / "e.scp", "--db", db, "--utt2spk", tmp_path / "utt2spk")
    assert ran.out == "2 voices: 3 recordings added, 0 were there\n", ran
    ran = speakerkit("identify", "-m", onnx_bundle, "--db", db, "--json", "--match", "exemplars", tmp_path / "2.wav")
    assert told(ran)["candidates"][0]["name"] == "t"
    assert told(ran)["candidates"][0]["cosine"] == pytest.approx(1, abs=1e-5)


def test_an_index_is_built(place: Callable[..., Ran], tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'speakerkit[search]'")
    place("enroll", "ana", "a.wav")
    built = place("voices index", "--kind", "flat", model=None).out
    (path,) = tmp_path.glob("voices.db.mean.*.faiss")
    assert built == f"{path}: built\n"
    assert place("voices index", "--kind", "none", model=None).code == 2
    place("enroll", "bo", "b.wav")
    assert told(place("identify", "--json", "--threshold", 0.999, "b.wav"))["name"] == "bo"


def test_wrong_usage(place: Callable[..., Ran], tmp_path: Path) -> None:
    place("enroll", "ana", "a.wav")
    for command in (
        ("verify", "--match", "some", "ana", "a.wav"),
        ("verify", "nobody", "a.wav"),
        ("verify", "--threshold", 2, "ana", "a.wav"),
        ("identify", "-k", 0, "a.wav"),
        ("identify", "--margin", -1, "a.wav"),
        ("identify", "--short", "x", "a.wav"),
        ("enroll", "new\nline", "a.wav"),
    ):
        ran = place(*command)
        assert (ran.code, ran.out, len(ran.errors)) == (2, "", 1), ran
    ran = speakerkit("voices", "export", tmp_path / "x.txt", "--db", tmp_path / "voices.db")
    assert (ran.code, len(ran.errors)) == (2, 1)
