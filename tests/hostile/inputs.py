"""Bad and odd inputs, made from nothing: each is a name and a function that writes it."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from tests.conftest import speech_like

RATE = 16000


@dataclass(frozen=True)
class AudioInput:
    """A file that calls itself audio.

    Attributes:
        name: its name.
        write: makes it at a path.
        fault: what the message about it says (a regular expression); "" where it must work.
        shown_by: what it takes to notice: its "header", "decoding" all of it, or looking at the "signal".
    """

    name: str
    write: Callable[[Path], None]
    fault: str = ""
    shown_by: str = ""


def encoded(
    format: str, seconds: float = 1.0, subtype: str | None = None, rate: int = RATE, channels: int = 1
) -> bytes:
    """Speech-like noise as the bytes of a file."""
    stream = io.BytesIO()
    samples = np.stack([speech_like(seconds, rate, seed) for seed in range(channels)], axis=1)
    soundfile.write(stream, samples, rate, format=format, subtype=subtype)
    return stream.getvalue()


def wav_header(data_bytes: int, rate: int = RATE, channels: int = 1) -> bytes:
    """The 44 bytes before 16-bit samples, with whatever they are asked to declare."""
    return (
        struct.pack("<4sI4s4sIHHI", b"RIFF", (36 + data_bytes) & 0xFFFFFFFF, b"WAVE", b"fmt ", 16, 1, channels, rate)
        + struct.pack("<IHH", (2 * rate * channels) & 0xFFFFFFFF, 2 * channels, 16)
        + struct.pack("<4sI", b"data", data_bytes)
    )


def pcm(seconds: float = 1.0) -> bytes:
    """16-bit samples without a header."""
    return (speech_like(seconds, RATE) * 32767).astype("<i2").tobytes()


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _samples(samples: np.ndarray, subtype: str = "PCM_16", rate: int = RATE) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, samples, rate, subtype=subtype, format="WAV")


def _spoilt(value: float) -> np.ndarray:
    samples = speech_like(1.0)
    samples[8000] = value
    return samples


def _overwritten(content: bytes) -> bytes:
    """With a tenth of it, in the middle, replaced by other bytes."""
    first, count = len(content) // 2, len(content) // 10
    return content[:first] + bytes((7 * number) % 251 for number in range(count)) + content[first + count :]


def flac_of_length(declared: int) -> bytes:
    """A good FLAC whose header declares ``declared`` samples (0: unknown, as encoders that write into a pipe say)."""
    content = bytearray(encoded("FLAC"))
    (packed,) = struct.unpack(">Q", content[18:26])
    content[18:26] = struct.pack(">Q", packed >> 36 << 36 | declared)
    return bytes(content)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _beside_secret(content: bytes) -> Callable[[Path], None]:
    """With a good recording, ``secret.flac``, in the same folder for it to point at."""

    def write(path: Path) -> None:
        path.write_bytes(content)
        path.with_name("secret.flac").write_bytes(encoded("FLAC"))

    return write


BAD_AUDIO = (
    AudioInput("empty.wav", _bytes(b""), "empty file", "header"),
    AudioInput("no_samples.wav", _bytes(wav_header(0)), "holds no samples", "header"),
    AudioInput("one_sample.wav", _samples(np.array([0.5])), "silent|lasts 0.000 s", "signal"),
    AudioInput("short.wav", _samples(speech_like(0.1)), r"lasts 0\.100 s, the model needs 0\.300 s", "signal"),
    AudioInput("faint.wav", _samples(1e-5 * speech_like(1.0), "FLOAT"), "silent", "signal"),
    AudioInput("zeros.wav", _samples(np.zeros(RATE)), "silent", "signal"),
    AudioInput("constant.wav", _samples(np.full(RATE, 0.5)), "silent", "signal"),
    AudioInput("nan.wav", _samples(_spoilt(np.nan), "FLOAT"), "NaN or infinite", "decoding"),
    AudioInput("inf.wav", _samples(_spoilt(np.inf), "FLOAT"), "NaN or infinite", "decoding"),
    AudioInput("truncated.wav", _bytes(wav_header(32000) + pcm()[:9000]), "truncated", "header"),
    AudioInput("says_more.wav", _bytes(wav_header(1 << 30) + pcm()), "truncated", "header"),
    AudioInput("cut_header.wav", _bytes(wav_header(32000)[:30]), "cannot be decoded", "header"),
    AudioInput("no_data.wav", _bytes(wav_header(32000)[:36]), "cannot be decoded", "header"),
    AudioInput("damaged.flac", _bytes(_overwritten(encoded("FLAC"))), "damaged|truncated", "decoding"),
    AudioInput("truncated.flac", _bytes(encoded("FLAC")[:9000]), "damaged|truncated", "decoding"),
    AudioInput("says_terabytes.flac", _bytes(flac_of_length((1 << 36) - 1)), "damaged|truncated", "decoding"),
    AudioInput("damaged.mp3", _bytes(_overwritten(encoded("MP3"))), "damaged|truncated", "decoding"),
    AudioInput("truncated.mp3", _bytes(encoded("MP3")[:3000]), "damaged|truncated", "decoding"),
    AudioInput("truncated.ogg", _bytes(encoded("OGG")[:3000]), "cannot be decoded|truncated|damaged", "header"),
    AudioInput("garbage.mp3", _bytes(bytes((13 * n * n) % 256 for n in range(20000))), "cannot be decoded", "header"),
    AudioInput("no_channels.wav", _bytes(wav_header(32000, channels=0) + pcm()), "cannot be decoded", "header"),
    AudioInput("1_hz.wav", _bytes(wav_header(32000, rate=1) + pcm()), "rate of 1 Hz", "header"),
    AudioInput("0_hz.wav", _bytes(wav_header(32000, rate=0) + pcm()), "rate of 0 Hz|cannot be decoded", "header"),
    AudioInput(
        "absurd_rate.wav", _bytes(wav_header(32000, rate=2_000_000_000) + pcm()), "declares a rate of|decoded", "header"
    ),
    AudioInput("text.wav", _bytes(b"this is not audio\n" * 50), "cannot be decoded", "header"),
    AudioInput("page.flac", _bytes(b"<!DOCTYPE html><html>404</html>"), "cannot be decoded", "header"),
    AudioInput("directory.wav", lambda path: path.mkdir(), "is a directory", "header"),
    AudioInput("garbage.m4a", _bytes(b"\0\0\0\x20ftypM4A " + bytes(range(256)) * 8), "cannot be decoded", "header"),
    AudioInput("list.m4a", _beside_secret(b"ffconcat version 1.0\nfile secret.flac\n"), "cannot be decoded", "header"),
    AudioInput(
        "playlist.m4a",
        _beside_secret(b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.flac\n#EXT-X-ENDLIST\n"),
        "cannot be decoded",
        "header",
    ),
    AudioInput("circle.wav", _link_to_itself, "cannot be opened|no such file", "header"),
    AudioInput("dangling.wav", lambda path: path.symlink_to("nowhere.wav"), "no such file", "header"),
)

ODD_AUDIO = (
    AudioInput("8_channels.wav", _bytes(encoded("WAV", channels=8))),
    AudioInput("96_khz.wav", _bytes(encoded("WAV", rate=96000))),
    AudioInput("8_khz.wav", _bytes(encoded("WAV", rate=8000))),
    AudioInput("says_less.wav", _bytes(wav_header(16000) + pcm())),
    AudioInput("from_a_pipe.wav", _bytes(wav_header(0xFFFFFFFF) + pcm())),
    AudioInput("from_a_pipe.flac", _bytes(flac_of_length(0))),
    AudioInput("ünï  日本 \u3000 語.wav", _bytes(encoded("WAV"))),
    AudioInput("-m.wav", _bytes(encoded("WAV"))),
    AudioInput("'quoted' $(x) `y` ;&.flac", _bytes(encoded("FLAC"))),
    AudioInput("wrong_suffix.flac", _bytes(encoded("WAV"))),
)

MAY_WORK = (  # decoders may find their way through such damage; what comes out must be finite
    AudioInput("damaged.ogg", _bytes(_overwritten(encoded("OGG"))), "damaged|truncated", "decoding"),
)


class Trap:
    """What unpickling runs: it leaves a file behind, so that a test can tell."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.sentinel}'",)


def trap_pickle(sentinel: Path, protocol: int = 2) -> bytes:
    """A pickle that touches ``sentinel`` when it is opened by :mod:`pickle`."""
    return pickle.dumps(Trap(sentinel), protocol=protocol)


JUNK = bytes((31 * number + number // 7) % 256 for number in range(5000))
LONG_LINE = "x" * 1_000_000
DEEP = "[" * 100_000


def yaml_that_runs(sentinel: Path) -> str:
    """YAML that unsafe loaders run."""
    return f"exp_dir: !!python/object/apply:os.system ['touch {sentinel}']\n"


YAML_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar with these members, whatever their names."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
