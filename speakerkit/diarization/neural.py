"""Diarization by trained networks: TS-VAD where the speakers are known or clustered, EEND from the sound alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from speakerkit.audio import AudioSource, Channel, Samples, load_audio
from speakerkit.config import require
from speakerkit.diarization.activity import Binarisation, Frames, Probabilities, turns_of
from speakerkit.diarization.bundle import DiarizationModel
from speakerkit.diarization.progress import watched_blocks
from speakerkit.diarization.segments import speaker_name
from speakerkit.diarization.turns import Diarization, Span, Speaker, Turn, regions, without
from speakerkit.errors import AudioError, BundleError

if TYPE_CHECKING:
    from torch import Tensor

    from speakerkit.diarization.eend import EEND
    from speakerkit.diarization.tsvad import TSVAD
    from speakerkit.embedding.embedder import Embedder

Voices = npt.NDArray[np.float32]

WINDOWS_AT_ONCE = 8
SHORTEST_PART = 0.05  # seconds that are worth reading
VOICE_SECONDS = 30.0  # of a speaker's speech make their embedding: more costs time and changes little
BLOCK_SECONDS = 300.0  # that an EEND hears at once
SAME = 0.5  # cosine of two activities where blocks overlap, from which on they are of one speaker
MOST_SPEAKERS = 20  # that an EEND may find
GROWTH, TOGETHER = 1.5, 0.5  # see _blurred


@dataclass(frozen=True, eq=False)
class FrameProbabilities:
    """How probable it is that each speaker speaks in each frame.

    Attributes:
        values: (frames, speakers) in [0, 1].
        frames: where they lie.
        seconds: length of the recording.
    """

    values: Probabilities
    frames: Frames
    seconds: float

    def turns(
        self, speakers: Sequence[str], rule: Binarisation, speech: Sequence[Span] | None = None
    ) -> tuple[Turn, ...]:
        """See :func:`speakerkit.diarization.activity.turns_of`."""
        return turns_of(self.values, speakers, self.frames, rule, self.seconds, speech)


class SlidingWindows:
    """Windows of a recording, half overlapping and on the grid of a network's frames, read in blocks.

    A shorter recording is one window, repeated where it is too short for the network. The last window ends with the
    recording, but for less than a frame.

    Attributes:
        samples: of the recording, once its windows have been gone through.
    """

    def __init__(
        self, model: DiarizationModel, source: AudioSource, seconds: float, rate: int | None, channel: Channel
    ) -> None:
        self._source, self._own_rate, self._channel, self._task = source, rate, channel, model.config.task
        self._rate = model.config.frontend.sample_rate
        self._grid = round(model.network.frames.period * self._rate)
        self._minimum = model.network.min_samples
        self._size = max(round(seconds * self._rate), self._minimum, 2 * self._grid)
        self._hop = self._size // 2 // self._grid * self._grid
        self.samples = 0

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.samples / self._rate

    def __iter__(self) -> Iterator[tuple[int, Samples]]:
        """(first frame, samples) of each window."""
        held, begins, following = np.zeros(0, dtype=np.float32), 0, 0
        blocks = watched_blocks(self._source, self._task, self._rate, rate=self._own_rate, channel=self._channel)
        for block in blocks:
            held = np.concatenate([held, block.samples])
            while begins + len(held) >= following + self._size:
                held, begins = held[following - begins :], following
                yield begins // self._grid, held[: self._size]
                following += self._hop
        self.samples = begins + len(held)
        if following == 0:
            yield 0, held if len(held) >= self._minimum else np.resize(held, self._minimum)
        else:
            last = (self.samples - self._size) // self._grid * self._grid
            if last > begins:
                yield last // self._grid, held[last - begins : last - begins + self._size]

    def batches(self) -> Iterator[list[tuple[int, Samples]]]:
        """The windows, several of one length at once."""
        batch: list[tuple[int, Samples]] = []
        for window in self:
            if batch and (len(batch) == WINDOWS_AT_ONCE or len(batch[0][1]) != len(window[1])):
                yield batch
                batch = []
            batch.append(window)
        yield batch


def tsvad_probabilities(
    model: DiarizationModel,
    source: AudioSource,
    voices: Voices,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    window_seconds: float = 0.0,
) -> FrameProbabilities:
    """When each known speaker speaks in a recording, which is read in blocks.

    Windows overlap by half; where they do, their probabilities are averaged. More speakers than the model has slots are
    looked for in groups.

    Args:
        model: a TS-VAD.
        voices: (speakers, D) embeddings by the model's embedder.
        rate: of an array of samples.
        window_seconds: length of the windows; 0 for that of training chunks.

    Raises:
        BundleError: another kind of model, or embeddings of another size.
        AudioError: as :func:`speakerkit.audio.load_audio`.
    """
    import torch

    network = require_tsvad(model)
    if voices.ndim != 2 or not len(voices) or voices.shape[1] != model.config.embedding_size:
        fault = f"knows speakers by embeddings of {model.config.embedding_size}, not of shape {voices.shape}"
        raise BundleError(model.path, fault, "embed with the model that it was trained with")
    groups = [torch.from_numpy(voices[first : first + network.slots]) for first in range(0, len(voices), network.slots)]

    def run(sound: Samples) -> Probabilities:
        heard, parts = torch.from_numpy(sound).to(model.device), []
        for group in groups:
            slots = torch.zeros(network.slots, voices.shape[1])
            slots[: len(group)] = group
            logits = network(heard, slots.to(model.device).expand(len(sound), -1, -1))[:, :, : len(group)]
            parts.append(logits.sigmoid().float().cpu().numpy())
        return np.concatenate(parts, axis=2)  # (windows, frames, speakers)

    total, weight = np.zeros((0, len(voices)), dtype=np.float32), np.zeros((0, 1), dtype=np.float32)
    windows = SlidingWindows(model, source, window_seconds or model.config.chunk_seconds, rate, channel)
    end = 0
    with torch.inference_mode():
        for batch in windows.batches():
            found = run(np.stack([samples for _, samples in batch]))
            end = batch[-1][0] + found.shape[1]
            total, weight = _grown(total, end), _grown(weight, end)
            for (first, _), values in zip(batch, found, strict=True):
                total[first : first + len(values)] += values
                weight[first : first + len(values)] += 1
    return _cut(_mean(total[:end], weight[:end]), network.frames, windows.seconds)


def require_tsvad(model: DiarizationModel, embedder: Embedder | None = None) -> TSVAD:
    """The network of a TS-VAD, which is to refine clusters of ``embedder``'s embeddings.

    Raises:
        BundleError: another kind of model, or another embedder than it was trained with.
    """
    from speakerkit.diarization.tsvad import TSVAD

    if not isinstance(model.network, TSVAD):
        raise BundleError(model.path, f"is a model of task {model.config.task!r}", "give one of task tsvad")
    trained_with = model.config.embedder_sha256
    if embedder is not None and trained_with and trained_with != embedder.bundle.digest():
        fault = f"was trained with embeddings of another model than {embedder.bundle.path}"
        raise BundleError(model.path, fault, "use the embedding model that it was trained with")
    return model.network


def require_eend(model: DiarizationModel) -> EEND:
    """The network of an EEND.

    Raises:
        BundleError: another kind of model.
    """
    from speakerkit.diarization.eend import EEND

    if not isinstance(model.network, EEND):
        raise BundleError(model.path, f"is a model of task {model.config.task!r}", "give one of task eend")
    return model.network


def _grown(values: Probabilities, count: int) -> Probabilities:
    """The same with zeros up to ``count`` rows at least; room is doubled, so that long recordings are not copied."""
    if count <= len(values):
        return values
    return np.pad(values, ((0, max(count, 2 * len(values)) - len(values)), (0, 0)))


def _mean(total: Probabilities, weight: Probabilities) -> Probabilities:
    return np.asarray(total / np.maximum(weight, 1), dtype=np.float32)


def _cut(values: Probabilities, frames: Frames, seconds: float) -> FrameProbabilities:
    """Without frames that begin after the recording's end."""
    count = next(
        (n for n in range(max(1, int(seconds / frames.period)), len(values)) if frames.edge(n) >= seconds), None
    )
    return FrameProbabilities(values[:count], frames, seconds)


def refine(
    diarization: Diarization,
    source: AudioSource,
    model: DiarizationModel,
    embedder: Embedder,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    speech: Sequence[Span] | None = None,
    rule: Binarisation | None = None,
    iterations: int = 1,
) -> Diarization:
    """A diarization gone over by TS-VAD, overlaps added: each speaker's embedding is that of speech of theirs alone.

    A speaker of whom there is too little to embed keeps the turns of before, and so does one whom TS-VAD nowhere hears,
    or seems to hear whenever others speak: their number stays.

    Args:
        diarization: as of clustering.
        source: the recording; a file object can be read only once and will not do.
        model: a TS-VAD.
        embedder: the one that the model was trained with.
        rate: of an array of samples.
        speech: where somebody speaks, if that is known; see :func:`speakerkit.diarization.activity.turns_of`.
        rule: how probabilities become turns.
        iterations: times; each takes embeddings by the turns that the one before gave.

    Raises:
        BundleError: another kind of model, or another embedder than the model was trained with.
        AudioError: as :func:`speakerkit.audio.load_audio`.
    """
    require(iterations >= 1, "iterations", iterations, "it is at least 1")
    require_tsvad(model, embedder)
    rule = rule or Binarisation()
    for _ in range(iterations):
        voices = speaker_voices(diarization, source, embedder, rate=rate, channel=channel)
        if not voices:
            return diarization
        found = tsvad_probabilities(model, source, np.stack(list(voices.values())), rate=rate, channel=channel)
        turns = _turns_beside(diarization, found, list(voices), list(voices), rule, speech)
        blurred = _blurred(turns, diarization)
        if blurred:
            clear = [label for label in voices if label not in blurred]
            turns = _turns_beside(diarization, found, list(voices), clear, rule, speech)
        heard = {turn.speaker for turn in turns}
        kept = [turn for turn in diarization.turns if turn.speaker not in heard]
        limit = found.seconds if diarization.duration is None else diarization.duration
        cut = (replace(turn, end=min(turn.end, limit)) for turn in turns if turn.start < limit)
        known = {
            label: replace(diarization.speakers.get(label, Speaker(label)), embedding=voice)
            for label, voice in voices.items()
        }
        diarization = replace(
            diarization, turns=tuple(sorted([*cut, *kept])), speakers={**diarization.speakers, **known}
        )
    told = {"model": model.sha256, "iterations": iterations, "threshold": rule.threshold, "median": rule.median}
    return replace(diarization, settings={**diarization.settings, "tsvad": told})


def _turns_beside(
    before: Diarization,
    found: FrameProbabilities,
    labels: Sequence[str],
    clear: Sequence[str],
    rule: Binarisation,
    speech: Sequence[Span] | None,
) -> tuple[Turn, ...]:
    """Turns of those of ``labels`` that are ``clear``; speech of others, as it was before, need not be anybody's."""
    others = regions((turn for turn in before.turns if turn.speaker not in clear), at_least=1)
    chosen = replace(found, values=found.values[:, [label in clear for label in labels]])
    return chosen.turns(clear, rule, None if speech is None else without(speech, others))


def _blurred(turns: Sequence[Turn], before: Diarization) -> set[str]:
    """Speakers heard half as long again as before, and mostly together with others.

    That comes of a cluster of several voices: its embedding is like all of them. People do interrupt, but not so much.
    """
    seconds, overlap = before.talk_time(), regions(turns, at_least=2)
    found = set()
    for label in {turn.speaker for turn in turns}:
        own = [(turn.start, turn.end) for turn in turns if turn.speaker == label]
        total, alone = (sum(end - start for start, end in spans) for spans in (own, without(own, overlap)))
        if total > GROWTH * seconds[label] and alone < (1 - TOGETHER) * total:
            found.add(label)
    return found


def speaker_voices(
    diarization: Diarization,
    source: AudioSource,
    embedder: Embedder,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
) -> dict[str, Voices]:
    """Each speaker's embedding (D,) of up to 30 s in which nobody else speaks, the longest stretches first.

    Where these are too short or silent, it is of all that the speaker says; a speaker of whom that does not do either
    is missing.
    """
    voices = {}
    overlap = diarization.overlap
    for label in diarization.labels:
        own = regions((turn for turn in diarization.turns if turn.speaker == label), at_least=1)
        for spans in (without(own, overlap), own):
            try:
                voices[label] = _embedded(spans, source, embedder, rate, channel)
                break
            except AudioError:
                continue
    return voices


def _embedded(
    spans: Sequence[Span], source: AudioSource, embedder: Embedder, rate: int | None, channel: Channel
) -> Voices:
    wanted = embedder.frontend.sample_rate
    chosen, seconds = [], 0.0
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        if VOICE_SECONDS - seconds < SHORTEST_PART:
            break
        chosen.append((start, min(end, start + VOICE_SECONDS - seconds)))
        seconds += chosen[-1][1] - start
    if seconds < embedder.frontend.min_samples / wanted:
        raise AudioError(None, f"{seconds:.2f} s are too short", "give more speech")
    parts = [
        load_audio(source, wanted, rate=rate, channel=channel, start=start, duration=end - start).samples
        for start, end in sorted(chosen)
    ]
    return embedder.embed(np.concatenate(parts), rate=wanted)


def eend_probabilities(
    model: DiarizationModel,
    source: AudioSource,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    num_speakers: int | None = None,
    least: int = 0,
    threshold: float = 0.5,
    block_seconds: float = BLOCK_SECONDS,
) -> FrameProbabilities:
    """Speakers of a recording and when they speak, in order of the attractors.

    A recording longer than ``block_seconds`` is heard in blocks that overlap by half. Speakers of two blocks are taken
    for one where their activities agree in what both blocks hear; who is silent there cannot be told from a new one.

    Args:
        model: an EEND.
        rate: of an array of samples.
        num_speakers: how many there are; ``None`` takes attractors up to the first that is not probably a speaker's.
        least: of them where it is not known how many.
        threshold: of that probability.
        block_seconds: at once; memory and time grow with its square.

    Raises:
        BundleError: another kind of model.
        AudioError: as :func:`speakerkit.audio.load_audio`.
    """
    import torch

    network = require_eend(model)
    most = MOST_SPEAKERS if num_speakers is None else num_speakers
    require(1 <= most <= MOST_SPEAKERS, "num_speakers", num_speakers, f"it is from 1 to {MOST_SPEAKERS}")
    windows = SlidingWindows(model, source, block_seconds, rate, channel)
    total, weight = np.zeros((0, most), dtype=np.float32), np.zeros((0, most), dtype=np.float32)
    heard = known = 0  # frames, speakers so far
    with torch.inference_mode():
        for first, samples in windows:
            sound = torch.from_numpy(samples).to(model.device)
            values = _speakers(network, sound, num_speakers, least, threshold)
            end = first + len(values)
            total, weight = _grown(total, end), _grown(weight, end)
            shared = slice(first, max(first, heard))
            earlier = _mean(total[shared], weight[shared])[:, :known]
            columns = _same_speakers(earlier, values[: len(earlier)], values.shape[1], most)
            total[first:end, columns] += values
            weight[first:end] += 1
            heard, known = max(heard, end), max([known, *(column + 1 for column in columns)])
    known = known if num_speakers is None else most
    return _cut(_mean(total[:heard], weight[:heard])[:, :known], network.frames, windows.seconds)


def _speakers(network: EEND, samples: Tensor, count: int | None, least: int, threshold: float) -> Probabilities:
    """(frames, speakers) of one block."""
    most = MOST_SPEAKERS if count is None else count
    logits, existence = network(samples[None], most)
    if count is None:
        doubtful = (existence[0].sigmoid() < threshold).nonzero()
        count = max(least, int(doubtful[0])) if len(doubtful) else most
    return logits[0, :, :count].sigmoid().float().cpu().numpy()


def _same_speakers(earlier: Probabilities, values: Probabilities, count: int, most: int) -> list[int]:
    """The column of each of a block's ``count`` speakers among the ``most`` of all, by what both blocks hear.

    Args:
        earlier: (shared frames, speakers known so far).
        values: (shared frames, count) of the block.
    """
    known = earlier.shape[1]
    norms = np.linalg.norm(earlier, axis=0)[:, None] * np.linalg.norm(values, axis=0)
    cosines = earlier.T @ values / np.maximum(norms, 1e-6)  # (known, count)
    columns = dict.fromkeys(range(count), -1)
    for old, new in zip(*linear_sum_assignment(-cosines), strict=True):
        if cosines[old, new] >= SAME:
            columns[int(new)] = int(old)
    free = [column for column in range(known, most)]
    spare = [column for column in range(known) if column not in columns.values()]
    for new, column in columns.items():
        if column < 0:
            columns[new] = (free or spare).pop(0)
    return list(columns.values())


def diarize_end_to_end(
    model: DiarizationModel,
    source: AudioSource,
    recording: str,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
    num_speakers: int | None = None,
    rule: Binarisation | None = None,
    speech: Sequence[Span] | None = None,
) -> Diarization:
    """Turns of a recording by an EEND; speakers are A, B, ... in order of appearance, one at least in known speech.

    Arguments are those of :func:`eend_probabilities` and :func:`refine`.
    """
    rule = rule or Binarisation()
    least = 1 if speech else 0
    found = eend_probabilities(model, source, rate=rate, channel=channel, num_speakers=num_speakers, least=least)
    columns = [str(number) for number in range(found.values.shape[1])]
    turns = found.turns(columns, rule, speech)
    order = {column: speaker_name(n) for n, column in enumerate(dict.fromkeys(turn.speaker for turn in turns))}
    named = tuple(sorted(replace(turn, speaker=order[turn.speaker]) for turn in turns))
    told = {"model": model.sha256, "threshold": rule.threshold, "median": rule.median}
    return Diarization(recording, named, found.seconds, settings={"eend": told})
