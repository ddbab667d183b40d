"""Mixtures to learn extraction from: drawn on the fly from recordings of single speakers, or cut out of prepared ones.

Both give a :class:`Mixture` for each number of an endless, seeded sequence: a function of the seed and that number.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from speakerkit.audio import MAX_RATE, MIN_RATE, Samples, audio_info, load_audio
from speakerkit.config import require
from speakerkit.data.augment import build_chain, read_section, reverberate, speed_perturb
from speakerkit.data.mixing.drawing import PEAK
from speakerkit.data.mixing.lists import ListedMixture, Target, read_mixture_dir, spans_of
from speakerkit.data.sampling import ShuffledOrder
from speakerkit.data.sources import Voice, load_speech
from speakerkit.data.stores import AudioStore
from speakerkit.errors import AudioError, DataError

Range = tuple[float, float]
SampleSpan = tuple[int, int]  # first sample, and the one after the last

CAST, VOICES, ROOMS, BACKGROUND, ENROLMENTS = range(5)  # streams of chance of a mixture
FADE = 0.005  # seconds at a cut within a crop, so that it is no click
CACHED_BYTES = 128 << 20  # of decoded recordings that a process keeps: all of a small corpus
SHORTEST_SPEECH = 0.1  # seconds that count as somebody speaking; spans of speech have 0.05 s of margin on each side
EQUALISED_FROM = 125.0  # Hz, the lowest frequency for which a gain is drawn
SLOWEST, FASTEST = 0.5, 2.0  # speed factors that still sound like speech

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several voices at once, and what is asked of them. K speakers are conditioned on, by an enrolment each.

    The mixture is the sum of all its voices, those of the targets among them, and of the noise, to rounding.

    Attributes:
        key: its name.
        mixture: (S,) float32 in [-1, 1].
        targets: (K, S) float32, what to extract; zeros where the speaker is not in the mixture.
        speakers: K names, never "".
        present: (K,) bool: whether the speaker speaks in this crop, for 0.1 s at least. Where they do not, the target
            is zeros, or hardly more than the background of their recording.
        enrolments: K waveforms (S_e,) float32 of the speakers, of other utterances than those in the mixture.
        activity: for each target where in it is speech, in samples of the crop.
        noise: (S,) float32, or ``None`` where none was added, or what it is is not known.
    """

    key: str
    mixture: Samples
    targets: npt.NDArray[np.float32]
    speakers: tuple[str, ...]
    present: npt.NDArray[np.bool_]
    enrolments: tuple[Samples, ...]
    activity: tuple[tuple[SampleSpan, ...], ...]
    noise: Samples | None = None


@dataclass(frozen=True)
class MixtureSettings:
    """What mixtures are like. Pairs of numbers are (low, high), drawn from uniformly.

    Attributes:
        sample_rate: Hz.
        seconds: length of a mixture.
        speakers: (fewest, most) in it.
        targets: speakers that are conditioned on; 0 for all of the mixture.
        absent_share: of the targets, those whose place is taken by a speaker who is not in the mixture.
        level: dBFS, of the first speaker's speech.
        sir: dB, of the first speaker's speech over that of each other. The first target is the first speaker. Levels
            are those of whole utterances, so a crop in which one hardly speaks is no reason to make them louder.
        same_gender_share: of the mixtures, those whose speakers are all of one gender; in the others nobody has the
            first speaker's. ``None`` draws without regard to it.
        curriculum: mixtures over which ``first_sir`` and ``first_same_gender_share`` become the ones above.
        first_sir, first_same_gender_share: of mixture 0 where there is a curriculum; ``None`` for no change.
        sparse_share: of the mixtures, those in which voices follow each other and overlap in part; in the others all
            have the whole length.
        overlap: of sparse mixtures, share of the length that a voice and the next one have in common.
        speeds: factors to draw from; each but 1.0 makes another speaker of every speaker.
        equalise: dB; every voice is filtered by gains drawn for some frequencies from a normal distribution of this
            deviation. 0 leaves voices as they are.
        noise_share, snr: of the mixtures, those with noise, where there is a store; dB of the first speaker's speech
            over it.
        reverb_share: of the mixtures, those in a room, where there is a store of responses.
        reverb_targets: "wet" targets are as in the mixture, "dry" ones as if there were no room.
        enrolment_rate: Hz, of enrolments; ``None`` for ``sample_rate``.
        enrolment_seconds: length of enrolments. Utterances that are too short are followed by others, if there are any.
        enrolment_augment: chain of augmentations of enrolments, as ``data.augment`` of embedding training has it.

    Raises:
        ConfigError: values out of range.
    """

    sample_rate: int = 16000
    seconds: float = 4.0
    speakers: tuple[int, int] = (2, 2)
    targets: int = 0
    absent_share: float = 0.0
    level: Range = (-33.0, -25.0)
    sir: Range = (-5.0, 5.0)
    same_gender_share: float | None = None
    curriculum: int = 0
    first_sir: Range | None = None
    first_same_gender_share: float | None = None
    sparse_share: float = 0.0
    overlap: Range = (0.0, 0.8)
    speeds: tuple[float, ...] = (1.0,)
    equalise: float = 0.0
    noise_share: float = 0.8
    snr: Range = (5.0, 20.0)
    reverb_share: float = 0.5
    reverb_targets: Literal["wet", "dry"] = "wet"
    enrolment_rate: int | None = None
    enrolment_seconds: Range = (3.0, 6.0)
    enrolment_augment: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        fewest, most = self.speakers
        for name, rate in (("sample_rate", self.sample_rate), ("enrolment_rate", self.voice_rate)):
            require(MIN_RATE <= rate <= MAX_RATE, name, rate, f"rates are from {MIN_RATE} to {MAX_RATE} Hz")
        require(0.1 <= self.seconds <= 600, "seconds", self.seconds, "it is from 0.1 to 600")
        require(1 <= fewest <= most, "speakers", self.speakers, "give the fewest and the most, from 1 on")
        require(0 <= self.targets <= fewest, "targets", self.targets, f"it is from 0 (all) to {fewest}, the fewest")
        for name in ("level", "sir", "snr", "overlap", "enrolment_seconds", "first_sir"):
            values = getattr(self, name)
            require(values is None or values[0] <= values[1], name, values, "give the lower end first")
        shares = ("absent_share", "sparse_share", "noise_share", "reverb_share", "same_gender_share")
        for name in (*shares, "first_same_gender_share"):
            share = getattr(self, name)
            require(share is None or 0 <= share <= 1, name, share, "it is from 0 to 1")
        for name, least, longest in (("overlap", 0.0, 1.0), ("enrolment_seconds", 0.1, 600.0)):
            low, high = getattr(self, name)
            require(least <= low and high <= longest, name, (low, high), f"they are from {least:g} to {longest:g}")
        fits = len(set(self.speeds)) == len(self.speeds) > 0 and all(SLOWEST <= each <= FASTEST for each in self.speeds)
        require(fits, "speeds", self.speeds, f"factors are distinct and from {SLOWEST} to {FASTEST}")
        require(self.curriculum >= 0, "curriculum", self.curriculum, "it is a number of mixtures")
        started = self.first_sir is not None or self.first_same_gender_share is not None
        require(started == (self.curriculum > 0), "curriculum", self.curriculum, "it goes with first_sir or the like")
        gendered = self.first_same_gender_share is None or self.same_gender_share is not None
        require(gendered, "first_same_gender_share", self.first_same_gender_share, "set same_gender_share as well")

    @property
    def voice_rate(self) -> int:
        """Hz of enrolments."""
        return self.enrolment_rate or self.sample_rate


class Mixtures:
    """An endless sequence of mixtures of recordings of single speakers; each is a function of the seed and its number.

    The first speaker's utterance is each of the list once an epoch, in drawn order; the others are drawn. A piece of
    the length that a voice has in the mixture is cut out of its utterance; a shorter utterance stands somewhere in it.

    Speakers with one utterance cannot be enrolled: they are heard, but neither the first speaker nor a target, and left
    out where all are targets.

    Args:
        voices: recordings, as of :func:`speakerkit.data.sources.read_voices`.
        noise, rir: stores; ``None`` for neither noise nor rooms. Responses in one folder of the store are of one room,
            and all voices of a mixture are in one.
        genders: speaker to gender, for ``same_gender_share``; see :func:`speakerkit.data.sources.read_genders`.

    Raises:
        DataError: too few speakers with two utterances, or speakers of unknown gender (counted).
        ConfigError: an augmentation of enrolments that is unknown or lacks its store.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        settings: MixtureSettings,
        seed: int,
        noise: AudioStore | None = None,
        rir: AudioStore | None = None,
        genders: Mapping[str, str] | None = None,
    ) -> None:
        self.settings, self.seed, self.noise, self.rir = settings, seed, noise, rir
        self.voices = sorted(voices, key=lambda each: each.key)
        self.items: dict[str, list[int]] = {}
        for item, voice in enumerate(self.voices):
            self.items.setdefault(voice.speaker, []).append(item)
        self.targets = sorted(speaker for speaker, items in self.items.items() if len(items) > 1)
        self._enrolled = frozenset(self.targets)
        self._leave_out()
        self.genders = self._known_genders(genders) if settings.same_gender_share is not None else None
        self.order = ShuffledOrder([[item for speaker in self.targets for item in self.items[speaker]]], seed)
        self.chain = build_chain(settings.enrolment_augment, noise_store=noise, rir_store=rir)
        self.rooms = _by_room(rir) if rir is not None else []
        self._decoded: OrderedDict[tuple[int, int], tuple[Samples, tuple[Range, ...]]] = OrderedDict()
        self._decoded_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": OrderedDict(), "_decoded_bytes": 0}

    @property
    def speakers(self) -> list[str]:
        """Every name that a target may have, sorted: the classes of a speaker loss."""
        return sorted(_name(speaker, speed) for speaker in self.targets for speed in self.settings.speeds)

    def __getitem__(self, index: int) -> Mixture:
        """Mixture ``index``, from 0 on.

        Raises:
            AudioError: a recording that cannot be read or holds no speech.
        """
        settings, rng = self.settings, self._chance(index, CAST)
        cast = self._cast(index, rng)
        speeds = [settings.speeds[rng.integers(len(settings.speeds))] for _ in cast]
        first_level = rng.uniform(*settings.level)
        sir = _eased(settings.first_sir, settings.sir, self._progress(index))
        levels = [first_level] + [first_level - rng.uniform(*sir) for _ in cast[1:]]  # dBFS
        windows = self._windows(len(cast), rng)
        parts = [
            self._part(*each, self._chance(index, VOICES, number))
            for number, each in enumerate(zip(cast, speeds, windows, levels, strict=True))
        ]
        dry = np.stack([samples for samples, _ in parts])  # (voices, S)
        wet = self._in_room(dry, self._chance(index, ROOMS))
        noise = self._background(first_level, self._chance(index, BACKGROUND))
        mixture = wet.sum(axis=0, dtype=np.float32) + (0 if noise is None else noise)
        scale = np.float32(min(1.0, PEAK / max(float(np.abs(mixture).max(initial=0.0)), PEAK)))
        voices = (wet if settings.reverb_targets == "wet" else dry) * scale
        slots = self._slots(cast, rng)
        names, enrolments, targets, activity = [], [], [], []
        for number, (item, place) in enumerate(slots):
            speed = settings.speeds[rng.integers(len(settings.speeds))] if place is None else speeds[place]
            names.append(_name(self.voices[item].speaker, speed))
            enrolments.append(self._enrolment(item, speed, place is None, self._chance(index, ENROLMENTS, number)))
            targets.append(np.zeros_like(mixture) if place is None else voices[place])
            activity.append(() if place is None else parts[place][1])
        return Mixture(
            key=f"mix{index:08d}",
            mixture=mixture * scale,
            targets=np.stack(targets),
            speakers=tuple(names),
            present=_present(activity, self.settings.sample_rate),
            enrolments=tuple(enrolments),
            activity=tuple(activity),
            noise=None if noise is None else noise * scale,
        )

    def _leave_out(self) -> None:
        """Speakers who cannot be enrolled, where all are targets; and an error where too few are left."""
        settings, single, most = self.settings, len(self.items) - len(self.targets), self.settings.speakers[1]
        if not settings.targets:
            self.items = {speaker: self.items[speaker] for speaker in self.targets}
        if single:
            fate = "are heard and never targets" if settings.targets else "are left out"
            logger.warning("%d speakers with one utterance, which cannot be enrolled, %s", single, fate)
        slots = settings.targets or most
        absent = slots if settings.absent_share else 0
        if len(self.targets) < slots + absent or len(self.items) < most + absent:
            fault = f"{len(self.targets)} speakers with two utterances, {len(self.items)} in all, are too few"
            raise DataError(None, fault, f"{slots + absent} and {most + absent} are wanted at least")

    def _known_genders(self, genders: Mapping[str, str] | None) -> dict[str, str]:
        """Gender of each speaker, where there are enough of each for what is asked."""
        settings, known = self.settings, {speaker: (genders or {}).get(speaker, "") for speaker in self.items}
        unknown = [speaker for speaker, gender in known.items() if not gender]
        if unknown:
            fault = f"the gender of {len(unknown)} speakers is not known, {unknown[0]!r} first"
            raise DataError(None, fault, "give spk2gender or SPEAKERS.TXT, or leave same_gender_share out")
        shares = [each for each in (settings.same_gender_share, settings.first_same_gender_share) if each is not None]
        for gender in sorted(set(known.values())):
            own = sum(known[speaker] == gender for speaker in self.targets)
            same = max(shares) == 0 or own >= settings.speakers[1]
            other = min(shares) == 1 or len(self.targets) - own >= settings.speakers[1] - 1
            if not (same and other):
                fault = f"{own} of {len(self.targets)} speakers with two utterances are of gender {gender!r}"
                raise DataError(None, fault, "give more of each, or leave same_gender_share out")
        return known

    def _chance(self, index: int, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, *stream])

    def _progress(self, index: int) -> float:
        return min(1.0, index / self.settings.curriculum) if self.settings.curriculum else 1.0

    def _cast(self, index: int, rng: np.random.Generator) -> list[int]:
        """Utterances of the mixture, each of another speaker."""
        settings, first = self.settings, self.order.item(index)
        speaker = self.voices[first].speaker
        count = int(rng.integers(settings.speakers[0], settings.speakers[1] + 1))
        others = [each for each in self.items if each != speaker]
        if self.genders is not None and settings.same_gender_share is not None:
            start = settings.first_same_gender_share
            share = settings.same_gender_share
            if start is not None:
                share = start + (share - start) * self._progress(index)
            same = rng.random() < share
            others = [each for each in others if (self.genders[each] == self.genders[speaker]) == same]
        drawn = [speaker, *_draw([each for each in others if each in self._enrolled], self._asked(count) - 1, rng)]
        drawn += _draw([each for each in others if each not in drawn], count - len(drawn), rng)
        return [first] + [self.items[each][rng.integers(len(self.items[each]))] for each in drawn[1:]]

    def _asked(self, count: int) -> int:
        """How many of ``count`` speakers are targets: the first ones."""
        return self.settings.targets or count

    def _slots(self, cast: Sequence[int], rng: np.random.Generator) -> list[tuple[int, int | None]]:
        """(utterance, place in the cast) of each target; (one of an absent speaker's, ``None``)."""
        heard = {self.voices[item].speaker for item in cast}
        slots: list[tuple[int, int | None]] = []
        for place in range(self._asked(len(cast))):
            if rng.random() >= self.settings.absent_share:
                slots.append((cast[place], place))
                continue
            (speaker,) = _draw([each for each in self.targets if each not in heard], 1, rng)
            heard.add(speaker)
            slots.append((self.items[speaker][0], None))
        return slots

    def _windows(self, count: int, rng: np.random.Generator) -> list[SampleSpan]:
        """Where in the mixture each of ``count`` voices may be heard: each has the same length with the next."""
        size = round(self.settings.seconds * self.settings.sample_rate)
        sparse = rng.random() < self.settings.sparse_share
        shared = round(rng.uniform(*self.settings.overlap) * size) if sparse else size
        edges = [0, *sorted(rng.integers(0, size - shared + 1, count - 1).tolist()), size - shared]
        windows = [(edges[number], edges[number + 1] + shared) for number in range(count)]
        return [windows[number] for number in rng.permutation(count)]

    def _part(
        self, item: int, speed: float, window: SampleSpan, level: float, rng: np.random.Generator
    ) -> tuple[Samples, tuple[SampleSpan, ...]]:
        """A voice alone, (S,), in its window, and where in it is speech."""
        rate, size = self.settings.sample_rate, round(self.settings.seconds * self.settings.sample_rate)
        samples, spans = self._speech(item, speed, rate)
        if self.settings.equalise:
            samples = _equalised(samples, rate, self.settings.equalise, rng)
        power = np.mean(np.concatenate([np.square(samples[first:last]) for first, last in spans]))
        gain = np.float32(10 ** (level / 20) / np.sqrt(power))
        room = window[1] - window[0]
        start = int(rng.integers(max(0, len(samples) - room) + 1))
        place = window[0] + int(rng.integers(max(0, room - len(samples)) + 1))
        piece = samples[start : start + room] * gain
        ramp = np.linspace(0, 1, round(FADE * rate), dtype=np.float32)[: len(piece)]
        if start > 0 and place > 0:
            piece[: len(ramp)] *= ramp
        if start + len(piece) < len(samples) and place + len(piece) < size:
            piece[len(piece) - len(ramp) :] *= ramp[::-1]
        voice = np.zeros(size, dtype=np.float32)
        voice[place : place + len(piece)] = piece
        return voice, _cut([(first - start, last - start) for first, last in spans], len(piece), place)

    def _speech(self, item: int, speed: float, rate: int) -> tuple[Samples, tuple[SampleSpan, ...]]:
        """A whole utterance and the samples of it that are speech."""
        samples, spans = self._load(item, rate)
        samples = speed_perturb(samples, rate, speed)
        scaled = ((round(start * rate / speed), round(end * rate / speed)) for start, end in spans)
        return samples, _cut(scaled, len(samples))

    def _load(self, item: int, rate: int) -> tuple[Samples, tuple[Range, ...]]:
        known = self._decoded.get((item, rate))
        if known is not None:
            self._decoded.move_to_end((item, rate))
            return known
        samples, spans = load_speech(self.voices[item], rate)
        samples.setflags(write=False)
        self._decoded[item, rate] = samples, spans
        self._decoded_bytes += samples.nbytes
        while self._decoded_bytes > CACHED_BYTES:
            self._decoded_bytes -= self._decoded.popitem(last=False)[1][0].nbytes
        return samples, spans

    def _in_room(self, dry: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Voices (voices, S) as heard in one room, each from a place of its own while there are enough."""
        if self.rir is None or not rng.random() < self.settings.reverb_share:
            return dry
        room = self.rooms[rng.integers(len(self.rooms))]
        places = rng.choice(len(room), len(dry), replace=len(dry) > len(room))
        responses = [self.rir.read(room[place], self.settings.sample_rate) for place in places]
        return np.stack([reverberate(voice, response) for voice, response in zip(dry, responses, strict=True)])

    def _background(self, level: float, rng: np.random.Generator) -> Samples | None:
        """Noise (S,), ``snr`` dB under ``level``."""
        settings = self.settings
        if self.noise is None or not rng.random() < settings.noise_share:
            return None
        key, size = self.noise.keys()[rng.integers(len(self.noise))], round(settings.seconds * settings.sample_rate)
        section = read_section(self.noise, key, size, settings.sample_rate, rng)
        power = float(np.mean(np.square(section, dtype=np.float64)))
        gain = 10 ** ((level - rng.uniform(*settings.snr)) / 20) / np.sqrt(power) if power else 0.0
        return section * np.float32(gain)

    def _enrolment(self, item: int, speed: float, absent: bool, rng: np.random.Generator) -> Samples:
        """A waveform of the speaker of ``item``, without that utterance unless it is in no mixture."""
        settings, speaker, rate = self.settings, self.voices[item].speaker, self.settings.voice_rate
        others = [each for each in self.items[speaker] if absent or each != item]
        wanted = round(rng.uniform(*settings.enrolment_seconds) * rate)
        pieces: list[Samples] = []
        for number in rng.permutation(len(others)):
            pieces.append(self._speech(others[number], speed, rate)[0])
            if sum(map(len, pieces)) >= round(settings.enrolment_seconds[0] * rate):
                break
        return self.chain(_random_cut(np.concatenate(pieces), wanted, rng), rate, rng)


class PreparedMixtures:
    """An endless sequence of crops of prepared mixtures; each is a function of the seed and its number.

    Args:
        folder: as :func:`speakerkit.data.mixing.lists.write_mixture_dir` writes it. Mixtures without targets are left
            out.
        settings: of it count ``sample_rate, seconds, targets, enrolment_seconds, enrolment_augment``.
        voices: recordings of the speakers to draw enrolments from, instead of the one that ``enroll.scp`` names: any
            utterance that is not in the mixture, by ``reco2utts``.

    Raises:
        DataError: a directory that is no such one, or speakers of whom there are no recordings.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: MixtureSettings,
        seed: int,
        voices: Sequence[Voice] | None = None,
        noise: AudioStore | None = None,
        rir: AudioStore | None = None,
    ) -> None:
        self.settings, self.seed = settings, seed
        self.listed = [each for each in read_mixture_dir(folder) if each.targets]
        if not self.listed:
            raise DataError(folder, "names no targets", "add enroll.scp and ref.scp")
        few = next((each for each in self.listed if len(each.targets) < settings.targets), None)
        if few is not None:
            raise DataError(folder, f"{few.key!r} has {len(few.targets)} targets", f"{settings.targets} are wanted")
        self.order = ShuffledOrder([list(range(len(self.listed)))], seed)
        self.chain = build_chain(settings.enrolment_augment, noise_store=noise, rir_store=rir)
        self.voices = None if voices is None else self._by_speaker(folder, voices)

    def __len__(self) -> int:
        """Mixtures there are."""
        return len(self.listed)

    @property
    def speakers(self) -> list[str]:
        """Every name that a target may have, sorted."""
        return sorted({target.speaker for each in self.listed for target in each.targets})

    def __getitem__(self, index: int) -> Mixture:
        """Crop ``index``, from 0 on: all mixtures once an epoch, in drawn order, of ``seconds``, zeros after the end.

        Raises:
            AudioError: a file that cannot be read.
            DataError: a reference that is not as long as its mixture.
        """
        rng, settings = np.random.default_rng([self.seed, index]), self.settings
        listed, rate = self.listed[self.order.item(index)], settings.sample_rate
        size, length = round(settings.seconds * rate), _length(listed, rate)
        start = int(rng.integers(max(0, length - size) + 1))
        chosen = sorted(rng.permutation(len(listed.targets))[: settings.targets or None].tolist())
        targets = [listed.targets[number] for number in chosen]
        enrolments = tuple(
            self.chain(self._enrolment(listed, target, rng), settings.voice_rate, rng) for target in targets
        )
        return self._crop(listed, targets, enrolments, start, size)

    def _by_speaker(self, folder: str | Path, voices: Sequence[Voice]) -> dict[str, list[Voice]]:
        found: dict[str, list[Voice]] = {}
        for voice in sorted(voices, key=lambda each: each.key):
            found.setdefault(voice.speaker, []).append(voice)
        lacking = [
            speaker
            for each in self.listed
            for speaker in (target.speaker for target in each.targets)
            if not each.utterances or not _others(found.get(speaker, ()), each)
        ]
        if lacking:
            fault = f"{len(lacking)} targets have no recording to enrol with, one of {lacking[0]!r} first"
            raise DataError(folder, fault, "give recordings of all speakers and reco2utts, or none for enroll.scp")
        return found

    def _enrolment(self, listed: ListedMixture, target: Target, rng: np.random.Generator) -> Samples:
        rate = self.settings.voice_rate
        wanted = round(rng.uniform(*self.settings.enrolment_seconds) * rate)
        if self.voices is None:
            return _random_cut(load_audio(target.enrolment, rate).samples, wanted, rng)
        voices = _others(self.voices[target.speaker], listed)
        return _random_cut(load_speech(voices[rng.integers(len(voices))], rate)[0], wanted, rng)

    def _crop(
        self, listed: ListedMixture, targets: Sequence[Target], enrolments: tuple[Samples, ...], start: int, size: int
    ) -> Mixture:
        rate = self.settings.sample_rate
        activity = tuple(
            _cut(
                ((round(a * rate) - start, round(b * rate) - start) for a, b in spans_of(listed.turns, each.speaker)),
                size,
            )
            if each.reference
            else ()
            for each in targets
        )
        silence = np.zeros(size, dtype=np.float32)
        return Mixture(
            key=listed.key,
            mixture=_read(listed.wav, rate, start, size),
            targets=np.stack(
                [
                    _read(each.reference, rate, start, size, listed.wav) if each.reference else silence
                    for each in targets
                ]
            ),
            speakers=tuple(each.speaker for each in targets),
            present=_present(activity, self.settings.sample_rate),
            enrolments=enrolments,
            activity=activity,
        )


def _equalised(samples: Samples, rate: int, deviation: float, rng: np.random.Generator) -> Samples:
    """Filtered without delay, by gains that are linear in dB between frequencies an octave apart."""
    octaves = np.arange(np.log2(EQUALISED_FROM), np.log2(rate / 2) + 1)
    drawn = rng.normal(0, deviation, len(octaves))
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    gains = np.interp(np.log2(np.maximum(frequencies, 1)), octaves, drawn)
    return np.fft.irfft(np.fft.rfft(samples) * 10 ** (gains / 20), len(samples)).astype(np.float32)


def _draw(speakers: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [speakers[number] for number in rng.choice(len(speakers), count, replace=False)] if count else []


def _name(speaker: str, speed: float) -> str:
    return speaker if speed == 1.0 else f"{speaker}*{speed:g}"


def _by_room(rir: AudioStore) -> list[list[str]]:
    rooms: dict[str, list[str]] = {}
    for key in rir:
        rooms.setdefault(key.rpartition("/")[0], []).append(key)
    return list(rooms.values())


def _eased(first: Range | None, last: Range, progress: float) -> Range:
    if first is None:
        return last
    return first[0] + (last[0] - first[0]) * progress, first[1] + (last[1] - first[1]) * progress


def _cut(spans: Any, size: int, place: int = 0) -> tuple[SampleSpan, ...]:
    """What of ``spans`` lies in [0, size), moved by ``place``."""
    kept = ((max(0, first), min(size, last)) for first, last in spans)
    return tuple((first + place, last + place) for first, last in kept if first < last)


def _present(activity: Sequence[Sequence[SampleSpan]], rate: int) -> npt.NDArray[np.bool_]:
    return np.array([sum(last - first for first, last in spans) >= SHORTEST_SPEECH * rate for spans in activity])


def _random_cut(samples: Samples, wanted: int, rng: np.random.Generator) -> Samples:
    start = int(rng.integers(max(0, len(samples) - wanted) + 1))
    return samples[start : start + wanted]


def _others(voices: Sequence[Voice], mixture: ListedMixture) -> list[Voice]:
    return [voice for voice in voices if voice.key not in mixture.utterances]


def _length(listed: ListedMixture, rate: int) -> int:
    info = audio_info(listed.wav)
    return round(info.frames * rate / info.rate)


def _read(path: str, rate: int, start: int, size: int, mixture: str | None = None) -> Samples:
    """(size,) from sample ``start`` at ``rate`` Hz on, zeros after the end; as long as ``mixture`` it has to be."""
    if mixture is not None:
        own, other = audio_info(path), audio_info(mixture)
        if (own.frames, own.rate) != (other.frames, other.rate):
            fault = f"has {own.frames} samples at {own.rate} Hz, its mixture {other.frames} at {other.rate} Hz"
            raise DataError(path, fault, "references are as long as the mixture")
    try:
        samples = load_audio(path, rate, start=start / rate, duration=size / rate).samples[:size]
    except AudioError as error:
        raise AudioError(path, error.fault, error.remedy) from None
    return np.pad(samples, (0, size - len(samples)))
