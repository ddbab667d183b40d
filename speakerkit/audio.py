"""The audio gate: every sample enters here, decoded, checked, resampled, as float32 in [-1, 1]."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from speakerkit.errors import AudioError, MissingExtraError

Samples = npt.NDArray[np.float32]
AudioSource = str | os.PathLike[str] | bytes | IO[bytes] | npt.NDArray[Any]
Channel = int | Literal["mix"]

MIN_RATE, MAX_RATE = 4_000, 384_000  # Hz
SILENCE_DBFS = -70.0  # loudest 25 ms below this: nothing is there to embed
BLOCK_FRAMES = 1 << 20  # decoded at once: a header that declares terabytes costs no more memory than the file has sound
UNKNOWN_FRAMES = 1 << 62  # libsndfile's length of a stream that does not declare one lies above
# What programs that write into a pipe leave as the length of a RIFF file's data: unknown, not a lie.
STREAMED_LENGTHS = {0, 0x7FFF_F000, 0xFFFF_FFFF}
CONTAINER_SLACK = 0.25  # seconds that a container may declare beyond what decodes: encoders' priming and padding
NOTHING_FOUND = 7  # libsndfile's code where an mp3 holds no frame; its own words are "File does not exist"
HEADER_BYTES = 4096  # where a RIFF file's chunks before its samples, and SPHERE's fields, are looked for
# Formats that PyAV may find in a file, whatever its name: none of them (as playlists do) makes it read another file.
CONTAINER_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,asf,flac,ogg,mp3,wav"
CONTAINER_SUFFIXES = {".m4a", ".mp4", ".aac", ".webm", ".wma", ".mka", ".mkv", ".mov"}


@dataclass(frozen=True)
class Audio:
    """Mono audio.

    Attributes:
        samples: (samples,) float32 in [-1, 1].
        rate: sampling rate in Hz.
    """

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header declares: sampling rate in Hz, channels, frames (samples a channel)."""

    rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """Declared length in seconds."""
        return self.frames / self.rate


def load_audio(
    source: AudioSource,
    sample_rate: int | None = None,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    start: float = 0.0,
    duration: float | None = None,
) -> Audio:
    """Read audio from a path, bytes, a binary file object, or an array *with* its ``rate``.

    Args:
        source: what to read; an array is (samples,) or (channels, samples) floats in [-1, 1], or int16.
        sample_rate: wanted rate in Hz; ``None`` keeps the source's.
        rate: rate in Hz of an array; must be given with one, and with nothing else.
        channel: "mix" for the mean of all channels, or the number of one, from 0.
        start: first second to read.
        duration: seconds to read; ``None`` to the end. Only the wanted part of a seekable file is decoded.

    Raises:
        AudioError: missing, undecodable, truncated, empty or non-finite audio, or a channel that is not there.
        TypeError: an array without a rate.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        if rate is None:
            raise TypeError("an array of samples needs its rate: load_audio(array, rate=16000)")
        decoded = Audio(_pick_channel(_as_float(source, name), channel, name), _checked_rate(rate, name))
        decoded = _section(decoded, name, start, duration)
    elif rate is not None:
        raise TypeError("rate= belongs to arrays; files carry their own rate")
    else:
        decoded = _decode(source, name, channel, start, duration)
    if len(decoded.samples) == 0:
        raise AudioError(name, "holds no samples", "record it again or leave it out")
    if not np.isfinite(decoded.samples).all():
        raise AudioError(name, "holds samples that are NaN or infinite", "export it again from its source")
    if sample_rate is not None and sample_rate != decoded.rate:
        decoded = Audio(resample(decoded.samples, decoded.rate, sample_rate), sample_rate)
        if len(decoded.samples) == 0:
            raise AudioError(name, f"is too short to resample to {sample_rate} Hz", "give more than a few samples")
    return decoded


def read_blocks(
    source: AudioSource,
    sample_rate: int | None = None,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    seconds: float = 30.0,
) -> Iterator[Audio]:
    """What :func:`load_audio` gives whole, bit for bit, in blocks: a file never stands in memory as a whole.

    Arguments are those of :func:`load_audio`; a file object is read from where it stands, and only once.

    Args:
        seconds: about how much is decoded at once.

    Yields:
        audio that is not empty; blocks differ in length where they are resampled.

    Raises:
        AudioError: as :func:`load_audio`; damage is found when its block is reached.
        TypeError: an array without a rate.
    """
    name = _name(source)
    blocks = _native_blocks(source, name, rate, channel, seconds)
    filled = False
    for block in blocks if sample_rate is None else resample_blocks(blocks, sample_rate):
        if not np.isfinite(block.samples).all():
            raise AudioError(name, "holds samples that are NaN or infinite", "export it again from its source")
        filled = filled or len(block.samples) > 0
        if len(block.samples):
            yield block
    if not filled:
        raise AudioError(name, "holds no samples, or too few to resample", "record it again or leave it out")


def resample_blocks(blocks: Iterable[Audio], sample_rate: int) -> Iterator[Audio]:
    """Blocks of one recording at ``sample_rate`` Hz, together what :func:`resample` gives of the whole, bit for bit."""
    resampler: soxr.ResampleStream | None = None
    for block, last in _with_last(blocks):
        if block.rate == sample_rate:
            yield block
            continue
        resampler = resampler or soxr.ResampleStream(block.rate, sample_rate, 1, dtype="float32", quality="HQ")
        yield Audio(resampler.resample_chunk(block.samples, last=last), sample_rate)


def channel_numbers(source: AudioSource, channel: Channel | Literal["each"]) -> tuple[Channel, ...]:
    """What to read one after the other: ``channel`` itself, or the number of every channel for "each".

    Raises:
        AudioError: as :func:`audio_info`.
    """
    if channel != "each":
        return (channel,)
    if isinstance(source, np.ndarray):
        return tuple(range(source.shape[0] if source.ndim == 2 else 1))
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise TypeError("a file object can be read once only: give a path or bytes to read each channel")
    return tuple(range(audio_info(source).channels))


def audio_info(source: str | os.PathLike[str] | bytes) -> AudioInfo:
    """Rate, channels and length that the header declares; decoded only where it declares no length.

    Raises:
        AudioError: as :func:`load_audio`.
    """
    name = _name(source)
    if is_container(source):
        with _container(source, name) as (_, stream, declared):
            rate, channels = _checked_rate(int(stream.codec_context.sample_rate), name), int(stream.channels)
        frames = round(declared * rate) if declared else _total(_container_blocks(source, name, 0))
        return AudioInfo(rate, channels, frames)
    with _open(source, name) as sound:
        _refuse_lying_header(source, sound, name)
        rate = _checked_rate(sound.samplerate, name)
        if sound.frames < UNKNOWN_FRAMES:
            return AudioInfo(rate, sound.channels, sound.frames)
        channels = sound.channels
    return AudioInfo(rate, channels, _total(_stream_blocks(source, name, 0)))


def resample(samples: Samples, rate: float, target: float) -> Samples:
    """Resample (samples,) from ``rate`` to ``target`` Hz with soxr's high-quality filter.

    Speed perturbation by a factor f is ``resample(samples, f * rate, rate)``: pitch and tempo change together.
    """
    return soxr.resample(samples, rate, target, quality="HQ").astype(np.float32, copy=False)


def require_signal(audio: Audio, name: str) -> None:
    """Raise AudioError where nothing is to be heard: the loudest 25 ms lie under ``SILENCE_DBFS``.

    A constant offset is no signal, so each window's mean is removed first.
    """
    window = max(1, round(0.025 * audio.rate))
    count = max(1, len(audio.samples) // window)
    frames = np.resize(audio.samples, count * window) if len(audio.samples) < window else audio.samples
    frames = frames[: count * window].reshape(count, window).astype(np.float64)  # (windows, samples)
    power = float(np.var(frames, axis=1).max())
    if 10 * np.log10(power + 1e-30) < SILENCE_DBFS:
        raise AudioError(
            name, f"is silent (no 25 ms above {SILENCE_DBFS:.0f} dBFS)", "check the channel and the recording level"
        )


def is_container(source: Any) -> TypeGuard[str | os.PathLike[str] | bytes]:
    """Whether ``source`` is a path or are bytes that PyAV decodes, always as a whole."""
    if isinstance(source, bytes):
        return source[4:8] == b"ftyp" or source[:4] == b"\x1a\x45\xdf\xa3"  # MP4 family, Matroska family
    return isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in CONTAINER_SUFFIXES


def _name(source: AudioSource) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, np.ndarray):
        return "array"
    return str(getattr(source, "name", "audio in memory"))


def _checked_rate(rate: int, name: str) -> int:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(name, f"declares a rate of {rate} Hz", f"rates from {MIN_RATE} to {MAX_RATE} Hz are read")
    return int(rate)


def _as_float(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    if array.ndim not in (1, 2):
        raise AudioError(name, f"has {array.ndim} dimensions", "give (samples,) or (channels, samples)")
    if array.ndim == 2 and array.shape[0] > array.shape[1] > 0:
        raise AudioError(name, f"has {array.shape[0]} channels of {array.shape[1]} samples", "transpose it")
    if array.dtype == np.int16:
        return array.astype(np.float32) / 32768.0
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(name, f"is of type {array.dtype}", "give float samples in [-1, 1], or int16")
    return array.astype(np.float32, copy=False)


def _pick_channel(samples: npt.NDArray[np.float32], channel: Channel, name: str) -> Samples:
    """(samples,) or (channels, samples) to (samples,)."""
    if samples.ndim == 1:
        samples = samples[None]
    if samples.shape[0] == 0:
        raise AudioError(name, "has no channels", "export it again from its source")
    if channel == "mix":
        return samples[0] if len(samples) == 1 else samples.mean(axis=0)
    if not 0 <= channel < len(samples):
        raise AudioError(name, f"has no channel {channel}", f"it has {len(samples)}, counted from 0")
    return samples[channel]


def _refuse_bad_path(source: Any, name: str) -> None:
    """Raise AudioError for a path at which there is no file with anything in it."""
    if not isinstance(source, (str, os.PathLike)):
        return
    try:
        status = os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(name, "no such file", "check the path") from None
    except (OSError, ValueError) as error:  # no permission, too long a name, links in a circle, a null byte
        raise AudioError(name, f"cannot be opened ({_reason(error)})", "check the path and its permissions") from None
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(name, "is a directory", "name a file, or list many with --scp")
    if status.st_size == 0:
        raise AudioError(name, "is an empty file", "copy or record it again")


def _open(source: Any, name: str) -> soundfile.SoundFile:
    _refuse_bad_path(source, name)
    try:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        if _is_shortened(source):
            remedy = "convert it: sph2pipe -f wav -p IN.sph OUT.wav"
            raise AudioError(name, "is NIST SPHERE compressed with shorten, which cannot be decoded", remedy) from None
        raise AudioError(
            name,
            f"cannot be decoded ({_reason(error)})",
            "give wav, flac, ogg, opus or mp3, or convert it with ffmpeg",
        ) from None


def _is_shortened(source: Any) -> bool:
    """Whether it is SPHERE, as the LDC gives telephone speech, whose samples are packed."""
    if not isinstance(source, (str, os.PathLike, bytes)):
        return False
    head = source[:HEADER_BYTES] if isinstance(source, bytes) else _head(source)
    return head.startswith(b"NIST_1A") and b"shorten" in head.partition(b"end_head")[0]


def _head(path: str | os.PathLike[str]) -> bytes:
    """Its first bytes; none where it may not be read, which is told where it is decoded."""
    try:
        with open(path, "rb") as stream:
            return stream.read(HEADER_BYTES)
    except OSError:
        return b""


def _reason(error: Exception) -> str:
    if getattr(error, "code", None) == NOTHING_FOUND:
        return "no sound is found in it"
    text = str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error)
    return text.strip().rstrip(".")


def _decode(source: Any, name: str, channel: Channel, start: float, duration: float | None) -> Audio:
    if is_container(source):
        return _section(_joined(_container_blocks(source, name, channel)), name, start, duration)
    with _open(source, name) as sound:
        rate = _checked_rate(sound.samplerate, name)
        if duration is None:
            _refuse_lying_header(source, sound, name)
        if sound.frames >= UNKNOWN_FRAMES:
            return _section(_joined(_stream_blocks(source, name, channel)), name, start, duration)
        first = round(start * rate)
        wanted = sound.frames - first if duration is None else min(round(duration * rate), sound.frames - first)
        if wanted <= 0 and sound.frames > 0:
            raise AudioError(name, f"ends at {sound.frames / rate:.2f} s, before {start:.2f} s", "check the times")
        return _joined(_read(sound, first, wanted, BLOCK_FRAMES, channel, name))


def _native_blocks(source: Any, name: str, rate: int | None, channel: Channel, seconds: float) -> Iterator[Audio]:
    """Blocks at the source's own rate, unchecked for NaN; they may be empty."""
    if isinstance(source, np.ndarray):
        whole = load_audio(source, rate=rate, channel=channel)
        step = max(1, round(seconds * whole.rate))
        for first in range(0, len(whole.samples), step):
            yield Audio(whole.samples[first : first + step], whole.rate)
        return
    if rate is not None:
        raise TypeError("rate= belongs to arrays; files carry their own rate")
    if is_container(source):
        yield from _container_blocks(source, name, channel)
        return
    with _open(source, name) as sound:
        native = _checked_rate(sound.samplerate, name)
        _refuse_lying_header(source, sound, name)
        if sound.frames < UNKNOWN_FRAMES:
            step = min(BLOCK_FRAMES, max(1, round(seconds * native)))
            yield from _read(sound, 0, sound.frames, step, channel, name)
            return
    yield from _stream_blocks(source, name, channel)


def _with_last(blocks: Iterable[Audio]) -> Iterator[tuple[Audio, bool]]:
    """Each block, and whether it is the last."""
    previous: Audio | None = None
    for block in blocks:
        if previous is not None:
            yield previous, False
        previous = block
    if previous is not None:
        yield previous, True


def _section(whole: Audio, name: str, start: float, duration: float | None) -> Audio:
    """``duration`` seconds from ``start`` on, of audio that could only be decoded as a whole."""
    first = round(start * whole.rate)
    if first >= len(whole.samples) > 0:
        raise AudioError(name, f"ends at {whole.seconds:.2f} s, before {start:.2f} s", "check the times")
    stop = None if duration is None else first + round(duration * whole.rate)
    return Audio(whole.samples[first:stop], whole.rate)


def _stream_blocks(source: Any, name: str, channel: Channel) -> Iterator[Audio]:
    """Decode a FLAC that declares no length, as one written into a pipe: libsndfile fails at the end of these."""
    try:
        if isinstance(source, (str, os.PathLike, bytes)):
            yield from _container_blocks(source, name, channel)
            return
    except MissingExtraError:
        pass
    raise AudioError(
        name, "declares no length", "write it again into a file, or pip install 'speakerkit[formats]' to read it so"
    )


def _read(
    sound: soundfile.SoundFile, first: int, wanted: int, step: int, channel: Channel, name: str
) -> Iterator[Audio]:
    """``wanted`` samples of a channel or the mix, from sample ``first`` on, ``step`` at once."""
    if wanted == 0:
        yield Audio(np.empty(0, dtype=np.float32), sound.samplerate)
        return
    count = 0
    try:
        if first:
            sound.seek(first)
        while count < wanted:
            block = sound.read(min(step, wanted - count), dtype="float32", always_2d=True)  # (samples, channels)
            if not len(block):
                break
            count += len(block)
            yield Audio(np.ascontiguousarray(_pick_channel(block.T, channel, name)), sound.samplerate)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(name, f"is damaged ({_reason(error)})", "copy or record it again") from None
    if count < wanted:
        raise AudioError(
            name,
            f"is truncated: {count} of {wanted} declared samples decode",
            "copy it again from its source, or cut it with sox or ffmpeg",
        )


def _joined(blocks: Iterable[Audio]) -> Audio:
    """Blocks, one at least, as one."""
    listed = list(blocks)
    if len(listed) == 1:
        return listed[0]
    return Audio(np.concatenate([block.samples for block in listed]), listed[0].rate)


def _total(blocks: Iterable[Audio]) -> int:
    return sum(len(block.samples) for block in blocks)


def _refuse_lying_header(source: Any, sound: soundfile.SoundFile, name: str) -> None:
    """Raise where a RIFF header declares more data than the file holds: libsndfile silently shortens such files."""
    if sound.format not in ("WAV", "WAVEX") or not isinstance(source, (str, os.PathLike, bytes)):
        return
    if isinstance(source, bytes):
        head, size = source[:HEADER_BYTES], len(source)
    else:
        head, size = _head(source), os.path.getsize(source)
    if head[:4] != b"RIFF":
        return
    position = 12
    while position + 8 <= len(head):
        length = int.from_bytes(head[position + 4 : position + 8], "little")
        if head[position : position + 4] == b"data":
            if length not in STREAMED_LENGTHS and position + 8 + length > size:
                raise AudioError(
                    name,
                    f"is truncated: its header declares {length} bytes of samples, {size - position - 8} are there",
                    "copy it again from its source, or rewrite it with sox or ffmpeg",
                )
            return
        position += 8 + length + (length & 1)


@contextmanager
def _container(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[tuple[Any, Any, float]]:
    """Open m4a, mp4, webm and the like through PyAV: container, audio stream, declared seconds (0 where unknown)."""
    _refuse_bad_path(source, name)
    try:
        import av
    except ImportError:
        raise MissingExtraError(f"{name}: reading m4a, mp4 or webm", "formats") from None
    # Without "file:" FFmpeg takes what stands before a colon in a file's name for a protocol.
    opened = io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.fspath(source)}"
    try:
        with av.open(opened, mode="r", options={"format_whitelist": CONTAINER_FORMATS}) as container:
            if not container.streams.audio:
                raise AudioError(name, "holds no audio stream", "check the file")
            stream = container.streams.audio[0]
            declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            yield container, stream, declared
    except (av.FFmpegError, ValueError, OSError) as error:
        raise AudioError(name, f"cannot be decoded ({_reason(error)})", "convert it to flac with ffmpeg") from None


def _container_blocks(source: str | os.PathLike[str] | bytes, name: str, channel: Channel) -> Iterator[Audio]:
    """Decode what :func:`_container` opens; one block at least."""
    count = 0
    with _container(source, name) as (container, stream, declared):
        from av import AudioResampler

        rate = _checked_rate(int(stream.codec_context.sample_rate), name)
        resampler = AudioResampler(format="fltp", rate=rate)
        for frame in container.decode(stream):
            for block in resampler.resample(frame):
                samples = _pick_channel(block.to_ndarray().astype(np.float32, copy=False), channel, name)
                count += len(samples)
                yield Audio(samples, rate)
    if count == 0:
        raise AudioError(name, "holds no samples", "record it again or leave it out")
    if count / rate < declared - CONTAINER_SLACK:
        raise AudioError(
            name,
            f"is truncated: {count / rate:.2f} of {declared:.2f} declared seconds decode",
            "copy it again from its source",
        )
