"""Windows cut out of speech, and their embeddings."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Audio, AudioSource, Channel, Samples, resample_blocks
from speakerkit.diarization.progress import watched_blocks
from speakerkit.diarization.turns import Span
from speakerkit.diarization.vad import DIGITAL_STEP
from speakerkit.embedding.embedder import Embedder, Vector
from speakerkit.errors import ConfigError, DataError

logger = logging.getLogger("speakerkit.diarization")

Times = npt.NDArray[np.float64]

TINY = 1e-6  # seconds: windows and spans that differ by less are the same
BEYOND = 0.1  # seconds that a window may end after the recording, as references do: it is moved back
PENDING_SAMPLES = 1 << 23  # cut and waiting for others of their length: 32 MB


@dataclass(frozen=True, eq=False)
class Windows:
    """Stretches of a recording, (N,) starts and ends in seconds.

    Raises:
        DataError: starts and ends that do not match, are not finite, or a window that does not end after its start.
    """

    starts: Times
    ends: Times

    def __post_init__(self) -> None:
        starts, ends = (np.asarray(times, dtype=np.float64) for times in (self.starts, self.ends))
        if starts.ndim != 1 or starts.shape != ends.shape:
            raise DataError("windows", f"have starts {starts.shape} and ends {ends.shape}", "give one of each")
        if not (np.isfinite(ends).all() and (starts >= 0).all() and (ends > starts).all()):
            raise DataError("windows", "do not all start at 0 or later and end after that", "check their times")
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "ends", ends)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def centres(self) -> Times:
        """(N,) middles."""
        return (self.starts + self.ends) / 2

    @property
    def seconds(self) -> Times:
        """(N,) lengths."""
        return self.ends - self.starts

    def select(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Windows:
        """Some of them, by mask or by number."""
        return Windows(self.starts[chosen], self.ends[chosen])


def cut_windows(spans: Iterable[Span], length: float = 1.5, hop: float = 0.75, minimum: float = 0.1) -> Windows:
    """Windows of ``length`` seconds every ``hop`` seconds of each span.

    The last of a span ends where the span does, so it may lie closer to the one before. A span that is shorter than
    ``length`` gives one shorter window. One that is shorter than ``minimum`` gives none, so that no embedding is made
    of next to nothing; ``turns_of_windows`` in ``segments.py`` then takes the speaker of the nearest window.

    Raises:
        ConfigError: lengths that are not positive and finite, or a hop above the length: speech would fall between.
    """
    _check(length, hop, minimum)
    starts: list[float] = []
    ends: list[float] = []
    for start, end in spans:
        if end - start < max(minimum, TINY):
            continue
        steps = max(0, math.ceil((end - start - length - TINY) / hop))
        begins = [start + hop * step for step in range(steps)] + [max(start, end - length)]
        starts.extend(begins)
        ends.extend([*(begin + length for begin in begins[:-1]), end])
    return Windows(np.array(starts), np.array(ends))


def multi_scale(
    spans: Sequence[Span], lengths: Sequence[float] = (1.5, 1.0, 0.5), hop: float | None = None, minimum: float = 0.1
) -> tuple[Windows, ...]:
    """Windows of several lengths around the same places, N of each, in the order of ``lengths``.

    The shortest are cut as :func:`cut_windows` does, every ``hop`` seconds (half of their length unless given). Around
    the middle of each lies one of every other length, moved as far as it takes to stay in the span, and as long as the
    span where that is shorter. Short windows say where speakers change, long ones say more surely who speaks.

    Raises:
        ConfigError: as :func:`cut_windows`; no length.
    """
    if not lengths:
        raise ConfigError("windows", "have no length", "give one at least")
    shortest = min(lengths)
    base = cut_windows(spans, shortest, shortest / 2 if hop is None else hop, minimum)
    edges = np.array(spans, dtype=np.float64).reshape(-1, 2)
    own = edges[np.searchsorted(edges[:, 0], base.starts, side="right") - 1]  # (N, 2), the span of each window
    scales = []
    for length in lengths:
        _check(length, length, minimum)
        starts = np.clip(base.centres - length / 2, own[:, 0], np.maximum(own[:, 0], own[:, 1] - length))
        scales.append(base if length == shortest else Windows(starts, np.minimum(starts + length, own[:, 1])))
    return tuple(scales)


def _check(length: float, hop: float, minimum: float) -> None:
    if not 0 < length < math.inf:
        raise ConfigError("window length", f"is {length}", "it is in seconds, above 0")
    if not 0 < hop <= length:
        raise ConfigError("window hop", f"is {hop}", f"it is in seconds, above 0 and at most the length, {length:g}")
    if not 0 <= minimum <= length:
        raise ConfigError("shortest window", f"is {minimum}", f"it is in seconds, at most the length, {length:g}")


@dataclass(frozen=True, eq=False)
class WindowEmbeddings:
    """Embeddings of windows.

    Attributes:
        windows: the M that have one, in the order given.
        vectors: (M, D) float32, not length-normalised.
        kept: (M,) their numbers among the windows given.
        silent: the others, which hold digital silence.
    """

    windows: Windows
    vectors: Vector
    kept: npt.NDArray[np.intp]
    silent: Windows = field(default_factory=lambda: Windows(np.empty(0), np.empty(0)))


def embed_windows(
    embedder: Embedder,
    source: AudioSource,
    windows: Windows,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    batch_size: int = 32,
) -> WindowEmbeddings:
    """Embed each window as if it had been cut out of the recording at the model's rate and were all there is.

    The recording is read in blocks, so memory does not grow with its length. Features are made of each cut by itself:
    for every kind of front-end that is what the model has been trained on, mean normalisation and edges included, and
    it costs little beside the model. Batches hold cuts of equal length; an embedding does not depend on the others.

    Args:
        source: path, bytes, binary file object, or array with its ``rate`` in Hz.
        windows: in any order, inside the recording; those shorter than the model's minimum are repeated to reach it.
        channel: as for :func:`speakerkit.diarization.vad.detect_speech`.
        batch_size: windows run at once, at most.

    Returns:
        the embeddings; windows of digital silence have none, which is told by a warning.

    Raises:
        AudioError: as :func:`speakerkit.audio.load_audio`.
        DataError: a window that lies outside the recording.
        ConfigError: a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError("batch size", f"is {batch_size}", "it is at least 1")
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "audio"
    vectors = np.zeros((len(windows), embedder.bundle.config.embedding_size), dtype=np.float32)
    heard = np.zeros(len(windows), dtype=bool)
    if len(windows):
        cuts = _cuts(_blocks(embedder, source, name, rate, channel), windows, embedder.frontend.sample_rate, name)
        for numbers, found in embedder.embed_batches(_batches(cuts, batch_size)):
            vectors[numbers], heard[numbers] = found, True
    silent = windows.select(~heard)
    if len(silent):
        logger.warning(
            "%s: %d of %d windows hold digital silence, the first at %.2f s: they are left out",
            *(name, len(silent), len(windows), silent.starts[0]),
        )
    return WindowEmbeddings(windows.select(heard), vectors[heard], np.flatnonzero(heard), silent)


def fuse_scales(scales: Sequence[Vector], weights: Sequence[float] | None = None) -> Vector:
    """Embeddings of several scales as one of each place, whose cosine is the weighted mean of the scales' cosines.

    Args:
        scales: (N, D) each.
        weights: of the scales; equal unless given.

    Returns:
        (N, K D) float32 of length 1: each scale's direction times the root of its share, side by side.

    Raises:
        ConfigError: weights that are not as many, negative, or all 0.
    """
    shares = np.ones(len(scales)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(shares) != len(scales) or not (shares >= 0).all() or not 0 < shares.sum() < math.inf:
        raise ConfigError("weights of scales", f"are {shares.tolist()}", f"give {len(scales)}, not negative, not all 0")
    wide = [np.asarray(scale, dtype=np.float64) for scale in scales]
    directions = [scale / np.linalg.norm(scale, axis=1, keepdims=True) for scale in wide]
    roots = np.sqrt(shares / shares.sum())
    return np.concatenate([root * each for root, each in zip(roots, directions, strict=True)], axis=1, dtype=np.float32)


def _blocks(embedder: Embedder, source: AudioSource, name: str, rate: int | None, channel: Channel) -> Iterator[Audio]:
    """The recording at the model's rate."""
    blocks = watched_blocks(source, "embeddings", rate=rate, channel=channel)
    first = next(blocks)
    embedder.warn_of_rate(name, first.rate)
    return resample_blocks(itertools.chain([first], blocks), embedder.frontend.sample_rate)


def _cuts(blocks: Iterable[Audio], windows: Windows, rate: int, name: str) -> Iterator[tuple[int, Samples]]:
    """(number, samples) of each window in which there is sound, in the order in which they end."""
    counts = np.maximum(1, np.round(windows.seconds * rate)).astype(np.int64)
    firsts = np.round(windows.starts * rate).astype(np.int64)
    order = np.lexsort((firsts, firsts + counts))
    needed = np.minimum.accumulate(firsts[order][::-1])[::-1]  # the first sample that this window or a later one needs
    held, offset, done = np.empty(0, dtype=np.float32), 0, 0

    def cut(number: int, first: int) -> Iterator[tuple[int, Samples]]:
        samples = held[first - offset : first - offset + counts[number]]
        if np.ptp(samples) > DIGITAL_STEP:
            yield number, samples.copy()  # a view would keep the block in memory

    for block in blocks:
        held = np.concatenate([held, block.samples])
        while done < len(order) and firsts[order[done]] + counts[order[done]] <= offset + len(held):
            yield from cut(int(order[done]), int(firsts[order[done]]))
            done += 1
        if done == len(order):
            return
        unused = int(min(needed[done] - offset, len(held)) - BEYOND * rate)  # windows at the end may be moved back
        if unused > 0:
            held, offset = held[unused:], offset + unused
    total = offset + len(held)
    for number in map(int, order[done:]):
        if firsts[number] >= total or firsts[number] + counts[number] > total + BEYOND * rate:
            span = f"{windows.starts[number]:.3f} to {windows.ends[number]:.3f} s"
            raise DataError(name, f"lasts {total / rate:.3f} s, a window is {span}", "cut the speech to the recording")
        yield from cut(number, max(offset, total - int(counts[number])))


def _batches(cuts: Iterable[tuple[int, Samples]], batch_size: int) -> Iterator[tuple[npt.NDArray[np.intp], Samples]]:
    """Numbers (B,) and samples (B, length) of cuts of equal length; few cuts wait for others of their length."""
    waiting: dict[int, list[tuple[int, Samples]]] = {}
    held = 0
    for number, samples in cuts:
        group = waiting.setdefault(len(samples), [])
        group.append((number, samples))
        held += len(samples)
        if len(group) == batch_size:
            held -= len(group) * len(samples)
            yield _stacked(waiting.pop(len(samples)))
        elif held > PENDING_SAMPLES:
            yield from map(_stacked, waiting.values())
            waiting, held = {}, 0
    yield from map(_stacked, waiting.values())


def _stacked(group: list[tuple[int, Samples]]) -> tuple[npt.NDArray[np.intp], Samples]:
    numbers, samples = zip(*group, strict=True)
    return np.array(numbers, dtype=np.intp), np.stack(samples)
