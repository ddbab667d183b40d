"""``speakerkit diarize``, as a user meets it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.bundle import read_weights, write_weights
from speakerkit.data.ark import read_embeddings
from speakerkit.diarization.formats import read_turns
from speakerkit.verification.backend import Backend
from speakerkit.verification.backend_file import write_backend
from speakerkit.verification.chain import Chain
from speakerkit.verification.plda import Plda
from tests.command import Ran, speakerkit
from tests.conftest import speech_like
from tests.diarization.voices import plda_backend

RATE = 16000
ALL_FORMATS = "rttm,json,csv,textgrid,audacity,lab,srt,vtt"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with recordings: two of speech, one silent, one that is none."""
    for seed, name in enumerate(("one", "two words")):
        parts = [speech_like(3.0, seed=seed), np.zeros(RATE, np.float32), speech_like(2.0, seed=seed + 7)]
        soundfile.write(tmp_path / f"{name}.wav", np.concatenate(parts), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    return tmp_path


@pytest.fixture
def run(onnx_bundle: Path) -> Callable[..., Ran]:
    """The command with the small model, and the VAD that takes coloured noise for speech."""

    def command(*arguments: object, model: Path = onnx_bundle) -> Ran:
        return speakerkit("diarize", "-m", model, "--vad", "energy", "--device", "cpu", *arguments)

    return command


def test_to_stdout(run: Callable[..., Ran], place: Path) -> None:
    ran = run(place / "one.wav", "--num-speakers", 2)
    assert ran.code == 0
    fields = [line.split() for line in ran.out.splitlines()]
    assert {row[7] for row in fields} == {"A", "B"}
    assert all(row[:3] == ["SPEAKER", "one", "1"] and len(row) == 10 for row in fields)
    assert all(0 <= float(row[8]) <= 1 for row in fields)
    assert '"threshold": 0.5' in ran.err
    report = json.loads(run(place / "one.wav", "--num-speakers", 2, "--json", "--save-embeddings").out)
    (recording,) = report["recordings"]
    assert recording["settings"]["clustering"]["num_speakers"] == 2
    assert recording["settings"]["vad"]["method"] == "energy"
    assert [len(each["embedding"]) for each in recording["speakers"]] == [16, 16]
    assert len(recording["turns"]) == len(fields)


def test_formats_agree(run: Callable[..., Ran], place: Path) -> None:
    out = place / "out"
    ran = run(place / "one.wav", place / "two words.wav", "--out", out, "--format", ALL_FORMATS, "--num-speakers", 2)
    assert ran.code == 0
    assert ran.out == f"{out}: 2 written, 0 were there, 0 failed\n"
    suffixes = (".rttm", ".json", ".csv", ".TextGrid", ".lab", ".srt", ".vtt")
    for stem in ("one", "two words"):
        turns = [
            [
                (turn.start, turn.end, turn.speaker)
                for turn in next(iter(read_turns(out / (stem + suffix)).values())).turns
            ]
            for suffix in suffixes
        ]
        turns.append(
            [
                (turn.start, turn.end, turn.speaker)
                for turn in next(iter(read_turns(out / f"{stem}.txt", "audacity").values())).turns
            ]
        )
        assert turns[0]
        assert all(each == turns[0] for each in turns)


def test_a_batch_survives_and_goes_on(run: Callable[..., Ran], place: Path) -> None:
    names = {"first": "one.wav", "bad": "broken.wav", "gone": "not there.wav", "quiet": "silent.wav"}
    (place / "wav.scp").write_text("".join(f"{key} {place / name}\n" for key, name in names.items()))
    out = place / "out"
    arguments = (place / "wav.scp", place / "two words.wav", "--out", out, "--num-speakers")
    ran = run(*arguments[:-1], "--cluster", "ahc", "--save-embeddings")
    assert ran.code == 3
    assert len(ran.errors) == 1
    assert "2 of 5 recordings failed" in ran.errors[0]
    assert "no speech was found" in ran.err
    assert sorted(path.stem for path in out.glob("*.rttm")) == ["first", "quiet", "two words"]
    assert (out / "quiet.rttm").read_text() == ""
    assert read_embeddings(out / "first.embeddings.npz").dim == 16
    assert not (out / "quiet.embeddings.npz").exists()
    failed = dict(line.split("\t") for line in (out / "failed.tsv").read_text().splitlines())
    assert set(failed) == {"bad", "gone"}
    assert "not there.wav" in failed["gone"]
    stamp = (out / "first.rttm").stat().st_mtime_ns
    shutil.copy(place / "one.wav", place / "broken.wav")
    shutil.copy(place / "one.wav", place / "not there.wav")
    ran = run(*arguments[:-1], "--cluster", "ahc", "--save-embeddings", "--json")
    assert ran.code == 0
    assert json.loads(ran.out) == {"out": str(out), "written": 2, "kept": 3, "failed": 0}
    assert not (out / "failed.tsv").exists()
    assert (out / "first.rttm").stat().st_mtime_ns == stamp
    ran = run(*arguments[:-1], "--cluster", "ahc", "--save-embeddings", "--cluster-threshold", 0.5)
    assert ran.code == 2
    assert "made with other settings (clustering)" in ran.errors[0]
    assert run(*arguments[:-1], "--cluster-threshold", 0.5, "--cluster", "ahc", "--overwrite").code == 0
    assert (out / "first.rttm").stat().st_mtime_ns > stamp


def test_all_bad_is_an_error(run: Callable[..., Ran], place: Path) -> None:
    bad = run(place / "broken.wav", "--out", place / "out")
    assert bad.code == 2
    assert len(bad.errors) == 1
    assert not list((place / "out").glob("*.rttm"))
    both = run(place / "broken.wav", place / "gone.wav", "--out", place / "out")
    assert both.code == 2
    shown = run(place / "broken.wav", place / "one.wav")
    assert shown.code == 3
    assert shown.out.startswith("SPEAKER one")
    assert len(shown.errors) == 1


def test_order_and_threads_change_nothing(run: Callable[..., Ran], place: Path) -> None:
    files = [place / "one.wav", place / "two words.wav", place / "silent.wav"]
    for name, order, threads in (("a", files, 1), ("b", files[::-1], 8)):
        assert run(*order, "--out", place / name, "--format", "rttm,json", "--threads", threads).code == 0
    for path in sorted((place / "a").iterdir()):
        assert path.read_bytes() == (place / "b" / path.name).read_bytes()


@pytest.mark.parametrize("vad", ["silero", "energy"])
def test_silence_is_an_empty_rttm(run: Callable[..., Ran], place: Path, vad: str) -> None:
    ran = run(place / "silent.wav", "--vad", vad)
    assert ran.code == 0
    assert ran.out == ""
    assert "no speech was found" in ran.err


def test_the_count_is_kept_or_refused(run: Callable[..., Ran], place: Path) -> None:
    for flags, least, most in (
        (("--min-speakers", 3), 3, 99),
        (("--max-speakers", 1), 1, 1),
        (("--num-speakers", 4), 4, 4),
    ):
        found = {line.split()[7] for line in run(place / "one.wav", *flags).out.splitlines()}
        assert least <= len(found) <= most
    ran = run(place / "one.wav", "--num-speakers", 99)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert ran.out == ""


def test_given_speech(run: Callable[..., Ran], place: Path) -> None:
    (place / "rttm").write_text(  # called so, as in Kaldi
        "SPEAKER one 1 0.123456 1.5 <NA> <NA> x <NA> <NA>\nSPEAKER one 1 4.5 99.25 <NA> <NA> y <NA> <NA>\n"
    )
    ran = run(place / "one.wav", "--vad-rttm", place / "rttm", "--num-speakers", 1)
    assert [line.split()[3:5] for line in ran.out.splitlines()] == [["0.123", "1.500"], ["4.500", "1.500"]]
    missing = run(place / "two words.wav", "--vad-rttm", place / "rttm")
    assert missing.code == 2
    assert "no turns of recording 'two words'" in missing.errors[0]


def test_channels(run: Callable[..., Ran], place: Path) -> None:
    left, right = speech_like(4.0, seed=1), np.zeros(4 * RATE, np.float32)
    right[RATE : 3 * RATE] = speech_like(2.0, seed=2)
    soundfile.write(place / "call.wav", np.stack([left, right], axis=1), RATE)
    each = run(place / "call.wav", "--channel", "each", "--num-speakers", 1)
    rows = [line.split() for line in each.out.splitlines()]
    assert {row[2] for row in rows} == {"1", "2"}
    second = run(place / "call.wav", "--channel", 1, "--num-speakers", 1)
    assert second.out.splitlines() == [line for line in each.out.splitlines() if line.split()[2] == "2"]
    out = place / "out"
    flags = ("--channel", "each", "--num-speakers", 1, "--out", out, "--format", "rttm,lab", "--save-embeddings")
    assert run(place / "call.wav", *flags).code == 0
    names = {"call.rttm", "call-1.lab", "call-2.lab", "call.embeddings.npz", "diarize.yaml"}
    assert {path.name for path in out.iterdir()} == names
    assert read_embeddings(out / "call.embeddings.npz").keys == ["1:A", "2:A"]
    assert "1 were there" in run(place / "call.wav", *flags).out
    assert run(place / "call.wav", "--channel", 5).code == 2
    assert run(place / "call.wav", "--channel", "left").code == 2


def test_known_voices_have_their_names(run: Callable[..., Ran], place: Path, onnx_bundle: Path) -> None:
    db = place / "voices.db"
    soundfile.write(place / "ana.wav", speech_like(3.0, seed=0), RATE)
    enrolled = speakerkit("enroll", "-m", onnx_bundle, "--db", db, "ana maria", place / "ana.wav", "--device", "cpu")
    assert enrolled.code == 0
    uncalibrated = run(place / "one.wav", "--speakers", db)
    assert uncalibrated.code == 2
    assert "--name-threshold" in uncalibrated.errors[0]
    flags = ("--speakers", db, "--name-threshold", 0.5, "--num-speakers", 1)
    for name in ("one", "ana"):
        ran = run(place / f"{name}.wav", *flags, "--json")
        (recording,) = json.loads(ran.out)["recordings"]
        assert {turn["speaker"] for turn in recording["turns"]} == {"ana maria"}
        assert recording["speakers"][0]["cosine"] > 0.5
    strict = run(place / "one.wav", "--speakers", db, "--name-threshold", 1, "--num-speakers", 1)
    assert {line.split()[7] for line in strict.out.splitlines()} == {"A"}


def test_every_knob_is_a_flag(run: Callable[..., Ran], place: Path, onnx_bundle: Path) -> None:
    write_backend(place / "plda.safetensors", plda_backend(16))
    for flags in (
        ("--cluster", "spectral", "--neighbours", 5, "--most-clusters", 4, "--seed", 3),
        ("--cluster", "nme-sc", "--least-neighbours", 4, "--largest-share", 0.5, "--steps", 5, "--search-windows", 64),
        ("--cluster", "hdbscan", "--min-samples", 3, "--dimensions", 4, "--min-cluster-size", 2),
        ("--cluster", "kmeans", "--starts", 2, "--cluster-threshold", 0.2),
        (
            *("--cluster", "vbx", "--plda", place / "plda.safetensors", "--acoustic-scale", 0.2, "--speaker-scale", 8),
            *("--loop-probability", 0.9, "--dimensions", 8, "--iterations", 5, "--tolerance", 0.001),
            *("--softening", 4, "--most-start", 9),
        ),
        ("--window", "1.5,1.0,0.5", "--hop", 0.25, "--min-window", 0.2, "--batch-size", 4, "--exclusive"),
        ("--vad-threshold", 0.6, "--vad-negative-threshold", 0.2, "--vad-pad", 0.1, "--vad-min-silence", 0.3),
        ("--vad-min-speech", 0.1, "--vad-max-speech", 9, "--vad-rate", 8000),
    ):
        ran = run(place / "one.wav", "--json", *flags)
        assert ran.code == 0, (flags, ran.err)
        (recording,) = json.loads(ran.out)["recordings"]
        assert recording["turns"]
        told = json.dumps(recording["settings"])
        for name, value in zip(flags[::2], flags[1::2], strict=False):
            if name not in ("--plda", "--window", "--batch-size", "--exclusive", "--min-window", "--hop"):
                key = str(name)[2:].removeprefix("vad-").replace("cluster-threshold", "threshold").replace("-", "_")
                key = {"cluster": "method", "rate": "sample_rate"}.get(key, key)
                assert f'"{key}": {json.dumps(value)}' in told, name


@pytest.fixture(scope="module")
def networks(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a TS-VAD and an EEND."""
    pytest.importorskip("torch")
    from tests.diarization.networks import write_eend, write_tsvad

    folder = tmp_path_factory.mktemp("networks")
    write_tsvad(folder / "tsvad", small_bundle)
    write_eend(folder / "eend")
    return folder


def test_networks(run: Callable[..., Ran], place: Path, networks: Path) -> None:
    for flags, name in ((("--refine", networks / "tsvad"), "tsvad"), (("--model-eend", networks / "eend"), "eend")):
        ran = run(place / "one.wav", *flags, "--num-speakers", 2, "--json")
        assert ran.code == 0, ran.err
        (recording,) = json.loads(ran.out)["recordings"]
        assert {turn["speaker"] for turn in recording["turns"]} == {"A", "B"}
        assert len(recording["settings"][name]["model"]) == 64
        silent = run(place / "silent.wav", *flags)
        assert (silent.code, silent.out) == (0, "")


def test_a_network_that_was_trained_again_is_another(run: Callable[..., Ran], place: Path, networks: Path) -> None:
    shutil.copytree(networks / "tsvad", place / "tsvad")
    arguments = (place / "one.wav", "--out", place / "out", "--refine", place / "tsvad", "--num-speakers", 2)
    assert run(*arguments).code == 0
    assert "1 were there" in run(*arguments).out
    path = place / "tsvad" / "model.safetensors"
    write_weights(path, {name: 0.9 * tensor for name, tensor in read_weights(path).items()})
    ran = run(*arguments)
    assert ran.code == 2
    assert "made with other settings (refine)" in ran.errors[0]


def test_a_wrong_network_is_told_before_any_recording(run: Callable[..., Ran], place: Path, networks: Path) -> None:
    for flags in (("--refine", networks / "eend"), ("--model-eend", networks / "tsvad")):
        ran = run(place / "silent.wav", *flags, "--out", place / "out")
        assert ran.code == 2
        assert "is a model of task" in ran.errors[0]
        assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--refinements", 2), "--refinements: is of no use without --refine"),
        (("--name-margin", 0.1), "--name-margin: is of no use without --speakers"),
        (("--match", "max"), "--match: is of no use without --speakers"),
        (("--model-eend", "gone", "--cluster", "ahc"), "--cluster: is of no use to --model-eend"),
        (("--model-eend", "gone", "--cluster-threshold", 0.2), "--cluster-threshold: is of no use to --model-eend"),
        (("--model-eend", "gone", "--window", "2.0"), "--window: is of no use to --model-eend"),
    ],
)
def test_options_that_would_change_nothing(
    run: Callable[..., Ran], place: Path, flags: tuple[object, ...], said: str
) -> None:
    ran = run(place / "one.wav", *flags)
    assert ran.code == 2
    assert said in ran.errors[0]


def test_wrong_use_is_one_line(run: Callable[..., Ran], place: Path, torch_bundle: Path) -> None:
    write_backend(place / "plda.safetensors", plda_backend(32))
    psda = Backend(Chain(), Plda.of(np.zeros(16), np.eye(16), np.eye(16)), 16, extractor="another")
    write_backend(place / "other.safetensors", psda)
    for flags in (
        ("--cluster", "best"),
        ("--cluster", "ahc", "--neighbours", 3),
        ("--cluster", "vbx"),
        ("--cluster", "vbx", "--plda", place / "plda.safetensors"),
        ("--cluster", "vbx", "--plda", place / "other.safetensors"),
        ("--plda", place / "plda.safetensors"),
        ("--cluster", "vbx", "--window", "1.5,1.0"),
        ("--format", "wav"),
        ("--format", "rttm,json"),
        ("--format", "lab", "--channel", "each"),
        ("--window", "long"),
        ("--hop", 0),
        ("--num-speakers", 0),
        ("--min-speakers", 3, "--max-speakers", 2),
        ("--vad", "none"),
        ("--save-embeddings",),
        ("--vad-rttm", place / "gone.rttm"),
        ("--refine", place / "gone"),
        ("--model-eend", torch_bundle),
        ("--speakers", place / "gone.db"),
        ("--match", "all", "--speakers", place / "gone.db"),
        (place / "one.wav",),
    ):
        ran = run(place / "one.wav", *flags)
        assert ran.code == 2, (flags, ran)
        assert len(ran.errors) == 1, flags
        assert ran.out == "", flags


def test_names_that_are_no_file_names(run: Callable[..., Ran], place: Path) -> None:
    (place / "a.scp").write_text(f"rec/1:a {place / 'one.wav'}\n")
    assert run(place / "a.scp", "--out", place / "out", "--num-speakers", 1).code == 0
    (path,) = (place / "out").glob("*.rttm")
    assert path.name == "rec%2F1%3Aa.rttm"
    assert [each.recording for each in read_turns(path).values()] == ["rec/1:a"]


def test_pipes_only_if_allowed(run: Callable[..., Ran], place: Path) -> None:
    (place / "a.scp").write_text(f"talk cat '{place / 'one.wav'}' |\n")
    assert run(place / "a.scp").code == 2
    ran = run(place / "a.scp", "--allow-pipes", "--num-speakers", 1)
    assert ran.code == 0
    assert ran.out.startswith("SPEAKER talk 1 ")
