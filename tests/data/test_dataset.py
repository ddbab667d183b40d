"""Samples for training: read from lists of three kinds, only as much as is wanted, seeded, bad files passed over."""

from __future__ import annotations

import pickle
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from speakerkit.audio import load_audio
from speakerkit.data import dataset as module
from speakerkit.data.augment import build_chain
from speakerkit.data.dataset import (
    FeatureSource,
    RawSource,
    Sample,
    ShardSource,
    Source,
    TrainingDataset,
    fit_length,
    read_features,
    read_speech,
)
from speakerkit.data.lists import Utterance, read_utterance_list, write_utterance_list
from speakerkit.data.sampling import BalancedOrder, ShuffledOrder
from speakerkit.data.shards import read_shard_list, write_shards
from speakerkit.errors import DataError
from speakerkit.features import FrontEnd, fbank
from tests.conftest import speech_like

FRONTEND = FrontEnd(num_mels=24)
FRAMES = 50
CHUNK = FRONTEND.chunk_samples(FRAMES)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Three speakers with two utterances each; u0 is a ramp, which tells where a piece comes from."""
    made = []
    for number in range(6):
        path = tmp_path / f"u{number}.wav"
        samples = np.linspace(0, 1, 48000, endpoint=False) if number == 0 else speech_like(2.0, seed=number)
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        made.append(Utterance(f"u{number}", f"s{number // 2}", str(path)))
    return made


def training(source: Source, speeds: tuple[float, ...] = (1.0,), **options: object) -> TrainingDataset:
    classes = {speaker: index for index, speaker in enumerate(sorted(set(source.speakers)))}
    order = ShuffledOrder([range(len(source.keys))], seed=5)
    settings: dict[str, object] = {"chunk_frames": FRAMES, "chain": None, "seed": 5, **options}
    return TrainingDataset(source, order, classes, FRONTEND, speeds=speeds, **settings)  # type: ignore[arg-type]


def same(one: Sample, other: Sample) -> bool:
    return one.key == other.key and one.label == other.label and np.array_equal(one.input, other.input)


def test_samples_are_seeded_by_position_alone(utterances: list[Utterance]) -> None:
    chain = build_chain([{"name": "gain"}, {"name": "clip", "prob": 0.5}])
    one, other = (training(RawSource(utterances, FRONTEND), (1.0, 0.9, 1.1), chain=chain) for _ in range(2))
    forwards = [one[position] for position in range(12)]
    backwards = [other[position] for position in reversed(range(12))][::-1]
    assert all(same(*pair) for pair in zip(forwards, backwards, strict=True))
    assert all(sample.input.shape == (CHUNK,) and sample.input.dtype == np.float32 for sample in forwards)
    third = training(RawSource(utterances, FRONTEND), (1.0, 0.9, 1.1), chain=chain, seed=6)
    assert not all(np.array_equal(forwards[position].input, third[position].input) for position in range(12))


def test_raw_and_shard_lists_give_the_same_samples(utterances: list[Utterance], tmp_path: Path) -> None:
    write_shards(utterances, tmp_path / "shards", per_shard=4, shuffle=False)
    members = read_shard_list(tmp_path / "shards" / "shard.list")
    raw = training(RawSource(utterances, FRONTEND), (1.0, 0.9))
    shard = training(ShardSource(members, FRONTEND), (1.0, 0.9))
    assert all(same(raw[position], shard[position]) for position in range(18))


def test_only_the_wanted_part_is_decoded(utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = soundfile.SoundFile.read

    def counted(sound: soundfile.SoundFile, frames: int = -1, **options: object) -> np.ndarray:
        result = whole(sound, frames, **options)
        read.append(len(result))
        return result

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    for speed in (1.0, 0.9, 1.1):
        read.clear()
        RawSource(utterances, FRONTEND).read(0, FRAMES, speed, np.random.default_rng(0))
        assert sum(read) == pytest.approx(CHUNK * speed, abs=0.005 * 16000)


def test_pieces_come_from_everywhere(utterances: list[Utterance]) -> None:
    source = RawSource(utterances, FRONTEND)
    starts = [source.read(0, FRAMES, 1.0, np.random.default_rng(seed))[0] for seed in range(200)]
    assert min(starts) < 0.02
    assert max(starts) > 1 - CHUNK / 48000 - 0.02
    assert np.std(starts) > 0.15


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_gives_a_new_label_and_moves_the_pitch(tmp_path: Path, speed: float) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 1000 * np.arange(48000) / 16000), 16000)
    dataset = training(RawSource([Utterance("t", "s", str(path))], FRONTEND), (1.0, speed))
    drawn = [dataset[position] for position in range(20)]
    assert {sample.label for sample in drawn} == {0, 1}
    for sample in drawn:
        peak = np.argmax(np.abs(np.fft.rfft(sample.input * np.hanning(CHUNK)))) * 16000 / CHUNK
        assert peak == pytest.approx(1000 * (speed if sample.label else 1.0), abs=3)


def test_a_run_of_one_speaker_has_one_speed(utterances: list[Utterance]) -> None:
    source = RawSource(utterances, FRONTEND)
    dataset = training(source, (1.0, 0.9, 1.1))
    dataset.order = BalancedOrder([[0, 1], [2, 3], [4, 5]], utterances=2, per_batch=3, seed=0)
    labels = [dataset[position].label for position in range(60)]
    assert labels[::2] == labels[1::2]
    assert len(set(labels)) == 9


def test_short_files_are_tiled(tmp_path: Path) -> None:
    samples = speech_like(0.1)
    path = tmp_path / "short.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    sample = training(RawSource([Utterance("k", "s", str(path))], FRONTEND))[0].input
    assert len(sample) == CHUNK
    period = len(samples)
    np.testing.assert_array_equal(sample[: CHUNK - period], sample[period:])


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 25])
def test_fit_length(length: int) -> None:
    values = np.arange(length, dtype=np.float32)
    for seed in range(5):
        fitted = fit_length(values, 10, np.random.default_rng(seed))
        assert len(fitted) == 10
        np.testing.assert_array_equal(np.diff(fitted) % length, np.full(9, 1 % length))


@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_rates_are_resampled_and_long_enough(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "other.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 500 * np.arange(3 * rate) / rate), rate, subtype="FLOAT")
    source = RawSource([Utterance("k", "s", str(path))], FRONTEND)
    for seed in range(20):
        piece = source.read(0, FRAMES, 1.0, np.random.default_rng(seed))
        assert CHUNK <= len(piece) <= CHUNK + 100
        middle = piece[1000:-1000]  # away from the edges of the filter
        assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.01)


def test_bad_files_are_passed_over_with_their_reasons(utterances: list[Utterance], tmp_path: Path) -> None:
    (tmp_path / "u2.wav").write_text("not audio")
    (tmp_path / "u3.wav").unlink()
    dataset = training(RawSource(utterances, FRONTEND))
    drawn = [dataset[position] for position in range(60)]
    assert {sample.key for sample in drawn} == {"u0", "u1", "u4", "u5"}
    failures = dict(failure for sample in drawn for failure in sample.failures)
    assert set(failures) == {"u2", "u3"}
    assert "decoded" in failures["u2"]
    assert "no such file" in failures["u3"]
    assert sum(len(sample.failures) for sample in drawn) >= 20  # each time, not once
    again = training(RawSource(utterances, FRONTEND))
    assert all(same(drawn[position], again[position]) for position in range(60))


def test_nothing_but_bad_files_is_an_error(tmp_path: Path) -> None:
    dataset = training(RawSource([Utterance("k", "s", str(tmp_path / "none.wav"))], FRONTEND))
    with pytest.raises(DataError, match=r"10 files in a row.*no such file"):
        dataset[0]


def test_vad_segments_are_concatenated_and_only_they_are_read(
    utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = ((0.5, 0.8), (1.0, 1.3), (2.0, 2.9))
    source = RawSource([Utterance("u0", "s0", utterances[0].wav, spans)], FRONTEND)
    allowed = np.concatenate([np.arange(round(48000 * a / 3), round(48000 * b / 3)) for a, b in spans]) / 48000
    seconds: list[float] = []
    load = module.load_audio

    def timed(*args: object, **options: object) -> object:
        seconds.append(options["duration"])  # type: ignore[arg-type]
        return load(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "load_audio", timed)
    starts = []
    for seed in range(100):
        seconds.clear()
        piece = source.read(0, FRAMES, 1.0, np.random.default_rng(seed))
        assert len(piece) >= CHUNK - 1
        assert sum(seconds) == pytest.approx(CHUNK / 16000, abs=0.01)
        assert np.isin(np.round(piece * 48000), np.round(allowed * 48000)).all()
        starts.append(piece[0])
    assert min(starts) < 0.55 / 3
    assert max(starts) > 2.0 / 3


def test_vad_segments_that_are_all_too_short(utterances: list[Utterance]) -> None:
    spans = ((0.1, 0.1005), (0.2, 0.2006))
    source = RawSource([Utterance("u0", "s0", utterances[0].wav, spans)], FRONTEND)
    with pytest.raises(DataError, match="too short"):
        source.read(0, FRAMES, 1.0, np.random.default_rng(0))
    with pytest.raises(DataError, match="too short"):
        read_speech(utterances[0].wav, FRONTEND, spans)


def test_vad_in_shards_is_what_raw_lists_read(utterances: list[Utterance], tmp_path: Path) -> None:
    spoken = [Utterance("u1", "s0", utterances[1].wav, ((0.25, 0.5), (1.0, 1.125)))]
    write_shards(spoken, tmp_path / "shards")
    members = read_shard_list(tmp_path / "shards" / "shard.list")
    raw = RawSource(spoken, FRONTEND).read(0, 300, 1.0, np.random.default_rng(0))
    packed = ShardSource(members, FRONTEND).read(0, 300, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(raw, packed, atol=1 / 32768)  # shards hold 16 bits


def test_containers_are_decoded_whole_and_cut(utterances: list[Utterance], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "u.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(speech_like(3.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    source = RawSource([Utterance("k", "s", str(path), ((1.0, 2.0),))], FRONTEND)
    piece = source.read(0, 10, 1.0, np.random.default_rng(0))
    whole = load_audio(path).samples[16000:32000]
    assert any(np.array_equal(piece, whole[at : at + len(piece)]) for at in range(len(whole) - len(piece) + 1))


@pytest.fixture
def archive(tmp_path: Path) -> list[Utterance]:
    """A feature list of three utterances in one Kaldi archive with compressed and plain matrices."""
    made = []
    matrices = {f"u{number}": fbank(speech_like(1.0 + number, seed=number), FRONTEND) for number in range(3)}
    with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/f.ark,{tmp_path}/f.scp") as writer:
        for key, matrix in matrices.items():
            writer(key, matrix)
    for line in (tmp_path / "f.scp").read_text().splitlines():
        key, location = line.split()
        made.append(Utterance(key, f"s{key}", feat=location))
    return made


def test_feature_lists(archive: list[Utterance], tmp_path: Path) -> None:
    write_utterance_list(tmp_path / "feat.list", archive)
    source = FeatureSource(read_utterance_list(tmp_path / "feat.list"), FRONTEND)
    expected = fbank(speech_like(2.0, seed=1), FRONTEND)
    np.testing.assert_array_equal(read_features(archive[1].feat, FRONTEND), expected)
    piece = source.read(1, FRAMES, 1.0, np.random.default_rng(0))
    assert piece.shape == (FRAMES, 24)
    np.testing.assert_allclose(piece.mean(axis=0), 0, atol=1e-4)
    assert any(
        np.allclose(piece, expected[at : at + FRAMES] - expected[at : at + FRAMES].mean(axis=0), atol=1e-5)
        for at in range(len(expected) - FRAMES + 1)
    )
    assert training(source)[0].input.shape == (FRAMES, 24)
    assert source.read(0, 500, 1.0, np.random.default_rng(0)).shape == (500, 24)  # short ones are repeated


def test_feature_lists_neither_unpickle_nor_run_commands(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    (tmp_path / "bad.ark").write_bytes(b"PKL" + pickle.dumps(Bomb()))
    touch = f"touch {tmp_path}/ran |"
    for location in (f"{tmp_path}/bad.ark:0", f"{tmp_path}/bad.ark", f"{touch}[0:1]", touch, f"| {touch}", "-"):
        with pytest.raises(DataError):
            read_features(location, FRONTEND)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.zeros((50, 80)), "shape"),
        (np.zeros((0, 24)), "shape"),
        (np.full((50, 24), np.nan), "NaN"),
        (np.zeros(24), "shape"),
    ],
)
def test_features_that_cannot_be_used_say_why(tmp_path: Path, matrix: np.ndarray, reason: str) -> None:
    kaldiio.save_mat(str(tmp_path / "one.mat"), matrix.astype(np.float32))
    with pytest.raises(DataError, match=reason):
        read_features(str(tmp_path / "one.mat"), FRONTEND)


def test_truncated_features_are_an_error(archive: list[Utterance], tmp_path: Path) -> None:
    data = (tmp_path / "f.ark").read_bytes()
    (tmp_path / "f.ark").write_bytes(data[:-100])
    with pytest.raises(DataError, match="no feature matrix"):
        read_features(archive[-1].feat, FRONTEND)
