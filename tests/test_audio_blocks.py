"""Reading in blocks gives what reading whole gives, in memory that does not grow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.audio import AudioSource, channel_numbers, load_audio, read_blocks
from speakerkit.errors import AudioError
from tests.conftest import speech_like


def joined(source: AudioSource, *arguments: int, **options: object) -> np.ndarray:
    return np.concatenate([block.samples for block in read_blocks(source, *arguments, **options)])


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("wanted", [None, 8000, 16000])
def test_equals_the_whole_file(tmp_path: Path, rate: int, wanted: int | None) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([speech_like(2.3, rate), speech_like(2.3, rate, 1)], axis=1), rate)
    for channel in ("mix", 0, 1):
        whole = load_audio(path, wanted, channel=channel)
        for seconds in (0.1, 0.77, 30.0):
            blocks = list(read_blocks(path, wanted, channel=channel, seconds=seconds))
            assert {block.rate for block in blocks} == {whole.rate}
            np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), whole.samples)


def test_equals_the_whole_array_and_bytes(tmp_path: Path) -> None:
    samples = speech_like(1.0, 22050)
    soundfile.write(tmp_path / "a.flac", samples, 22050)
    content = (tmp_path / "a.flac").read_bytes()
    whole = load_audio(content, 16000).samples
    np.testing.assert_array_equal(joined(content, 16000, seconds=0.2), whole)
    np.testing.assert_array_equal(joined(samples, 16000, rate=22050, seconds=0.2), joined(samples, 16000, rate=22050))
    with open(tmp_path / "a.flac", "rb") as stream:
        np.testing.assert_array_equal(joined(stream, 16000, seconds=0.2), whole)


def test_container_equals_the_whole_file(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(speech_like(1.5)[None], format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_array_equal(joined(path, 8000), load_audio(path, 8000).samples)


def test_same_refusals_as_the_whole_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", speech_like(3.0), 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-1000])
    soundfile.write(tmp_path / "nan.wav", np.append(speech_like(3.0), np.nan), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "none.wav", np.empty(0), 16000)
    for name, fault in (("cut", "is truncated"), ("nan", "NaN or infinite"), ("none", "no samples"), ("x", "no such")):
        path = tmp_path / f"{name}.wav"
        for read in (joined, load_audio):
            with pytest.raises(AudioError, match=fault):
                read(path)
    with pytest.raises(AudioError, match="too few to resample"):
        joined(np.zeros(1, dtype=np.float32), 16000, rate=48000)
    with pytest.raises(TypeError):
        joined(np.zeros(100, dtype=np.float32))
    with pytest.raises(AudioError, match="has no channel 2"):
        joined(tmp_path / "a.wav", channel=2)


def test_a_file_that_may_not_be_read_is_an_audio_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.wav").write_bytes(b"sound, but not for you")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AudioError, match="cannot be decoded"):
        load_audio(tmp_path / "a.wav")


def test_numbers_of_channels(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 3)), 16000)
    assert channel_numbers(tmp_path / "a.wav", "each") == (0, 1, 2)
    assert channel_numbers(np.zeros((2, 100)), "each") == (0, 1)
    assert channel_numbers(np.zeros(100), "each") == (0,)
    assert channel_numbers(tmp_path / "a.wav", "mix") == ("mix",)
    assert channel_numbers("not read", 1) == (1,)


@pytest.mark.parametrize("minutes", [(2, 10), pytest.param((10, 60), marks=pytest.mark.slow)])
def test_memory_does_not_grow(write_minutes: Callable[[int], Path], minutes: tuple[int, int]) -> None:
    peaks = []
    for length in minutes:
        path = write_minutes(length)
        tracemalloc.start()
        count = sum(len(block.samples) for block in read_blocks(path, 16000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == length * 60 * 16000
    assert peaks[1] < 1.1 * peaks[0] < 20e6  # 1 h whole at 16 kHz: 230 MB
