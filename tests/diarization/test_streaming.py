"""Streams: whatever is pushed at a time, the same labels; what is said earlier holds until it is taken back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerkit.diarization.clustering import AhcSettings
from speakerkit.diarization.streaming import Event, SpeakerMemory, SpeechTracker, StreamingDiarizer, StreamingSettings
from speakerkit.diarization.turns import Diarization
from speakerkit.diarization.vad import HOP, Probabilities, Silero, VadSettings, find_spans
from speakerkit.embedding.embedder import Embedder
from speakerkit.errors import AudioError, ConfigError
from tests.diarization.conversation import RATE, agreement, conversation, pitch_embedder
from tests.diarization.voices import voices


@pytest.fixture(scope="module")
def ear(onnx_bundle: Path) -> Embedder:
    return pitch_embedder(onnx_bundle)


@pytest.fixture(autouse=True)
def levels_for_speech():
    """Silero takes no tones for speech: whatever is loud is speech here."""

    def probabilities(self: Silero, frames: np.ndarray) -> Probabilities:
        return (frames.std(axis=1) > 0.01).astype(np.float32)

    with patch.object(Silero, "probabilities", probabilities):
        yield


@given(
    st.lists(st.tuples(st.floats(0, 1, width=16), st.booleans(), st.integers(1, 12)), max_size=14),
    st.sampled_from([0.0, 0.05, 0.2]),
    st.sampled_from([0.0, 0.1, 0.25]),
    st.sampled_from([0.1, 0.2, 0.4]),
)
@settings(max_examples=300)
def test_speech_is_that_of_the_whole(
    stretches: list[tuple[float, bool, int]], pad: float, min_speech: float, min_silence: float
) -> None:
    chosen = VadSettings(pad=pad, min_speech=min_speech, min_silence=min_silence)
    frames = [(value, silent) for value, silent, count in stretches for _ in range(count)]
    probabilities = np.array([value for value, _ in frames], dtype=np.float64)
    silent = np.array([quiet for _, quiet in frames], dtype=bool)
    duration = max(0.0, (len(frames) - 0.5) * HOP)
    tracker = SpeechTracker(chosen)
    found = [tracker.push(value, quiet) for value, quiet in frames] + [tracker.finish(duration)]
    spans = [span for span in found if span is not None]
    expected = find_spans(probabilities, duration, chosen, silent)
    np.testing.assert_allclose(np.reshape(spans, (-1, 2)), np.reshape(expected, (-1, 2)), atol=1e-9)


def streamed(stream: StreamingDiarizer, samples: np.ndarray, size: int) -> tuple[list[Event], Diarization]:
    events = [event for first in range(0, len(samples), size) for event in stream.push(samples[first : first + size])]
    return events + stream.end(), stream.finish()


def replayed(events: Iterable[Event], seconds: float) -> list[str]:
    """Who speaks in each 10 ms, as one who hears the events knows it in the end."""
    labels = [""] * (round(seconds * 100) + 100)
    for event in events:
        first, last = round(event.turn.start * 100), round(event.turn.end * 100)
        if event.kind == "relabelled":
            assert set(labels[first:last]) == {event.was}
        elif event.kind == "extended":
            assert labels[first] == event.turn.speaker
            known = next(n for n in range(first, last + 1) if n == last or labels[n] == "")
            assert set(labels[first:known]) == {event.turn.speaker}
        else:
            assert set(labels[first:last]) <= {""}
        labels[first:last] = [event.turn.speaker] * (last - first)
    return labels


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_pushes_of_any_size(ear: Embedder, rate: int) -> None:
    samples, true = conversation(3, 20, rate=rate, seconds=(1.0, 4.0))
    runs = []
    for seconds in (0.25, 0.5, 1.0, 0.0371, 200.0):
        stream = StreamingDiarizer(ear, rate, StreamingSettings(recluster=7))
        runs.append(streamed(stream, samples, round(seconds * rate)))
    assert all(events == runs[0][0] for events, _ in runs)
    assert len({found.to_json() for _, found in runs}) == 1
    events, found = runs[0]
    assert agreement(found, true) > 0.9
    assert len(found.labels) == 3
    assert found.duration == pytest.approx(len(samples) / rate)
    told = replayed(events, found.duration)
    for turn in found.turns:
        middle = told[round(turn.start * 100) + 1 : round(turn.end * 100) - 1]
        assert set(middle) == {turn.speaker}
    assert sum(map(bool, told)) == pytest.approx(100 * sum(found.talk_time().values()), abs=2 * len(found.turns))


def test_turns_come_while_they_are_spoken(ear: Embedder) -> None:
    samples, _ = conversation(2, 6, seconds=(4.0, 5.0))
    stream = StreamingDiarizer(ear, RATE)
    size = RATE // 4
    for first in range(0, len(samples), size):
        for event in stream.push(samples[first : first + size]):
            assert event.turn.end <= (first + size) / RATE + 0.06
            assert (first + size) / RATE - event.turn.end <= 1.5 + 0.75 + 0.5
    kinds = {event.kind for event in stream.end()}
    assert kinds <= {"relabelled"}
    assert len(stream.finish().labels) == 2


def test_what_is_kept_is_bounded(ear: Embedder) -> None:
    samples, _ = conversation(3, 30)
    stream = StreamingDiarizer(ear, RATE, StreamingSettings(recluster=10, memory=20))
    held = []
    for _ in range(8):
        for first in range(0, len(samples), RATE // 2):
            stream.push(samples[first : first + RATE // 2])
            held.append(len(stream._held) / RATE)
    assert max(held) < 5.0
    assert len(stream._speakers._means) <= 30
    assert len(stream.finish().labels) == 3


def test_speech_without_a_pause_is_no_matter(ear: Embedder) -> None:
    samples = 0.3 * np.sin(2 * np.pi * 200 * np.arange(60 * RATE) / RATE).astype(np.float32)
    stream = StreamingDiarizer(ear, RATE)
    events = [event for first in range(0, len(samples), RATE) for event in stream.push(samples[first : first + RATE])]
    assert [event.kind for event in events[:3]] == ["added", "extended", "extended"]
    assert len(stream._held) < 5 * RATE
    stream.end()
    (turn,) = stream.finish().turns
    assert (turn.start, turn.end) == (0.0, 60.0)


def test_relabelling_mends_what_was_said() -> None:
    """Windows of two voices, hard to tell at first: in the end labels are those of all windows together."""
    rows, own = voices(2, 120, seed=4, noise=1.3, dim=64)
    memory = SpeakerMemory(StreamingSettings(clustering=AhcSettings(threshold=0.3), recluster=15, memory=40))
    events = [event for n, row in enumerate(rows) for event in memory.add(row[None], n, n + 1.0)]
    events += memory.settle()
    assert any(event.kind == "relabelled" for event in events)
    labels = [turn.speaker for turn in memory.turns()]
    assert len(set(labels)) == 2
    wrong = np.mean([(label == labels[0]) != (owner == own[0]) for label, owner in zip(labels, own, strict=True)])
    assert wrong < 0.05
    assert replayed(events, len(rows))[50 : 100 * len(rows) : 100] == labels
    assert set(memory.known()) == set(labels)


def test_numbers_of_speakers(ear: Embedder) -> None:
    samples, _ = conversation(3, 12)
    for options, count in (({"num_speakers": 2}, 2), ({"max_speakers": 1}, 1), ({"min_speakers": 5}, 5)):
        stream = StreamingDiarizer(ear, RATE, StreamingSettings(clustering=AhcSettings(**options)))
        _, found = streamed(stream, samples, RATE)
        assert len(found.labels) == count
    stream = StreamingDiarizer(ear, RATE, StreamingSettings(clustering=AhcSettings(num_speakers=2)))
    stream.push(np.zeros(RATE, np.float32))
    with pytest.raises(ConfigError, match="0 windows of speech"):
        stream.finish()


def test_nobody_speaks(ear: Embedder) -> None:
    for samples in (np.zeros(0, np.float32), np.zeros(1, np.float32), np.zeros(3 * RATE, np.float32)):
        stream = StreamingDiarizer(ear, RATE)
        assert stream.push(samples) == []
        assert stream.end() == []
        assert stream.finish().turns == ()


def test_wrong_use(ear: Embedder) -> None:
    stream = StreamingDiarizer(ear, RATE)
    with pytest.raises(AudioError):
        stream.push(np.array([np.nan], dtype=np.float32))
    with pytest.raises(AudioError):
        stream.push(np.zeros((2, 100), dtype=np.float32))
    stream.finish()
    with pytest.raises(ConfigError, match="has ended"):
        stream.push(np.zeros(1, dtype=np.float32))
    with pytest.raises(ConfigError, match="hears the whole recording first"):
        StreamingSettings(vad=VadSettings("energy"))
    with pytest.raises(ConfigError):
        StreamingSettings(hop=2.0)
    with pytest.raises(ConfigError):
        StreamingSettings(memory=2)
    for rate in (0, -16000, 10**9):
        with pytest.raises(ConfigError, match="rate"):
            StreamingDiarizer(ear, rate)
