"""Conversations mixed from recordings of single speakers, who take turns as was measured in real conversations."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import soundfile

from speakerkit.audio import MAX_RATE, MIN_RATE, Samples
from speakerkit.config import require
from speakerkit.data.augment import Noise, Reverb
from speakerkit.data.lists import Utterance, write_table
from speakerkit.data.parallel import map_threads
from speakerkit.data.sources import load_speech
from speakerkit.data.stores import AudioStore
from speakerkit.diarization.formats import to_text, write_text
from speakerkit.diarization.turns import Diarization, Span, Turn
from speakerkit.errors import DataError
from speakerkit.files import atomic_path, write_json

PARTS = 20  # of a measured distribution
SHORTEST = 0.1  # seconds of a turn
STEP = 0.01  # seconds between turns of one speaker, and between the starts of two speakers' turns
JOINT = 0.1  # seconds of silence where a longer pause was taken out, or an utterance follows another
FADE = 0.01  # seconds at each end of a turn, so that a cut is no click
PEAK = 0.95
PLAN, VOICES, ROOMS, BACKGROUND = range(4)  # streams of chance of a conversation
SETTINGS = "conversations.json"


@dataclass(frozen=True)
class TurnStatistics:
    """How people take turns.

    The *floor* is with the turn that ends last of those that have begun. The next turn is by the same speaker, after a
    pause; or by another, after a pause, or in overlap with the floor. In overlap it goes on longer and takes the floor,
    or it is an interjection, which ends before and leaves it.

    A distribution is given by up to 20 values in seconds: means of equal parts of the sorted sample. What is drawn
    lies on straight lines between them, so that its mean is that of the sample.

    Attributes:
        turns: lengths of turns, interjections aside.
        pauses_same: silence before the speaker goes on.
        pauses_other: silence before another speaks.
        overlaps: how long the next speaker speaks together with the one before.
        interjections: lengths of these.
        same_share: of all next turns, those by the speaker who has the floor.
        overlap_share: of the turns of others, those that begin in overlap.
        interjection_share: of these, those that are interjections.
        count: turns that were measured.

    Raises:
        ConfigError: shares outside [0, 1], no lengths, or lengths that are missing for a share above 0.
    """

    turns: tuple[float, ...]
    pauses_same: tuple[float, ...] = ()
    pauses_other: tuple[float, ...] = ()
    overlaps: tuple[float, ...] = ()
    interjections: tuple[float, ...] = ()
    same_share: float = 0.0
    overlap_share: float = 0.0
    interjection_share: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        for name in ("same_share", "overlap_share", "interjection_share"):
            require(0 <= getattr(self, name) <= 1, f"statistics.{name}", getattr(self, name), "it is from 0 to 1")
        require(bool(self.turns), "statistics.turns", self.turns, "measure on conversations that have turns")
        taking = self.overlap_share * (1 - self.interjection_share)
        lengths = {"overlaps": taking, "interjections": self.overlap_share * self.interjection_share}
        for name, share in lengths.items():
            missing = share > 0 and not getattr(self, name)
            require(not missing, f"statistics.{name}", (), "measure on conversations that have some")


# Measured with measure_statistics on 12 references of VoxConverse's development set (CC BY 4.0).
VOXCONVERSE = TurnStatistics(
    turns=(
        0.48, 0.81, 1.13, 1.52, 1.88, 2.43, 2.86, 3.41, 4.16, 5.18, 6.52, 7.38, 8.71, 10.33, 13.33, 15.83, 18.72,
        25.23, 32.19, 50.65,
    ),
    pauses_same=(
        0.04, 0.08, 0.14, 0.19, 0.36, 0.48, 0.51, 0.56, 0.60, 0.65, 0.68, 0.72, 0.74, 0.80, 0.87, 0.95, 1.09, 1.20,
        1.50, 4.66,
    ),
    pauses_other=(
        0.00, 0.00, 0.02, 0.04, 0.08, 0.11, 0.17, 0.20, 0.21, 0.24, 0.26, 0.31, 0.32, 0.36, 0.43, 0.55, 0.73, 0.90,
        1.08, 3.20,
    ),
    overlaps=(
        0.04, 0.06, 0.09, 0.13, 0.20, 0.27, 0.33, 0.38, 0.48, 0.57, 0.67, 0.79, 0.92, 1.01, 1.24, 1.39, 1.62, 1.79,
        2.03, 3.08,
    ),
    interjections=(
        0.32, 0.40, 0.44, 0.44, 0.48, 0.51, 0.52, 0.57, 0.66, 0.75, 0.79, 0.88, 0.98, 1.09, 1.22, 1.42, 1.61, 1.89,
        2.10, 2.67,
    ),
    same_share=0.355,
    overlap_share=0.611,
    interjection_share=0.450,
    count=418,
)  # fmt: skip


def adjusted(
    statistics: TurnStatistics, turn_seconds: float | None = None, overlap_share: float | None = None
) -> TurnStatistics:
    """The same with lengths of turns scaled to a mean of ``turn_seconds``, and another ``overlap_share``.

    Raises:
        ConfigError: a mean that is not above 0, or a share that is none.
    """
    if turn_seconds is not None:
        require(0 < turn_seconds < math.inf, "turn_seconds", turn_seconds, "it is above 0")
        scale = turn_seconds / (sum(statistics.turns) / len(statistics.turns))
        statistics = replace(statistics, turns=tuple(scale * seconds for seconds in statistics.turns))
    return statistics if overlap_share is None else replace(statistics, overlap_share=overlap_share)


def measure_statistics(diarizations: Iterable[Diarization]) -> TurnStatistics:
    """The turn-taking of real conversations, as of references that :mod:`speakerkit.diarization.formats` reads.

    Raises:
        DataError: no turns at all.
    """
    lengths: dict[str, list[float]] = {
        name: [] for name in ("turns", "pauses_same", "pauses_other", "overlaps", "interjections")
    }
    for diarization in diarizations:
        holder: Turn | None = None
        for turn in diarization.turns:
            if holder is None:
                pass
            elif turn.speaker == holder.speaker:
                lengths["pauses_same"].append(turn.start - holder.end)
            elif turn.start >= holder.end:
                lengths["pauses_other"].append(turn.start - holder.end)
            elif turn.end <= holder.end:
                lengths["interjections"].append(turn.seconds)
                continue
            else:
                lengths["overlaps"].append(holder.end - turn.start)
            lengths["turns"].append(turn.seconds)
            holder = turn
    if not lengths["turns"]:
        raise DataError(None, "there are no turns to measure", "give references of real conversations")
    counts = {name: len(values) for name, values in lengths.items()}
    overlapping = counts["overlaps"] + counts["interjections"]
    others = overlapping + counts["pauses_other"]
    return TurnStatistics(
        **{name: _parts(values) for name, values in lengths.items()},
        same_share=_share(counts["pauses_same"], counts["pauses_same"] + others),
        overlap_share=_share(overlapping, others),
        interjection_share=_share(counts["interjections"], overlapping),
        count=counts["turns"] + counts["interjections"],
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _parts(values: Sequence[float]) -> tuple[float, ...]:
    """Means of equal parts of the sorted values, weighted so that their mean is that of all."""
    if not values:
        return ()
    count = min(PARTS, len(values))
    cumulated = np.concatenate([[0.0], np.cumsum(np.sort(np.asarray(values, dtype=np.float64)))])
    edges = np.interp(np.linspace(0, len(values), count + 1), np.arange(len(values) + 1), cumulated)
    return tuple((np.diff(edges) * count / len(values)).tolist())


def draw(values: Sequence[float], rng: np.random.Generator) -> float:
    """One draw from a distribution of :class:`TurnStatistics`; 0 from one without values."""
    if not values:
        return 0.0
    place = rng.random() * len(values) - 0.5
    return float(np.interp(place, np.arange(len(values)), values))


def plan_turns(
    statistics: TurnStatistics, speakers: Sequence[str], seconds: float, rng: np.random.Generator
) -> tuple[Turn, ...]:
    """Who speaks when in a conversation of ``seconds``, in which every speaker is heard; times in milliseconds.

    Up to the first turn of the last speaker, each turn is of one not yet heard, and pauses and turns are cut where not
    enough time would be left for the others: long conversations follow the statistics, short ones cannot.
    """
    order = [speakers[index] for index in rng.permutation(len(speakers))]
    turns: list[Turn] = []
    ends = dict.fromkeys(order, -STEP)
    holder: Turn | None = None
    heard = 0
    while True:
        floor = holder.end if holder else 0.0
        room = (seconds - floor) / (len(order) - heard) if heard < len(order) else math.inf
        if heard < len(order):
            speaker = order[heard]
            heard += 1
        elif holder is None or len(order) == 1 or rng.random() < statistics.same_share:
            speaker = holder.speaker if holder else order[0]
        else:
            others = [each for each in order if each != holder.speaker]
            speaker = others[rng.integers(len(others))]
        earliest = max(ends[speaker], turns[-1].start if turns else -STEP) + STEP
        start, end = _next_turn(statistics, holder, speaker, earliest, rng)
        start = max(ends[speaker] + STEP, min(start, floor + room / 4))
        start, end = round(start, 3), round(min(end, floor + room * 3 / 4, seconds), 3)
        if end - start < SHORTEST:
            end = round(start + SHORTEST, 3)
        if end > seconds:
            return tuple(sorted(turns))
        turn = Turn(start, end, speaker)
        turns.append(turn)
        ends[speaker] = end
        if holder is None or end > floor:
            holder = turn


def _next_turn(
    statistics: TurnStatistics, holder: Turn | None, speaker: str, earliest: float, rng: np.random.Generator
) -> Span:
    """Start and end of the turn that ``speaker``, silent up to ``earliest``, takes next."""
    length = max(SHORTEST, draw(statistics.turns, rng))
    if holder is None or speaker == holder.speaker:
        pause = draw(statistics.pauses_other if holder is None else statistics.pauses_same, rng)
        start = (holder.end if holder else 0.0) + max(STEP, pause)
        return start, start + length
    if rng.random() < statistics.overlap_share and earliest < holder.end - SHORTEST:
        if rng.random() < statistics.interjection_share:
            length = min(max(SHORTEST, draw(statistics.interjections, rng)), holder.end - earliest)
            start = earliest + rng.random() * max(0.0, holder.end - length - earliest)
            return start, start + length
        start = max(earliest, holder.end - draw(statistics.overlaps, rng))
        return start, max(start + length, holder.end + STEP)
    start = max(earliest, holder.end + draw(statistics.pauses_other, rng))
    return start, start + length


@dataclass(frozen=True)
class ConversationSettings:
    """What conversations are like.

    Attributes:
        sample_rate: Hz.
        seconds: length of each.
        speakers: (fewest, most); how many is drawn for each conversation.
        statistics: of the turn-taking.
        level: (low, high) in dBFS, of each speaker's speech.
        hiss: (low, high) in dBFS, of white noise, which all conversations have.
        noise_share: of the conversations that have noise, where there is a store of it.
        snr: (low, high) in dB, of the whole recording to the noise.
        reverb_share: of the conversations that are reverberant, where there is a store of room responses; each speaker
            has a response, the same throughout.

    Raises:
        ConfigError: values out of range, or less than 2 s for each speaker.
    """

    sample_rate: int = 16000
    seconds: float = 60.0
    speakers: tuple[int, int] = (2, 4)
    statistics: TurnStatistics = field(default=VOXCONVERSE, repr=False)
    level: tuple[float, float] = (-30.0, -20.0)
    hiss: tuple[float, float] = (-75.0, -60.0)
    noise_share: float = 0.8
    snr: tuple[float, float] = (5.0, 25.0)
    reverb_share: float = 0.5

    def __post_init__(self) -> None:
        rate, (fewest, most) = self.sample_rate, self.speakers
        require(MIN_RATE <= rate <= MAX_RATE, "sample_rate", rate, f"rates are from {MIN_RATE} to {MAX_RATE} Hz")
        require(1 <= fewest <= most, "speakers", self.speakers, "give the fewest and the most, from 1 on")
        require(2 * most <= self.seconds < 86400, "seconds", self.seconds, "2 s a speaker at least, a day at most")
        for name in ("level", "hiss", "snr"):
            low, high = getattr(self, name)
            require(-math.inf < low <= high < math.inf, name, (low, high), "give the lower end first")
        for name in ("noise_share", "reverb_share"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "it is from 0 to 1")


@dataclass(frozen=True, eq=False)
class Conversation:
    """A recording and who speaks when in it.

    Attributes:
        samples: (samples,) float32 in [-1, 1].
        rate: Hz.
        diarization: its turns; speakers have the names that their utterances gave.
    """

    samples: Samples
    rate: int
    diarization: Diarization


class Conversations:
    """An endless sequence of conversations; each is a function of the seed and its number.

    A speaker's turns are cut one after another out of their speech: utterances in drawn order, silence at their ends
    removed and longer pauses shortened to 0.1 s, from the beginning again where they are used up. Speech is what
    ``vad`` of the utterance says, or else its energy (:func:`speakerkit.data.sources.speech_spans`). So turns begin and
    end with speech, but for a margin of 50 ms.

    Args:
        utterances: of single speakers, as many as ``settings.speakers`` says at least.
        noise, rir: stores; ``None`` for neither noise nor reverberation.

    Raises:
        DataError: too few speakers.
    """

    def __init__(
        self,
        utterances: Iterable[Utterance],
        settings: ConversationSettings,
        seed: int,
        noise: AudioStore | None = None,
        rir: AudioStore | None = None,
    ) -> None:
        self.settings, self.seed = settings, seed
        self.by_speaker: dict[str, list[Utterance]] = {}
        for utterance in sorted(utterances, key=lambda each: each.key):
            self.by_speaker.setdefault(utterance.speaker, []).append(utterance)
        self.speakers = sorted(self.by_speaker)
        if len(self.speakers) < settings.speakers[1]:
            fault = f"{len(self.speakers)} speakers are fewer than the {settings.speakers[1]} of a conversation"
            raise DataError(None, fault, "give more, or ask for fewer")
        self.noise = None if noise is None else Noise(store=noise, snr=dict.fromkeys(_kinds(noise), settings.snr))
        self.reverb = None if rir is None else Reverb(store=rir)

    def plan(self, index: int) -> Diarization:
        """Who speaks when in conversation ``index``, without its sound."""
        settings, rng = self.settings, self._chance(index, PLAN)
        count = int(rng.integers(settings.speakers[0], settings.speakers[1] + 1))
        chosen = [self.speakers[number] for number in rng.choice(len(self.speakers), count, replace=False)]
        turns = plan_turns(settings.statistics, chosen, settings.seconds, rng)
        return Diarization(f"conv{index:06d}", turns, settings.seconds)

    def __getitem__(self, index: int) -> Conversation:
        """Conversation ``index``, from 0 on.

        Raises:
            AudioError: an utterance that cannot be read or holds no speech; noise or responses that cannot be read.
        """
        settings, plan = self.settings, self.plan(index)
        rate, count = settings.sample_rate, round(settings.seconds * settings.sample_rate)
        rooms = self._chance(index, ROOMS)
        reverberant = self.reverb is not None and rooms.random() < settings.reverb_share
        mix = np.zeros(count)
        for number, label in enumerate(plan.labels):
            voice = self._voice(plan, label, np.random.default_rng([self.seed, index, VOICES, number]))
            if self.reverb is not None and reverberant:
                voice = self.reverb(voice, rate, rooms)
            mix += voice
        background = self._chance(index, BACKGROUND)
        hiss = background.standard_normal(count, dtype=np.float32)  # digital silence is in no real recording
        samples = mix.astype(np.float32) + hiss * np.float32(10 ** (background.uniform(*settings.hiss) / 20))
        if self.noise is not None and background.random() < settings.noise_share:
            samples = self.noise(samples, rate, background)
        peak = float(np.abs(samples).max(initial=0.0))
        return Conversation(samples * np.float32(min(1.0, PEAK / max(peak, PEAK))), rate, plan)

    def _chance(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, stream])

    def _voice(self, plan: Diarization, label: str, rng: np.random.Generator) -> Samples:
        """(samples,) of one speaker alone, in their turns."""
        rate = self.settings.sample_rate
        voice = np.zeros(round(self.settings.seconds * rate), dtype=np.float32)
        spans = [(round(turn.start * rate), round(turn.end * rate)) for turn in plan.turns if turn.speaker == label]
        wanted = sum(last - first for first, last in spans)
        speech = np.concatenate(list(self._speech(label, wanted, rng)))
        speech *= np.float32(10 ** (rng.uniform(*self.settings.level) / 20) / math.sqrt(np.mean(np.square(speech))))
        ramp = np.linspace(0, 1, round(FADE * rate), dtype=np.float32)
        place = 0
        for first, last in spans:
            piece = speech[place : place + last - first].copy()
            piece[: len(ramp)] *= ramp
            piece[len(piece) - len(ramp) :] *= ramp[::-1]
            voice[first:last] = piece
            place += last - first
        return voice

    def _speech(self, label: str, wanted: int, rng: np.random.Generator) -> Iterator[Samples]:
        """Pieces of a speaker's speech, of about equal level, ``wanted`` samples in all at least."""
        rate = self.settings.sample_rate
        joint = np.zeros(round(JOINT * rate), dtype=np.float32)
        utterances = self.by_speaker[label]
        while wanted > 0:
            for number in rng.permutation(len(utterances)):
                for piece in _spoken(utterances[number], rate):
                    yield piece
                    yield joint
                    wanted -= len(piece) + len(joint)
                if wanted <= 0:
                    return


def _kinds(store: AudioStore) -> list[str]:
    return sorted({store.kind(key) for key in store})


def _spoken(utterance: Utterance, rate: int) -> list[Samples]:
    """The speech of an utterance, cut at its longer pauses."""
    samples, spans = load_speech(utterance, rate)
    pieces = [samples[round(start * rate) : round(end * rate)] for start, end in spans]
    return [piece for piece in pieces if piece.any()]


def write_conversations(conversations: Conversations, out: str | Path, count: int, workers: int = 1) -> float:
    """Write the first ``count`` conversations as a Kaldi directory, and return their hours.

    ``wav/KEY.wav`` (16 bits), ``wav.scp``, ``rttm``, ``reco2dur``, ``reco2num_spk``, and the turns as ``segments``,
    ``utt2spk``, ``spk2utt``. Files that an interrupted call has left are not made again. The bytes do not depend on
    ``workers``.

    Raises:
        DataError: a folder of other conversations, or sources that cannot be read.
    """
    out = Path(out)
    description = _description(conversations)
    if (out / SETTINGS).exists():
        if json.loads((out / SETTINGS).read_text(encoding="utf-8")) != description:
            raise DataError(out, "holds conversations of other settings or sources", "choose another folder")
    elif out.exists() and any(out.iterdir()):
        raise DataError(out, "is not empty", "choose another folder")
    else:
        write_json(out / SETTINGS, description)
    own = threading.local()  # stores belong to one thread each

    def make(index: int) -> None:
        path = out / "wav" / f"conv{index:06d}.wav"
        if path.exists():
            return
        if not hasattr(own, "conversations"):
            own.conversations = copy.deepcopy(conversations)
        conversation = own.conversations[index]
        with atomic_path(path) as temporary:
            soundfile.write(temporary, conversation.samples, conversation.rate, subtype="PCM_16")

    for _ in map_threads(make, range(count), workers=workers, description="conversations", unit="file", block=1):
        pass
    plans = [conversations.plan(index) for index in range(count)]
    _write_lists(out, plans)
    return sum(plan.duration or 0.0 for plan in plans) / 3600


def _write_lists(out: Path, plans: Sequence[Diarization]) -> None:
    by_speaker: dict[str, list[str]] = {}
    segments, speakers = {}, {}
    for plan in plans:
        for turn in plan.turns:
            key = f"{turn.speaker}-{plan.recording}-{round(turn.start * 1000):08d}-{round(turn.end * 1000):08d}"
            segments[key] = f"{plan.recording} {turn.start:.3f} {turn.end:.3f}"
            speakers[key] = turn.speaker
            by_speaker.setdefault(turn.speaker, []).append(key)
    paths = {each.recording: str(out.absolute() / "wav" / f"{each.recording}.wav") for each in plans}
    write_table(out / "wav.scp", paths)
    write_table(out / "reco2dur", {each.recording: f"{each.duration:.3f}" for each in plans})
    write_table(out / "reco2num_spk", {each.recording: str(len(each.labels)) for each in plans})
    write_table(out / "segments", segments)
    write_table(out / "utt2spk", speakers)
    write_table(out / "spk2utt", {speaker: " ".join(sorted(keys)) for speaker, keys in by_speaker.items()})
    write_text(out / "rttm", to_text(plans, "rttm"))


def _description(conversations: Conversations) -> dict[str, object]:
    """Everything that the bytes depend on, as plain values."""
    utterances = [asdict(each) for group in conversations.by_speaker.values() for each in group]
    stores = [conversations.noise, conversations.reverb]
    return {
        "seed": conversations.seed,
        "settings": json.loads(json.dumps(asdict(conversations.settings))),
        "sources": hashlib.sha256(json.dumps(utterances).encode()).hexdigest(),
        "stores": [each and {"name": each.store.name, "recordings": len(each.store)} for each in stores],
    }


def with_segments(
    utterances: Iterable[Utterance], segments: dict[str, tuple[Span, ...]], source: str | Path
) -> list[Utterance]:
    """Utterances with the speech that a detector found in them.

    Raises:
        DataError: an utterance without segments.
    """
    listed = list(utterances)
    missing = [each.key for each in listed if each.key not in segments]
    if missing:
        fault = f"has no segment for {len(missing)} utterances, {missing[0]!r} first"
        raise DataError(source, fault, "run the detector on all of them, or leave the segments out")
    return [replace(each, vad=segments[each.key]) for each in listed]
