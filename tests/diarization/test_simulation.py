"""Simulated conversations: their turn-taking against what was asked, their sound against its parts, their bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.data.lists import Utterance, read_table, read_vad, write_data_dir
from speakerkit.data.sources import read_sources
from speakerkit.diarization import simulation
from speakerkit.diarization.formats import read_turns
from speakerkit.diarization.simulation import (
    VOXCONVERSE,
    Conversations,
    ConversationSettings,
    TurnStatistics,
    adjusted,
    draw,
    measure_statistics,
    plan_turns,
    write_conversations,
)
from speakerkit.diarization.turns import Diarization, Turn
from speakerkit.errors import AudioError, ConfigError, DataError
from tests.command import speakerkit

RATE = 8000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four speakers with two utterances each, speaker n a tone of (n + 1) x 200 Hz between silences."""
    folder = tmp_path_factory.mktemp("tones")
    utterances = []
    for number in range(8):
        speaker = number // 2
        tone = 0.3 * np.sin(2 * np.pi * 200 * (speaker + 1) * np.arange(2 * RATE) / RATE)
        path = folder / f"s{speaker}-{number}.wav"
        soundfile.write(path, np.concatenate([np.zeros(RATE), tone, np.zeros(RATE // 2)]).astype(np.float32), RATE)
        utterances.append(Utterance(path.stem, f"s{speaker}", str(path)))
    write_data_dir(folder, utterances)
    return folder


def settings(**values: object) -> ConversationSettings:
    return ConversationSettings(**{"sample_rate": RATE, "seconds": 12.0, "speakers": (2, 3), **values})  # type: ignore[arg-type]


def test_statistics_of_a_conversation_by_hand() -> None:
    turns = (
        Turn(0.0, 4.0, "a"),
        Turn(1.0, 1.5, "b"),  # an interjection: the floor stays with a
        Turn(3.0, 6.0, "b"),  # takes the floor in overlap
        Turn(6.5, 8.5, "b"),  # goes on
        Turn(9.5, 10.5, "a"),  # after a pause
    )
    found = measure_statistics([Diarization("x", turns)])
    assert found == TurnStatistics(
        turns=(1.0, 2.0, 3.0, 4.0),
        pauses_same=(0.5,),
        pauses_other=(1.0,),
        overlaps=(1.0,),
        interjections=(0.5,),
        same_share=1 / 4,
        overlap_share=2 / 3,
        interjection_share=1 / 2,
        count=5,
    )


def test_no_turns_are_no_statistics() -> None:
    with pytest.raises(DataError, match="no turns"):
        measure_statistics([Diarization("x")])


def test_a_distribution_keeps_the_mean_of_its_sample() -> None:
    sample = np.random.default_rng(0).exponential(2.0, 1234)
    turns, time = [], 0.0
    for seconds in sample:
        turns.append(Turn(time, time + seconds, "a"))
        time += seconds + 1
    parts = measure_statistics([Diarization("x", tuple(turns))]).turns
    assert len(parts) == simulation.PARTS
    assert np.mean(parts) == pytest.approx(sample.mean(), rel=1e-9)
    rng = np.random.default_rng(1)
    drawn = [draw(parts, rng) for _ in range(20000)]
    # The mean of clamped straight lines between the midpoints of equal parts is that of the parts.
    assert np.mean(drawn) == pytest.approx(np.mean(parts), rel=0.03)
    assert parts[0] <= min(drawn) <= max(drawn) <= parts[-1]


@pytest.mark.parametrize(("share", "seconds"), [(0.1, 10.6), (0.6, 10.6), (0.3, 20.0)])
def test_long_conversations_follow_the_statistics(share: float, seconds: float) -> None:
    """But for overlaps that are longer than the turns that they should be part of, which are cut."""
    wanted = adjusted(VOXCONVERSE, turn_seconds=seconds, overlap_share=share)
    rng = np.random.default_rng(0)
    plans = [Diarization(str(n), plan_turns(wanted, ["a", "b", "c"], 7200.0, rng), 7200.0) for n in range(4)]
    found = measure_statistics(plans)
    assert found.count > 1000
    assert found.same_share == pytest.approx(wanted.same_share, abs=0.03)
    assert found.overlap_share == pytest.approx(share, abs=0.03)
    assert found.interjection_share == pytest.approx(wanted.interjection_share, abs=0.06)
    assert np.mean(found.turns) == pytest.approx(seconds, rel=0.06)
    for name in ("pauses_same", "pauses_other", "overlaps", "interjections"):
        assert np.mean(getattr(found, name)) == pytest.approx(np.mean(getattr(wanted, name)), rel=0.2), name


@pytest.mark.parametrize(("count", "seconds"), [(1, 2.0), (2, 4.0), (4, 8.0), (6, 60.0)])
def test_every_speaker_is_heard_within_the_time(count: int, seconds: float) -> None:
    speakers = [f"s{number}" for number in range(count)]
    for seed in range(100):
        turns = plan_turns(VOXCONVERSE, speakers, seconds, np.random.default_rng(seed))
        assert {turn.speaker for turn in turns} == set(speakers)
        assert all(0 <= turn.start < turn.end <= seconds for turn in turns)
        assert len(Diarization("x", turns, seconds).turns) == len(turns)  # none of one speaker touch


def test_the_default_is_what_the_references_say(real_data: Path) -> None:
    measured = measure_statistics(read_turns(real_data / "voxconverse-rttm", "rttm").values())
    assert measured.count == VOXCONVERSE.count == 418
    for name in ("same_share", "overlap_share", "interjection_share"):
        assert getattr(VOXCONVERSE, name) == pytest.approx(getattr(measured, name), abs=5e-4)
    for name in ("turns", "pauses_same", "pauses_other", "overlaps", "interjections"):
        np.testing.assert_allclose(getattr(VOXCONVERSE, name), getattr(measured, name), atol=0.0051)


def test_sound_is_where_the_turns_are(source: Path) -> None:
    made = Conversations(read_sources(source), settings(speakers=(3, 3), hiss=(-80, -80)), seed=3)
    for index in range(4):
        conversation = made[index]
        assert len(conversation.samples) == 12 * RATE
        assert conversation.diarization.turns == made.plan(index).turns
        loud = np.zeros(12 * RATE, dtype=bool)
        for turn in conversation.diarization.turns:
            first, last = round(turn.start * RATE), round(turn.end * RATE)
            loud[first:last] = True
            spectrum = np.abs(np.fft.rfft(conversation.samples[first:last] * np.hanning(last - first)))
            own = 200 * (int(turn.speaker[1]) + 1) * (last - first) / RATE
            assert spectrum[round(own) - 2 : round(own) + 3].max() > 10 * np.median(spectrum)
        assert 10 * np.log10(np.mean(conversation.samples[~loud] ** 2)) == pytest.approx(-80, abs=0.2)  # the hiss
        share = np.mean(np.abs(conversation.samples[loud]) > 1e-3)
        assert share > 0.8  # what is labelled is the tone, but for joints of 0.1 s in each 2.2 s, and fades


def test_levels_noise_and_rooms(source: Path, write_wav: Callable[..., Path]) -> None:
    from speakerkit.data.stores import FileStore

    utterances = read_sources(source)
    noise = FileStore("noise", {"hum": str(write_wav("hum.wav", 20.0, RATE))})
    impulse = np.zeros(800, dtype=np.float32)
    impulse[0] = 0.5
    room = write_wav("room.wav")
    soundfile.write(room, impulse, RATE)
    rir = FileStore("rir", {"dry": str(room)})
    plain = Conversations(utterances, settings(speakers=(2, 2), level=(-20, -20)), 0)[1].samples
    asked = settings(speakers=(2, 2), level=(-20, -20), noise_share=1.0, snr=(10, 10), reverb_share=1.0)
    noisy = Conversations(utterances, asked, 0, noise, rir)[1].samples
    added = noisy.astype(np.float64) - plain  # a room of one impulse leaves the voice as it is
    assert 10 * np.log10(np.mean(plain**2) / np.mean(added**2)) == pytest.approx(10, abs=0.05)


def test_a_conversation_is_a_function_of_seed_and_number(source: Path) -> None:
    utterances = read_sources(source)
    first, again = (Conversations(order, settings(), 5) for order in (utterances, utterances[::-1]))
    later = again[2].samples
    assert np.array_equal(first[2].samples, later)
    assert not np.array_equal(first[1].samples, later)
    assert not np.array_equal(Conversations(utterances, settings(), 6)[2].samples, later)


def test_written_directory(source: Path, tmp_path: Path) -> None:
    made = Conversations(read_sources(source), settings(), 1)
    one, two = tmp_path / "one", tmp_path / "two"
    write_conversations(made, one, 3, workers=1)
    hours = write_conversations(made, two, 3, workers=3)
    assert hours == pytest.approx(3 * 12 / 3600)
    for name in ("rttm", "segments", "utt2spk", "spk2utt", "reco2dur", "reco2num_spk", "wav/conv000002.wav"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    rttm = read_turns(one / "rttm", "rttm")
    assert {key: len(each.labels) for key, each in rttm.items()} == {
        key: int(count) for key, count in read_table(one / "reco2num_spk").items()
    }
    for key, path in read_table(one / "wav.scp").items():
        info = soundfile.info(path)
        assert (info.samplerate, info.frames) == (RATE, 12 * RATE)
        assert rttm[key].turns == made.plan(int(key[-6:])).turns
        assert read_vad(one / "segments")[key] == tuple((turn.start, turn.end) for turn in rttm[key].turns)


def test_resumes_and_refuses_another_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Conversations(read_sources(source), settings(), 1)
    write_conversations(made, tmp_path / "out", 3)
    kept = (tmp_path / "out" / "wav" / "conv000001.wav").read_bytes()
    (tmp_path / "out" / "wav" / "conv000001.wav").unlink()
    mixed, lock = [], threading.Lock()
    original = Conversations.__getitem__

    def counted(self: Conversations, index: int) -> object:
        with lock:
            mixed.append(index)
        return original(self, index)

    monkeypatch.setattr(Conversations, "__getitem__", counted)
    write_conversations(made, tmp_path / "out", 4)
    assert sorted(mixed) == [1, 3]
    assert (tmp_path / "out" / "wav" / "conv000001.wav").read_bytes() == kept
    with pytest.raises(DataError, match="other settings"):
        write_conversations(Conversations(read_sources(source), settings(), 2), tmp_path / "out", 3)


def test_missing_sources_are_named_before_any_mixing(source: Path, tmp_path: Path) -> None:
    lines = (source / "wav.scp").read_text().replace("s1-2.wav", "gone.wav")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "wav.scp").write_text(lines)
    (tmp_path / "src" / "utt2spk").write_text((source / "utt2spk").read_text())
    ran = speakerkit("data", "conversations", tmp_path / "src", tmp_path / "out")
    assert ran.code == 2
    assert "gone.wav" in ran.errors[0]
    assert "1 files" in ran.errors[0]
    assert not (tmp_path / "out").exists()
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "wav.scp").write_text(f"hum {tmp_path}/absent.wav\n")
    ran = speakerkit("data", "conversations", source, tmp_path / "out", "--noise", tmp_path / "noise")
    assert ran.code == 2
    assert "1 recordings cannot be read" in ran.errors[0]
    assert "hum" in ran.errors[0]
    assert not (tmp_path / "out").exists()


def test_silence_is_no_speech_to_mix(tmp_path: Path) -> None:
    path = tmp_path / "s.wav"
    soundfile.write(path, np.zeros(RATE, dtype=np.float32), RATE)
    made = Conversations([Utterance("u", "s", str(path))], settings(speakers=(1, 1)), 0)
    with pytest.raises(AudioError, match="silent"):
        made[0]


def test_given_segments_are_the_speech(source: Path) -> None:
    utterance = read_sources(source)[0]
    (found,) = simulation._spoken(utterance, RATE)
    assert len(found) / RATE == pytest.approx(2.0, abs=0.2)  # the tone, with margins
    given = simulation._spoken(replace(utterance, vad=((1.5, 2.0), (2.5, 2.75))), RATE)
    assert [len(piece) for piece in given] == [RATE // 2, RATE // 4]


def test_command(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--count", 2, "--seconds", 8, "--rate", RATE, "--max-speakers", 3, "--turn-seconds", 2]
    ran = speakerkit("data", "conversations", source, out, *options)
    assert (ran.code, ran.out) == (0, f"{out}: 2 conversations, 0.00 h\n")
    assert set(read_turns(out / "rttm", "rttm")) == {"conv000000", "conv000001"}
    ran = speakerkit("data", "conversations", source, out, *options, "--statistics", out / "rttm")
    assert ran.code == 2
    assert "other settings" in ran.errors[0]


@pytest.mark.parametrize(
    "values",
    [
        {"speakers": (3, 2)},
        {"seconds": 3.0},
        {"snr": (10.0, 5.0)},
        {"level": (-20.0, float("inf"))},
        {"noise_share": 1.5},
        {"sample_rate": 100},
    ],
)
def test_impossible_settings(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        settings(**values)


@pytest.mark.parametrize("seconds", [0.0, float("inf"), float("nan")])
def test_impossible_lengths_of_turns(seconds: float) -> None:
    with pytest.raises(ConfigError, match="turn_seconds"):
        adjusted(VOXCONVERSE, turn_seconds=seconds)


def test_too_few_speakers(source: Path) -> None:
    with pytest.raises(DataError, match="4 speakers are fewer than the 5"):
        Conversations(read_sources(source), settings(speakers=(2, 5)), 0)
