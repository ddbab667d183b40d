"""The audio gate: formats, parts, channels, rates, and what it refuses."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speakerkit import audio
from speakerkit.audio import Audio, audio_info, load_audio, require_signal, resample
from speakerkit.errors import AudioError, MissingExtraError
from tests.conftest import speech_like
from tests.hostile.inputs import encoded, flac_of_length

RATE = 16000


def tone(frequency: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-4),
        ("WAV", "PCM_32", 1e-4),
        ("WAV", "FLOAT", 1e-7),
        ("WAVEX", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("FLAC", "PCM_24", 1e-4),
    ],
)
def test_lossless_formats(tmp_path: Path, format: str, subtype: str, tolerance: float) -> None:
    samples = speech_like(0.7)
    path = tmp_path / f"a.{format.lower()}"
    soundfile.write(path, samples, RATE, format=format, subtype=subtype)
    loaded = load_audio(path)
    assert loaded.rate == RATE
    assert loaded.samples.dtype == np.float32
    np.testing.assert_allclose(loaded.samples, samples, atol=tolerance)
    assert audio_info(path) == audio.AudioInfo(RATE, 1, len(samples))


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats(tmp_path: Path, format: str, subtype: str) -> None:
    samples = speech_like(2.0, seed=3)
    path = tmp_path / "a.bin"
    soundfile.write(path, samples, RATE, format=format, subtype=subtype)
    loaded = load_audio(path, RATE)
    best = max(
        np.corrcoef(samples[2000:-4000], loaded.samples[2000 + lag : 2000 + lag + len(samples) - 6000])[0, 1]
        for lag in range(-2000, 2000)
    )
    assert best > 0.9


def encode(path: Path, codec: str, samples: np.ndarray, rate: int) -> None:
    """Write a container with PyAV, which the test is skipped without."""
    av = pytest.importorskip("av")
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout, stream.bit_rate = "mono", 64_000
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=480)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for block in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.m4a", "aac", RATE),
        ("12:30.m4a", "aac", RATE),
        ("a.mov", "aac", RATE),
        ("a.aac", "aac", RATE),
        ("a.webm", "libopus", 48000),
        ("a.mka", "flac", RATE),
        ("a.wma", "wmav2", RATE),
    ],
)
def test_containers(tmp_path: Path, name: str, codec: str, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    encode(path, codec, tone(440, 1.5, rate).astype(np.float32), rate)
    for source in (path, path.read_bytes()) if audio.is_container(path.read_bytes()) else (path,):
        loaded = load_audio(source, RATE)
        assert loaded.seconds == pytest.approx(1.5, abs=0.15)
        spectrum = np.abs(np.fft.rfft(loaded.samples[4000:20000]))
        assert np.argmax(spectrum) == 440
        part = load_audio(source, start=0.5, duration=0.25)
        np.testing.assert_array_equal(part.samples, load_audio(source).samples[rate // 2 : rate * 3 // 4])


def test_containers_name_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(b"x" * 100)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"a\.m4a.*speakerkit\[formats\]"):
        load_audio(path)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("channel", ["mix", 0, 1])
def test_a_part_equals_the_slice_of_the_whole(tmp_path: Path, format: str, channel: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(format, 2.0, channels=2))
    whole = load_audio(path, channel=channel)
    part = load_audio(path, channel=channel, start=0.7, duration=0.5)
    expected = whole.samples[round(0.7 * RATE) :][: RATE // 2]
    # An mp3 frame needs the ones before it; libsndfile decodes a few of those only.
    np.testing.assert_allclose(part.samples, expected, atol=5e-3 if format == "MP3" else 1e-6)
    assert len(load_audio(path, start=1.5, duration=9.0).samples) == RATE // 2
    with pytest.raises(AudioError, match=r"ends at 2\.00 s"):
        load_audio(path, start=2.5)


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(encoded("FLAC", 1.0, channels=3))
    whole = load_audio(path)
    monkeypatch.setattr(audio, "BLOCK_FRAMES", 1001)
    np.testing.assert_array_equal(load_audio(path).samples, whole.samples)


def test_channels(tmp_path: Path) -> None:
    left, right = speech_like(0.5, seed=1), speech_like(0.5, seed=2)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(path, channel=0).samples, left)
    np.testing.assert_array_equal(load_audio(path, channel=1).samples, right)
    np.testing.assert_allclose(load_audio(path).samples, (left + right) / 2, atol=1e-7)
    with pytest.raises(AudioError, match="no channel 2; it has 2"):
        load_audio(path, channel=2)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampled_tone_is_the_tone(rate: int) -> None:
    resampled = resample(tone(1000, 1.0, rate).astype(np.float32), rate, RATE)
    assert len(resampled) == pytest.approx(RATE, abs=1)
    middle = slice(1000, 15000)
    np.testing.assert_allclose(resampled[middle], tone(1000, 1.0, RATE)[middle], atol=1e-3)


def test_resample_agrees_with_scipy() -> None:
    noise = np.random.default_rng(0).standard_normal(2500)
    samples = resample_poly(noise, 4, 1).astype(np.float32)  # nothing above 2 kHz
    ours, theirs = resample(samples, RATE, 8000), resample_poly(samples.astype(np.float64), 1, 2)
    middle = slice(500, 4500)
    assert np.corrcoef(ours[middle], theirs[middle])[0, 1] > 0.9999


def test_nothing_is_folded_back() -> None:
    """A stride would turn 6 kHz at 16 kHz into 2 kHz at 8 kHz."""
    assert np.abs(resample(tone(6000, 1.0, RATE).astype(np.float32), RATE, 8000)[500:-500]).max() < 1e-3


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_files_are_resampled_on_request(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(500, 1.0, rate), rate)
    loaded = load_audio(path, RATE)
    assert loaded.rate == RATE
    np.testing.assert_allclose(loaded.samples[800:-800], tone(500, 1.0, RATE)[800:-800], atol=1e-3)


def test_arrays() -> None:
    samples = speech_like(0.3)
    np.testing.assert_array_equal(load_audio(samples, rate=RATE).samples, samples)
    np.testing.assert_allclose(load_audio((samples * 32768).astype(np.int16), rate=RATE).samples, samples, atol=1e-4)
    np.testing.assert_allclose(load_audio(np.stack([samples, -samples]), rate=RATE).samples, 0, atol=1e-8)
    np.testing.assert_array_equal(load_audio(np.stack([samples, -samples]), rate=RATE, channel=1).samples, -samples)
    np.testing.assert_array_equal(load_audio(samples, rate=RATE, start=0.1, duration=0.1).samples, samples[1600:3200])
    with pytest.raises(TypeError, match="needs its rate"):
        load_audio(samples)
    with pytest.raises(TypeError, match="belongs to arrays"):
        load_audio("a.wav", rate=RATE)
    for bad, message in (
        (np.zeros((2, 2, 2)), "3 dimensions"),
        (np.zeros((100, 2)), "100 channels of 2 samples; transpose"),
        (np.zeros((0, 100)), "no channels"),
        (np.zeros(0), "no samples"),
        (np.zeros(10, dtype=np.int32), "int32"),
        (np.full(10, np.nan), "NaN"),
        (np.full(10, 1e300), "infinite"),
    ):
        with pytest.raises(AudioError, match=message), np.errstate(over="ignore"):
            load_audio(bad, rate=RATE)
    for rate in (0, -1, 1, 10**9):
        with pytest.raises(AudioError, match=f"rate of {rate} Hz"):
            load_audio(samples, rate=rate)


def test_bytes_and_file_objects(tmp_path: Path) -> None:
    data = encoded("FLAC")
    path = tmp_path / "a.flac"
    path.write_bytes(data)
    expected = load_audio(path).samples
    np.testing.assert_array_equal(load_audio(data).samples, expected)
    np.testing.assert_array_equal(load_audio(io.BytesIO(data)).samples, expected)
    with path.open("rb") as stream:
        np.testing.assert_array_equal(load_audio(stream).samples, expected)
    assert audio_info(data).frames == len(expected)
    with pytest.raises(AudioError, match="audio in memory: cannot be decoded"):
        load_audio(b"no audio at all")


def test_flac_without_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``ffmpeg -i x.wav -f flac - > y.flac`` writes it."""
    pytest.importorskip("av")
    path = tmp_path / "a.flac"
    path.write_bytes(flac_of_length(0))
    expected = load_audio(encoded("FLAC")).samples
    np.testing.assert_allclose(load_audio(path).samples, expected, atol=1e-4)
    assert audio_info(path).frames == len(expected)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(AudioError, match="declares no length"):
        load_audio(path)


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_wav_from_a_pipe(length: int) -> None:
    """Writers that cannot seek leave such lengths; a sample count of 0 is the one that stays empty."""
    data = bytearray(encoded("WAV"))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", length)
    if length:
        assert load_audio(bytes(data)).seconds == pytest.approx(1.0, abs=0.01)
    else:
        with pytest.raises(AudioError, match="no samples"):
            load_audio(bytes(data))


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_length(format: str) -> None:
    """What is written is what comes back, from one sample on."""
    for length in (1, 2, 3, 10, 159, 160, 161, 1151, 1152, 1153, 5000, 16000):
        stream = io.BytesIO()
        soundfile.write(stream, speech_like(1.0)[:length], RATE, format=format)
        loaded = load_audio(stream.getvalue())
        assert np.isfinite(loaded.samples).all()
        if format in ("WAV", "FLAC"):
            assert len(loaded.samples) == length


def test_every_cut_of_a_file_is_audio_or_an_error() -> None:
    """No byte at which a file is cut gives anything but samples or an AudioError."""
    for format in ("WAV", "FLAC", "OGG", "MP3"):
        data = encoded(format, 0.3)
        for cut in np.unique(np.linspace(0, len(data) - 1, 60, dtype=int)):
            try:
                loaded = load_audio(data[:cut])
            except AudioError:
                continue
            assert np.isfinite(loaded.samples).all()
            assert format in ("OGG", "MP3")


def test_signal() -> None:
    require_signal(Audio(speech_like(0.5) * 1e-2, RATE), "quiet speech")
    for samples in (np.zeros(RATE), np.full(RATE, 0.9), 1e-5 * speech_like(1.0), np.array([0.5])):
        with pytest.raises(AudioError, match="x: is silent"):
            require_signal(Audio(samples.astype(np.float32), RATE), "x")
    burst = np.zeros(RATE, dtype=np.float32)
    burst[8000:8400] = speech_like(0.025)
    require_signal(Audio(burst, RATE), "a click")


def test_paths(tmp_path: Path, write_wav: Callable[..., Path]) -> None:
    write_wav("ünï cödé/日本 語.wav")
    assert load_audio(tmp_path / "ünï cödé" / "日本 語.wav").rate == RATE
    assert load_audio(str(write_wav("a b  c.wav"))).seconds == 1.0
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "none.wav", "no such file"),
        (tmp_path / "none.m4a", "no such file"),
        (write_wav("file.wav") / "below.wav", "no such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("a\0b.wav", "cannot be opened"),
    ):
        for read in (load_audio, audio_info):
            with pytest.raises(AudioError, match=message):
                read(path)
