"""The demo corpus: same seed, same bytes; speakers that differ and can be told apart."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speakerkit.data.check import check_data_dir
from speakerkit.data.demo import make_demo_corpus
from speakerkit.data.demo.rooms import NOISES, recording, room_response, tones
from speakerkit.data.demo.sentences import draw_text
from speakerkit.data.lists import read_data_dir, read_lines, read_table
from speakerkit.errors import DataError, MissingExtraError

RATE = 16000
SMALL = {"utterances": 2, "test_speakers": 2, "test_utterances": 2, "seconds": 1.0, "noises": 3}


def audio_bytes(folder: Path) -> dict[str, str]:
    """Relative path of each audio file to the hash of its bytes."""
    paths = (path for path in folder.rglob("*") if path.suffix in (".flac", ".wav"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    out = tmp_path_factory.mktemp("demo")
    make_demo_corpus(out, 3, seed=5, workers=2, **SMALL)  # type: ignore[arg-type]
    return out


def test_lists_and_audio_are_sound(corpus: Path) -> None:
    for part, noise, speakers in (("train", "noise", 3), ("test", "rir", 2)):
        report = check_data_dir(corpus / part, sample_rate=RATE, decode=True, noise=corpus / noise)
        assert report.rows == (), report.to_table()
        assert (report.utterances, report.speakers) == (2 * speakers, speakers)
    assert len(read_lines(corpus / "test/trials")) == 6
    train, test = (set(read_table(corpus / part / "utt2spk").values()) for part in ("train", "test"))
    assert not train & test
    assert Counter(read_table(corpus / "noise/utt2type").values()) == {"noise": 3, "music": 3, "speech": 3}
    assert set(read_table(corpus / "rir/utt2type").values()) == {"rir"}
    assert json.loads((corpus / "demo.json").read_text())["seed"] == 5
    for utterance in read_data_dir(corpus / "train"):
        info = soundfile.info(utterance.wav)
        assert 0.7 < info.duration < 1.3
        assert info.subtype == "PCM_16"


def test_same_seed_same_bytes_in_another_process_with_other_workers(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json; from speakerkit.data.demo import make_demo_corpus; "
        "make_demo_corpus(sys.argv[1], 3, seed=5, workers=1, **json.loads(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), json.dumps(SMALL)], check=True)
    assert audio_bytes(tmp_path) == audio_bytes(corpus)
    assert read_lines(tmp_path / "test/trials") == read_lines(corpus / "test/trials")


def test_another_seed_gives_another_corpus_and_more_speakers_the_same_first_ones(corpus: Path, tmp_path: Path) -> None:
    small = {**SMALL, "noises": 0}
    make_demo_corpus(tmp_path / "other", 1, seed=6, **small)  # type: ignore[arg-type]
    make_demo_corpus(tmp_path / "more", 1, seed=5, **small)  # type: ignore[arg-type]
    known = audio_bytes(corpus)
    assert not set(audio_bytes(tmp_path / "other").values()) & set(known.values())
    more = {name: digest for name, digest in audio_bytes(tmp_path / "more").items() if name.startswith("train")}
    assert more.items() <= known.items()


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make_demo_corpus(tmp_path / "out", 1, **{**SMALL, "noises": 0})  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_missing_espeak_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"speakerkit\[train\]"):
        make_demo_corpus(tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"speakers": 0}, {"test_utterances": 1}, {"seconds": 0.0}, {"seed": -1}])
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        make_demo_corpus(tmp_path, **wrong)  # type: ignore[arg-type]


def test_an_espeak_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = pytest.importorskip("espeakng_loader")
    monkeypatch.setattr(loader, "get_library_path", lambda: str(tmp_path / "none.so"))
    with pytest.raises(DataError, match="espeak-ng: failed for tr0000") as caught:
        make_demo_corpus(tmp_path / "out", 1, **SMALL)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_sentences_hardly_ever_repeat() -> None:
    rng = np.random.default_rng(0)
    texts = [draw_text(rng, 8) for _ in range(2000)]
    assert len(set(texts)) > 1990
    assert all(len(text.split()) >= 8 and "{" not in text for text in texts)


def test_room_responses_decay_as_asked() -> None:
    response = room_response(np.random.default_rng(3), RATE, (0.5, 0.5)).astype(np.float64)
    assert np.abs(response).max() == pytest.approx(1.0)
    assert int(np.abs(response).argmax()) == 0
    decay = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2))  # Schroeder's integral
    time = np.arange(len(response)) / RATE
    part = (time > 0.1) & (time < 0.3)
    slope = np.polyfit(time[part], decay[part], 1)[0]
    assert -60 / slope == pytest.approx(0.5, rel=0.2)


def test_noises_have_one_level_and_differ() -> None:
    sounds = [make(np.random.default_rng(1), RATE, RATE) for make in (*NOISES.values(), tones)]
    for sound in sounds:
        assert sound.shape == (RATE,)
        assert np.sqrt(np.mean(sound.astype(np.float64) ** 2)) == pytest.approx(0.1, rel=0.5)
        assert np.abs(sound).max() < 1


def test_recordings_stay_within_range_and_change_the_level() -> None:
    speech = np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    peaks = [np.abs(recording(speech, np.random.default_rng(seed), RATE, 1.0)).max() for seed in range(20)]
    assert max(peaks) < 1
    assert max(peaks) / min(peaks) > 3


def test_command_writes_a_corpus(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    from speakerkit.cli.data import app

    options = "--speakers 1 --utterances 1 --test-speakers 1 --test-utterances 2 --seconds 0.5 --noises 0 --seed 3"
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "out"), *options.split()])
    assert result.exit_code == 0, result.output
    assert "1 trials to test on" in result.stdout


@pytest.mark.slow
def test_speakers_can_be_told_apart_but_not_at_a_glance(tmp_path: Path) -> None:
    """A linear discriminant on means and deviations of log-mel bands: well above chance, short of perfect."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    pytest.importorskip("espeakng_loader")
    make_demo_corpus(tmp_path, 100, seed=0, noises=0)
    train, test = (read_data_dir(tmp_path / part) for part in ("train", "test"))
    features, others = (np.stack([_statistics(item.wav) for item in part]) for part in (train, test))
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1)
    model.fit((features - mean) / deviation, [item.speaker for item in train])
    raw, learnt = (others - mean) / deviation, model.transform((others - mean) / deviation)
    speakers = np.array([item.speaker for item in test])
    assert _equal_error(raw, speakers) > 0.25
    assert 0.01 < _equal_error(learnt, speakers) < 0.15


def _statistics(path: str) -> np.ndarray:
    samples, _ = soundfile.read(path)
    frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160] * np.hamming(400)  # (frames, 400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    edges = np.geomspace(4, 250, 41).astype(int)
    bands = np.log(np.stack([power[:, a : max(b, a + 1)].mean(axis=1) for a, b in pairwise(edges)], 1) + 1e-10)
    return np.concatenate([bands.mean(axis=0), bands.std(axis=0)])


def _equal_error(embeddings: np.ndarray, speakers: np.ndarray) -> float:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(len(unit), 1)
    scores, target = (unit @ unit.T)[first, second], speakers[first] == speakers[second]
    thresholds = np.sort(scores)
    misses = np.searchsorted(np.sort(scores[target]), thresholds) / target.sum()
    alarms = 1 - np.searchsorted(np.sort(scores[~target]), thresholds) / (~target).sum()
    place = int(np.abs(misses - alarms).argmin())
    return float((misses[place] + alarms[place]) / 2)
