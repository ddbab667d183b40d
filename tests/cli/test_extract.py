"""``speakerkit extract``, as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.data.lists import read_scp, write_table
from tests.command import Ran, speakerkit
from tests.conftest import speech_like
from tests.extraction.bundles import gain_extractor

RATE = 8000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two mixtures, one that is silent, one that is none, and two enrolments."""
    for seed, name in enumerate(("one", "two words", "ana", "bob")):
        soundfile.write(tmp_path / f"{name}.wav", speech_like(4.0, RATE, seed), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    return tmp_path


@pytest.fixture
def run(tmp_path: Path, onnx_bundle: Path) -> Callable[..., Ran]:
    """The command with a model that multiplies the mixture with the mean of the voice."""
    model = gain_extractor(tmp_path / "model", onnx_bundle).path

    def command(*arguments: object) -> Ran:
        return speakerkit("extract", "-m", model, "--device", "cpu", "--threads", 1, *arguments)

    return command


def test_one_voice(run: Callable[..., Ran], place: Path) -> None:
    ran = run(place / "one.wav", "--enrol", place / "ana.wav", "--out", place / "out", "--threshold", -1)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{place / 'out' / 'one-ana.wav'}: ")
    assert "threshold -1.00 (--threshold)" in ran.out
    samples, rate = soundfile.read(place / "out" / "one-ana.wav")
    mixture, _ = soundfile.read(place / "one.wav")
    assert (rate, len(samples)) == (RATE, len(mixture))
    assert abs(np.corrcoef(samples, mixture)[0, 1]) > 0.9999
    assert soundfile.info(place / "out" / "one-ana.wav").subtype == "FLOAT"
    again = run(place / "one.wav", "--enrol", place / "ana.wav", "--out", place / "out", "--threshold", -1, "--json")
    report = json.loads(again.out)
    assert (report["written"], report["kept"], report["failed"]) == (0, 1, 0)
    (row,) = report["voices"]
    assert (row["key"], row["target"], row["file"], row["threshold"]) == ("one-ana", "ana", "one-ana.wav", -1.0)
    other = run(place / "one.wav", "--enrol", place / "ana.wav", "--out", place / "out")
    assert other.code == 2
    assert "made with other settings (threshold, threshold_source)" in other.err


def test_several_targets_of_several_mixtures(run: Callable[..., Ran], place: Path) -> None:
    targets = ["--enrol", f"ana={place}/ana.wav,{place}/one.wav", "--enrol", place / "bob.wav"]
    (place / "list.scp").write_text(f"list/ed {place}/two words.wav\n")
    ran = run(place / "one.wav", place / "list.scp", place / "broken.wav", *targets, "--out", place / "out", "--json")
    assert ran.code == 3
    assert "failed.tsv: 2 of 6 voices failed, the first:" in ran.err
    report = json.loads(ran.out)
    assert [row["file"] for row in report["voices"]] == [
        *("one-ana.wav", "one-bob.wav", "list%2Fed-ana.wav", "list%2Fed-bob.wav")
    ]
    assert [row["enrolment"] for row in report["voices"][:2]] == [
        f"{place}/ana.wav,{place}/one.wav",
        f"{place}/bob.wav",
    ]
    assert [line.partition("\t")[0] for line in (place / "out" / "failed.tsv").read_text().splitlines()] == [
        *("broken-ana", "broken-bob")
    ]


def test_what_follows_an_enrolment_is_of_the_same_target(run: Callable[..., Ran], place: Path) -> None:
    ana, bob, one = (place / f"{name}.wav" for name in ("ana", "bob", "one"))
    for arguments, enrolments in (
        ([one, "--enrol", ana, bob], [f"{ana},{bob}"]),
        ([one, f"--enrol=x={ana}", bob, "--enrol", f"y={bob}"], [f"{ana},{bob}", f"{bob}"]),
        (["--enrol", f"x={ana}", bob, f"y={one}", "--", one], [f"{ana},{bob}", f"{one}"]),
        (["--enrol", ana, "--json", one], [f"{ana}"]),
    ):
        ran = run("--out", place / "out", "--overwrite", "--json", *arguments)
        assert ran.code == 0, ran.err
        assert [row["enrolment"] for row in json.loads(ran.out)["voices"]] == enrolments
    alone = run("--enrol", ana, one, "--out", place / "out")
    assert (alone.code, len(alone.errors)) == (2, 1)
    assert "Missing argument 'mixtures'" in alone.errors[0]


def test_names_with_blanks_in_all_lists(run: Callable[..., Ran], place: Path) -> None:
    ran = run(place / "two words.wav", place / "broken.wav", "--enrol", f"an a={place}/ana.wav", "--out", place / "out")
    assert ran.code == 3
    key = "two%20words-an%20a"
    assert read_scp(place / "out" / "wav.scp") == {key: str(place / "out" / f"{key}.wav")}
    row = json.loads((place / "out" / "results.jsonl").read_text())
    assert (row["key"], row["file"], row["target"]) == (key, f"{key}.wav", "an a")
    assert (place / "out" / f"{key}.wav").is_file()
    assert (place / "out" / "failed.tsv").read_text().startswith("broken-an%20a\t")
    again = run(place / "two words.wav", "--enrol", f"an a={place}/ana.wav", "--out", place / "out", "--json")
    assert json.loads(again.out)["kept"] == 1


def test_two_voices_of_one_key_are_refused(run: Callable[..., Ran], place: Path) -> None:
    (place / "one.wav").rename(place / "a.wav")
    (place / "two words.wav").rename(place / "a-b.wav")
    targets = ["--enrol", f"c={place}/ana.wav", "--enrol", f"b-c={place}/bob.wav"]
    ran = run(place / "a.wav", place / "a-b.wav", *targets, "--out", place / "out")
    assert (ran.code, len(ran.errors)) == (2, 1)
    assert "a-b-c: is the key MIXTURE-TARGET of two voices" in ran.errors[0]
    assert not (place / "out").exists()


def test_silence_gives_silence(run: Callable[..., Ran], place: Path) -> None:
    ran = run(place / "silent.wav", "--enrol", place / "ana.wav", "--out", place / "out", "--json")
    assert ran.code == 0
    (row,) = json.loads(ran.out)["voices"]
    assert (row["target_present"], row["similarity"]) == (False, None)
    assert not soundfile.read(place / "out" / "silent-ana.wav")[0].any()
    assert "is not heard in the mixture" in ran.err


@pytest.mark.parametrize("samples", [1, 7, 100])
def test_next_to_nothing(run: Callable[..., Ran], place: Path, samples: int) -> None:
    """Mixtures of a handful of samples, and of a constant."""
    soundfile.write(place / "short.wav", speech_like(1.0, RATE)[:samples], RATE, subtype="FLOAT")
    soundfile.write(place / "constant.wav", np.full(100 * samples, 0.1), RATE, subtype="FLOAT")
    ran = run(
        place / "short.wav", place / "constant.wav", "--enrol", place / "ana.wav", "--out", place / "out", "--json"
    )
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["voices"]
    assert [soundfile.info(place / "out" / row["file"]).frames for row in rows] == [samples, 100 * samples]
    assert all(np.isfinite(soundfile.read(place / "out" / row["file"])[0]).all() for row in rows)


def test_enrolled_voices(run: Callable[..., Ran], place: Path, onnx_bundle: Path) -> None:
    db = place / "voices.db"
    assert speakerkit("enroll", "-m", onnx_bundle, "--db", db, "Ana B", place / "ana.wav").code == 0
    stored = run(place / "one.wav", "--voice", "Ana B", "--voices", db, "--out", place / "out")
    assert stored.code == 0, stored.err
    run(place / "one.wav", "--enrol", place / "ana.wav", "--out", place / "out")
    one, other = (soundfile.read(place / "out" / name)[0] for name in ("one-Ana%20B.wav", "one-ana.wav"))
    np.testing.assert_allclose(one, other, atol=1e-5)
    unknown = run(place / "one.wav", "--voice", "bob", "--voices", db, "--out", place / "out")
    assert unknown.code == 2
    assert "bob" in unknown.errors[0]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["one.wav"], "is told no target"),
        (["one.wav", "--voice", "ana"], "--voice: needs a database"),
        (["one.wav", "--enrol", "ana="], "names no target or no file"),
        (["one.wav", "--enrol", "nothing.wav"], "nothing.wav: no such file"),
        (["one.wav", "--enrol", "silent.wav"], "silent.wav: is silent"),
        (["broken.wav", "--enrol", "ana.wav"], "broken.wav: cannot be decoded"),
        (["one.wav", "--enrol", "ana.wav", "--overlap", "9"], "overlap"),
        (["one.wav", "--enrol", "ana.wav", "--calibrate"], "needs a directory"),
        (["one.wav", "--enrol", "ana.wav", "--device", "tpu"], "none of auto, cpu, cuda"),
        ([".", "--enrol", "ana.wav"], "names its targets itself"),
        (["."], "wav.scp"),
    ],
)
def test_what_cannot_be(
    run: Callable[..., Ran], place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fault: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("SPEAKERKIT_VOICES", raising=False)
    ran = run(*arguments, "--out", place / "out")
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert fault in ran.errors[0]


def test_a_directory_and_its_calibration(run: Callable[..., Ran], place: Path) -> None:
    folder = place / "mixtures"
    keys = [f"{mixture}-{speaker}" for mixture in ("one", "two") for speaker in ("ana", "bob")]
    write_table(folder / "wav.scp", {"one": str(place / "one.wav"), "two": str(place / "two words.wav")})
    write_table(folder / "enroll.scp", {key: str(place / f"{key[-3:]}.wav") for key in keys})
    write_table(folder / "utt2spk", {key: key[-3:] for key in keys})
    for references, fault in (
        (None, "ref.scp: no such file"),
        (keys, "ref.scp: has no absent targets"),
        (["three-ana"], "ref.scp: has no present targets"),
    ):
        if references is not None:
            write_table(folder / "ref.scp", dict.fromkeys(references, "x.wav"))
        early = run(folder, "--out", place / "out", "--calibrate")
        assert (early.code, len(early.errors)) == (2, 1)
        assert fault in early.errors[0]
        assert not (place / "out").exists()  # before anything is extracted
    write_table(folder / "ref.scp", {key: "x.wav" for key in keys[:3]})
    ran = run(folder, "--out", place / "out", "--calibrate", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == {
        **{"out": str(place / "out"), "written": 4, "kept": 0, "failed": 0},
        **{key: json.loads(ran.out)[key] for key in ("absent", "likely_swaps", "warned")},
    }
    assert sorted(path.name for path in (place / "out").glob("*.wav")) == [f"{key}.wav" for key in sorted(keys)]
    stored = json.loads((place / "model" / "presence.json").read_text())
    assert stored["source"].endswith("of 4 in mixtures")
    assert f"threshold {stored['threshold']:.4f} is stored" in ran.err
    refused = run(folder, "--out", place / "out")
    assert refused.code == 2
    assert "made with other settings (threshold, threshold_source)" in refused.err
    assert run(folder, "--out", place / "out", "--overwrite").out == (
        f"{place / 'out'}: 4 written, 0 kept, 0 failed, {json.loads(ran.out)['absent']} absent, 0 likely swaps\n"
    )
