"""Who speaks when while the sound comes in: turns as they grow, and labels that change only by saying so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

from speakerkit.audio import MAX_RATE, MIN_RATE, Samples
from speakerkit.config import require
from speakerkit.diarization.clustering import AhcSettings
from speakerkit.diarization.clustering.affinity import directions
from speakerkit.diarization.clustering.ahc import average_linkage
from speakerkit.diarization.clustering.labels import within_bounds
from speakerkit.diarization.segments import speaker_name
from speakerkit.diarization.turns import Diarization, Span, Speaker, Turn
from speakerkit.diarization.vad import DIGITAL_STEP, EPSILON, HOP, RATES, Silero, VadSettings
from speakerkit.diarization.windows import TINY
from speakerkit.embedding.embedder import Embedder
from speakerkit.errors import AudioError, ConfigError

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class StreamingSettings:
    """How a stream is diarized. Times are in seconds.

    Attributes:
        vad: silero's, whose ``max_speech`` and ``sample_rate`` are not used.
        window, hop: what is embedded, and how often.
        clustering: threshold, numbers of speakers (the exact and the least one are seen to at the end), and the size
            of the smallest cluster.
        recluster: windows after which all speakers are looked at anew.
        memory: groups of windows that are remembered; more are merged, the nearest first.

    Raises:
        ConfigError: values that are impossible.
    """

    vad: VadSettings = field(default_factory=VadSettings)
    window: float = 1.5
    hop: float = 0.75
    clustering: AhcSettings = field(default_factory=AhcSettings)
    recluster: int = 40
    memory: int = 400

    def __post_init__(self) -> None:
        if self.vad.method != "silero":
            raise ConfigError("vad", f"is {self.vad.method}, which hears the whole recording first", "use silero")
        if not 0 < self.hop <= self.window:
            raise ConfigError("hop", f"is {self.hop}", f"it is above 0 and at most the window, {self.window:g}")
        for name, least in (("recluster", 1), ("memory", 20)):
            if getattr(self, name) < least:
                raise ConfigError(name, f"is {getattr(self, name)}", f"it is at least {least}")

    def echo(self) -> dict[str, Any]:
        """Everything that decides, by name, for the settings of results."""
        return {**asdict(self), "vad": self.vad.echo()}


@dataclass(frozen=True)
class Event:
    """What became known.

    Attributes:
        kind: a turn was "added"; one that started where this does was "extended" to its end; or this stretch, which
            may be a part of turns, was "relabelled".
        turn: from when to when, and whose it is now.
        was: the speaker before, of what was relabelled.
    """

    kind: Literal["added", "extended", "relabelled"]
    turn: Turn
    was: str = ""


class StreamingDiarizer:
    """Diarizes what is pushed, in steps of its own: labels do not depend on how much is pushed at a time.

    The work for a second of sound does not grow with the stream; what is kept of it are its turns and a bounded number
    of groups of windows.

    Args:
        embedder: at 8000 or 16000 Hz.
        rate: of what is pushed, in Hz.
        settings: how.
        recording: its id.

    Raises:
        ConfigError: a model at another rate; a rate that no sound has; silero's model is not installed.
    """

    def __init__(
        self, embedder: Embedder, rate: int, settings: StreamingSettings | None = None, recording: str = "stream"
    ) -> None:
        self._embedder, self._settings, self._recording = embedder, settings or StreamingSettings(), recording
        self._rate, self._own_rate = embedder.frontend.sample_rate, rate
        if self._rate not in RATES:
            raise ConfigError("model", f"is at {self._rate} Hz", "streaming needs one at 8000 or 16000 Hz")
        require(MIN_RATE <= rate <= MAX_RATE, "rate", rate, f"rates are from {MIN_RATE} to {MAX_RATE} Hz")
        embedder.warn_of_rate(recording, rate)
        self._resampler = soxr.ResampleStream(rate, self._rate, 1, dtype="float32", quality="HQ")
        self._scorer = Silero(self._rate)
        self._speech = SpeechTracker(self._settings.vad)
        self._speakers = SpeakerMemory(self._settings)
        self._held, self._offset = np.empty(0, dtype=np.float32), 0  # samples that may still be embedded
        self._scored = self._pushed = 0  # samples: at the model's rate that the detector has heard; at the own rate
        self._windows = 0  # of the open span
        self._span_start: float | None = None
        self._done = 0.0  # up to where the open span has labels
        self._ended = False

    def push(self, samples: Samples) -> list[Event]:
        """Take the next samples (n,) in [-1, 1], and tell what is new.

        Raises:
            AudioError: samples that are not finite, or several channels.
            ConfigError: the stream has ended.
        """
        if self._ended:
            raise ConfigError(self._recording, "has ended", "start another stream")
        sound = np.asarray(samples, dtype=np.float32)
        if sound.ndim != 1 or not np.isfinite(sound).all():
            raise AudioError(self._recording, "is given samples that are not finite, or not mono", "check the source")
        self._pushed += len(sound)
        return list(self._heard(self._resampled(sound, last=False)))

    def end(self) -> list[Event]:
        """What becomes known when nothing more comes.

        Raises:
            ConfigError: fewer windows of speech than the speakers asked for; a stream that has ended before.
        """
        if self._ended:
            raise ConfigError(self._recording, "has ended", "start another stream")
        self._ended = True
        events = list(self._heard(self._resampled(np.empty(0, dtype=np.float32), last=True)))
        rest = self._offset + len(self._held) - self._scored
        if rest:
            size = round(HOP * self._rate)
            events += self._frame(np.pad(self._held[-rest:], (0, size - rest), mode="edge"))
        closed = self._speech.finish(self.seconds)
        if closed is not None:
            events += self._closed(closed)
        return events + self._speakers.settle()

    def finish(self) -> Diarization:
        """The turns of all that was pushed; ends the stream where :meth:`end` has not."""
        if not self._ended:
            self.end()
        settings = {"streaming": self._settings.echo(), "model": self._embedder.bundle.digest()}
        turns = [replace(turn, end=min(turn.end, self.seconds)) for turn in self._speakers.turns()]
        kept = tuple(turn for turn in turns if turn.start < turn.end)
        return Diarization(self._recording, kept, self.seconds, speakers=self._speakers.known(), settings=settings)

    @property
    def seconds(self) -> float:
        """What was pushed so far."""
        return self._pushed / self._own_rate

    def _resampled(self, sound: Samples, last: bool) -> Samples:
        if self._own_rate == self._rate:
            return sound
        return self._resampler.resample_chunk(sound, last=last)

    def _heard(self, sound: Samples) -> Iterator[Event]:
        """Go on frame by frame, wherever pushes end."""
        self._held = np.concatenate([self._held, sound])
        size = round(HOP * self._rate)
        while self._offset + len(self._held) >= self._scored + size:
            first = self._scored - self._offset
            yield from self._frame(self._held[first : first + size])
            self._forget()

    def _frame(self, frame: Samples) -> Iterator[Event]:
        probability = float(self._scorer.probabilities(frame[None])[0])
        self._scored += len(frame)
        closed = self._speech.push(probability, bool(np.ptp(frame) <= DIGITAL_STEP))
        if closed is not None:
            yield from self._closed(closed)
        elif self._speech.start is not None:
            if self._span_start is None:
                self._span_start, self._windows, self._done = self._speech.start, 0, self._speech.start
            yield from self._grown(self._span_start, self._speech.heard)

    def _grown(self, start: float, heard: float) -> Iterator[Event]:
        """Windows of the open span that have been heard to their ends."""
        length, hop = self._settings.window, self._settings.hop
        while start + self._windows * hop + length <= heard + TINY:
            begin = start + self._windows * hop
            self._windows += 1
            yield from self._labelled(begin, begin + length, begin + (length + hop) / 2)

    def _closed(self, span: Span) -> Iterator[Event]:
        """The end of a span: its last window ends there."""
        start, end = span
        if self._span_start is None:
            self._windows, self._done = 0, start
        yield from self._grown(start, end)
        if end > self._done + TINY:
            yield from self._labelled(max(start, end - self._settings.window), end, end)
        self._span_start = None

    def _labelled(self, start: float, end: float, until: float) -> Iterator[Event]:
        """Embed a window, which says who speaks from where labels end up to ``until``."""
        first = max(round(start * self._rate), self._offset) - self._offset
        cut = self._held[first : max(first + 1, round(end * self._rate) - self._offset)]
        if len(cut):
            ((_, vectors),) = self._embedder.embed_batches([(None, cut[None])])
            yield from self._speakers.add(vectors, self._done, until)
        self._done = until

    def _forget(self) -> None:
        """Samples that no window will need."""
        needed = self._speech.earliest
        if self._span_start is not None:
            needed = self._span_start + max(0, self._windows - 1) * self._settings.hop
        unused = round(needed * self._rate) - 1 - self._offset
        if unused > self._rate:  # not with every frame
            self._held, self._offset = self._held[unused:], self._offset + unused


class SpeechTracker:
    """Spans of speech from one frame's probability after the other: those that ``find_spans`` finds in all of them.

    Attributes:
        start: of the open span in seconds, once it is long enough to count.
        earliest: seconds at which a span may start that is not known yet.
    """

    def __init__(self, settings: VadSettings) -> None:
        self._settings = settings
        self._count = 0  # frames so far
        self._on = False
        self._run: tuple[int, int] | None = None  # first active frame and the one after the last, pauses bridged
        self._silent_from: int | None = None
        self._floor = 0  # the frame after the last long digital silence: nothing is padded before it
        self.start: float | None = None

    @property
    def earliest(self) -> float:
        first = self._count - 1 if self._run is None else self._run[0]
        return max(0.0, first * HOP - self._settings.pad)

    @property
    def heard(self) -> float:
        """Seconds up to where there has been speech."""
        return 0.0 if self._run is None else self._run[1] * HOP

    def push(self, probability: float, silent: bool) -> Span | None:
        """Take the next frame; the span that is known to have ended, if one has."""
        chosen, now = self._settings, self._count
        self._count += 1
        closed = self._silence(now, silent)
        level = 0.0 if silent else probability
        self._on = level >= chosen.threshold or (self._on and level >= chosen.lower_threshold)
        if self._on:
            self._run = (now if self._run is None else self._run[0], now + 1)
            if self.start is None and (self._run[1] - self._run[0]) * HOP >= chosen.min_speech - EPSILON:
                self.start = max(self._floor * HOP, self._run[0] * HOP - chosen.pad)
        elif self._run is not None:
            pause = (now + 1 - self._run[1]) * HOP
            if pause >= chosen.min_silence + 2 * chosen.pad - EPSILON:
                return self._close(self._run[1] * HOP + chosen.pad)
        return closed

    def _silence(self, now: int, silent: bool) -> Span | None:
        """Follow digital silence; where it is long, it ends what came before."""
        if not silent:
            self._silent_from = None
            return None
        if self._silent_from is None:
            self._silent_from = now
        if (now + 1 - self._silent_from) * HOP < self._settings.min_silence - EPSILON:
            return None
        self._floor = now + 1
        if self._run is None:
            return None
        return self._close(min(self._silent_from * HOP, self._run[1] * HOP + self._settings.pad))

    def _close(self, end: float) -> Span | None:
        start, self.start, self._run = self.start, None, None
        return None if start is None else (start, end)

    def finish(self, duration: float) -> Span | None:
        """The span that is still open, at the end of the recording."""
        if self._run is None:
            return None
        last = min(self._run[1] * HOP, duration)
        if last - self._run[0] * HOP < self._settings.min_speech - EPSILON:
            self.start = None
        return self._close(min(duration, last + self._settings.pad))


class SpeakerMemory:
    """Speakers of a stream: each window goes to the nearest, and now and then all are clustered anew.

    Windows are remembered as groups, which have a mean direction, a number of windows, and the stretches of speech that
    they label.
    """

    def __init__(self, settings: StreamingSettings) -> None:
        self._settings, self._options = settings, settings.clustering
        self._means: list[Floats] = []
        self._sizes: list[int] = []
        self._owners: list[int] = []  # speaker of each group
        self._pieces: list[list[int]] = []  # numbers of the stretches of each group
        self._stretches: list[tuple[float, float]] = []
        self._whose: list[int] = []  # speaker of each stretch
        self._opened = 0.0  # start of the turn that the last stretch belongs to
        self._named = 0  # speakers so far; a label is never given to another one
        self._windows = 0

    def add(self, vectors: npt.ArrayLike, start: float, end: float) -> Iterator[Event]:
        """A window (1, D) and the stretch that it labels."""
        row = directions(vectors)[0].astype(np.float64)
        speaker = self._nearest(row)
        number = len(self._stretches)
        before = self._stretches[-1][1] if number else -1.0
        goes_on = number > 0 and self._whose[-1] == speaker and start - before < TINY
        self._means.append(row)
        self._sizes.append(1)
        self._owners.append(speaker)
        self._pieces.append([number])
        self._stretches.append((start, end))
        self._whose.append(speaker)
        self._opened = self._opened if goes_on else start
        yield Event("extended" if goes_on else "added", Turn(self._opened, end, speaker_name(speaker)))
        self._windows += 1
        if self._windows % self._settings.recluster == 0:
            yield from self._reclustered(1)

    def _nearest(self, row: Floats) -> int:
        """The speaker whose windows have the largest mean cosine with a row (D,), or a new one."""
        owners = np.array(self._owners, dtype=np.intp)
        speakers = np.unique(owners)
        high = self._options.num_speakers or self._options.max_speakers
        if len(speakers):
            sizes = np.array(self._sizes, dtype=np.float64)
            cosines = sizes * np.einsum("gd,d->g", np.stack(self._means), row)
            means = [float(cosines[owners == each].sum() / sizes[owners == each].sum()) for each in speakers]
            best = int(np.argmax(means))
            if means[best] >= self._options.threshold or (high is not None and len(speakers) >= high):
                return int(speakers[best])
        self._named += 1
        return self._named - 1

    def settle(self) -> list[Event]:
        """The last clustering, with the numbers of speakers that were asked for."""
        low, _ = self._options.bounds(self._windows)
        return list(self._reclustered(low)) if self._means else []

    def _reclustered(self, low: int) -> Iterator[Event]:
        """Cluster the groups anew, tell whose label has changed, and merge groups where there are too many."""
        means, sizes = np.stack(self._means), np.array(self._sizes, dtype=np.intp)
        with threadpool_limits(1):  # so that any number of threads gives the same
            tree = average_linkage(means.astype(np.float32), sizes)
            merges = int(np.searchsorted(tree.height, 1.0 - self._options.threshold, side="right"))
            labels = _without_tiny(means, sizes, tree.cut(merges), self._options.smallest(self._windows), low)
            high = self._options.num_speakers or self._options.max_speakers or len(sizes)
            labels = within_bounds(means.astype(np.float32), labels, min(low, len(sizes)), max(low, high))
        owners = self._matched(labels, sizes)
        yield from self._relabelled(owners)
        if len(sizes) > self._settings.memory:
            fine = tree.cut(len(sizes) - self._settings.memory // 2)
            self._merge(np.unique(np.stack([fine, owners]), axis=1, return_inverse=True)[1].ravel())

    def _matched(self, labels: Labels, sizes: Labels) -> Labels:
        """(G,) speaker of each group: clusters keep the speakers with whom they share the most windows."""
        known, old = np.unique(self._owners, return_inverse=True)
        shared = np.zeros((int(labels.max()) + 1, len(known)))
        np.add.at(shared, (labels, old), sizes)
        speakers = np.full(len(shared), -1, dtype=np.intp)
        rows, columns = linear_sum_assignment(-shared)
        speakers[rows] = np.where(shared[rows, columns] > 0, known[columns], -1)
        for cluster in np.flatnonzero(speakers < 0):
            speakers[cluster] = self._named
            self._named += 1
        return speakers[labels]

    def _relabelled(self, owners: Labels) -> Iterator[Event]:
        changed: list[tuple[int, int]] = []
        for group in np.flatnonzero(owners != np.array(self._owners)):
            changed += [(number, int(owners[group])) for number in self._pieces[group]]
        self._owners = owners.tolist()
        pending: tuple[Turn, str] | None = None
        for number, speaker in sorted(changed):
            (start, end), was = self._stretches[number], speaker_name(self._whose[number])
            self._whose[number] = speaker
            name = speaker_name(speaker)
            if pending and pending[1] == was and pending[0].speaker == name and start - pending[0].end < TINY:
                pending = Turn(pending[0].start, end, name), was
                continue
            if pending:
                yield Event("relabelled", *pending)
            pending = Turn(start, end, name), was
        if pending:
            yield Event("relabelled", *pending)
        if changed:
            self._opened = self._start_of_last()

    def _start_of_last(self) -> float:
        """Where the turn starts that the last stretch belongs to, with the labels as they are now."""
        number = len(self._stretches) - 1
        while (
            number
            and self._whose[number - 1] == self._whose[-1]
            and self._stretches[number][0] - self._stretches[number - 1][1] < TINY
        ):
            number -= 1
        return self._stretches[number][0]

    def _merge(self, groups: Labels) -> None:
        """Make one group of those of the same number."""
        members = [np.flatnonzero(groups == number) for number in range(int(groups.max()) + 1)]
        sizes, means = np.array(self._sizes), np.stack(self._means)
        self._means = [sizes[each] @ means[each] / sizes[each].sum() for each in members]
        self._owners = [self._owners[int(each[0])] for each in members]
        self._pieces = [[piece for group in each.tolist() for piece in self._pieces[group]] for each in members]
        self._sizes = [int(sizes[each].sum()) for each in members]

    def turns(self) -> Sequence[Turn]:
        """Every stretch with its speaker."""
        return [
            Turn(start, end, speaker_name(speaker))
            for (start, end), speaker in zip(self._stretches, self._whose, strict=True)
        ]

    def known(self) -> dict[str, Speaker]:
        """Speakers by label, with their mean directions at length 1."""
        found = {}
        for speaker in sorted(set(self._owners)):
            own = [n for n, owner in enumerate(self._owners) if owner == speaker]
            total = np.sum([self._sizes[n] * self._means[n] for n in own], axis=0)
            name = speaker_name(speaker)
            found[name] = Speaker(name, directions(total[None])[0] if total.any() else None)
        return found


def _without_tiny(means: Floats, sizes: Labels, labels: Labels, smallest: int, low: int) -> Labels:
    """Labels (G,) where groups of clusters of fewer than ``smallest`` windows go to the nearest of the others."""
    counts = np.bincount(labels, weights=sizes)
    kept = np.argsort(-counts, kind="stable")[: max(low, 1, int(np.sum(counts >= smallest)))]
    sums = np.zeros((len(counts), means.shape[1]))
    np.add.at(sums, labels, sizes[:, None] * means)
    middles = sums[kept] / np.maximum(np.linalg.norm(sums[kept], axis=1, keepdims=True), EPSILON)
    moving = ~np.isin(labels, kept)
    labels = labels.copy()
    labels[moving] = kept[np.argmax(np.einsum("gd,kd->gk", means[moving], middles), axis=1)]
    return labels
