"""The embedded default corpus: invented voices, noises and rooms, generated from a seed with nothing downloaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from speakerkit.audio import Samples
from speakerkit.data.demo.rooms import NOISES, babble, recording, room_response, tones
from speakerkit.data.demo.sentences import draw_text
from speakerkit.data.demo.voices import Speech, Voice, draw_voice, espeak_speech, vary_voice
from speakerkit.data.lists import Utterance, write_data_dir, write_table
from speakerkit.data.parallel import map_threads
from speakerkit.data.trials import ALL_PAIRS, prepare_trials
from speakerkit.errors import DataError
from speakerkit.files import atomic_path, write_json

TRAIN, TEST, BABBLE, TEXT, NOISE, ROOM = range(6)  # streams of chance; each item has its own generator
PREFIX = {TRAIN: "tr", TEST: "te", BABBLE: "ba"}
SEVERITY = {TRAIN: 0.6, TEST: 1.0, BABBLE: 0.0}
BABBLE_SPEAKERS = 8


@dataclass(frozen=True)
class DemoCorpus:
    """What :func:`make_demo_corpus` wrote.

    Attributes:
        out: the folder with ``train``, ``test``, ``noise`` and ``rir``.
        train_utterances, test_utterances: recordings.
        train_hours, test_hours: their lengths.
        trials: pairs of test recordings in ``test/trials``.
    """

    out: Path
    train_utterances: int
    test_utterances: int
    train_hours: float
    test_hours: float
    trials: int


@dataclass(frozen=True)
class _Speaker:
    """What a speaker shall say, and in what part of the corpus."""

    part: int
    number: int
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{PREFIX[self.part]}{self.number:04d}"


@dataclass(frozen=True)
class _Settings:
    """Everything that the bytes depend on; ``demo.json`` keeps it."""

    seed: int
    speakers: int
    utterances: int
    test_speakers: int
    test_utterances: int
    seconds: float
    noises: int
    sample_rate: int

    def generator(self, *place: int) -> np.random.Generator:
        """The generator of one item: whatever else is made, and in whichever order, it draws the same."""
        return np.random.default_rng([self.seed, *place])


def make_demo_corpus(
    out: str | Path,
    speakers: int = 100,
    seed: int = 0,
    *,
    utterances: int = 8,
    test_speakers: int = 20,
    test_utterances: int = 5,
    seconds: float = 3.0,
    noises: int = 12,
    sample_rate: int = 16000,
    workers: int = 2,
) -> DemoCorpus:
    """Generate the demo corpus: the same arguments give the same bytes, for any number of workers.

    Writes the Kaldi data directories ``OUT/train`` and ``OUT/test`` (other speakers, other texts, harder recording
    conditions; ``trials`` holds all pairs), audio below their ``wav``; ``OUT/noise`` (``wav.scp``, ``utt2type``) with
    noise, music and babble; ``OUT/rir`` with room responses; and the settings, as ``OUT/demo.json``.

    Args:
        speakers: speakers to train on.
        seed: the only source of chance.
        utterances: recordings of each of them.
        test_speakers, test_utterances: the same of the test part.
        seconds: mean length of a recording; they vary by a quarter.
        noises: noises of each of the three types, and room responses.
        sample_rate: Hz.
        workers: threads.

    Raises:
        MissingExtraError: ``espeakng_loader`` is not installed.
        DataError: a count or length that cannot be.
    """
    out = Path(out)
    settings = _Settings(
        seed, speakers, utterances, test_speakers, test_utterances, float(seconds), noises, sample_rate
    )
    _check_settings(settings)
    people = _plan(settings)
    work = partial(_record_speaker, settings=settings, out=out)
    with espeak_speech() as speech:
        work = partial(work, speech=speech)
        recordings = list(map_threads(work, people, workers=workers, description="voices", unit="speaker", block=1))
        _write_noises(out, settings, speech, workers)
    _write_rooms(out, settings, workers)
    hours = {}
    for part, name in ((TRAIN, "train"), (TEST, "test")):
        lengths = [
            item for person, items in zip(people, recordings, strict=True) if person.part == part for item in items
        ]
        durations = {utterance.key: length for utterance, length in lengths}
        write_data_dir(out / name, [utterance for utterance, _ in lengths], durations)
        hours[part] = sum(durations.values()) / 3600
    trials = prepare_trials(out / "test" / "trials", ALL_PAIRS, ())
    write_json(out / "demo.json", {"corpus": "speakerkit demo corpus (synthetic voices)", **asdict(settings)})
    return DemoCorpus(out, speakers * utterances, test_speakers * test_utterances, hours[TRAIN], hours[TEST], trials)


def _check_settings(settings: _Settings) -> None:
    for name, least in (("speakers", 1), ("utterances", 1), ("test_speakers", 1), ("test_utterances", 2), ("seed", 0)):
        if getattr(settings, name) < least:
            raise DataError(f"{name}={getattr(settings, name)}", f"is less than {least}", "give more")
    if not 0.5 <= settings.seconds <= 60:
        raise DataError(f"seconds={settings.seconds}", "is no length for an utterance", "0.5 to 60 s can be had")


def _plan(settings: _Settings) -> list[_Speaker]:
    """All speakers and their texts; no text comes twice."""
    used: set[str] = set()
    people: list[_Speaker] = []
    words = round(settings.seconds * 1.25 * 220 / 60) + 4  # enough for the fastest speaker
    for part, count, utterances in (
        (TRAIN, settings.speakers, settings.utterances),
        (TEST, settings.test_speakers, settings.test_utterances),
    ):
        for number in range(count):
            rng = settings.generator(TEXT, part, number)
            texts: list[str] = []
            while len(texts) < utterances:
                text = draw_text(rng, words)
                if text not in used:
                    used.add(text)
                    texts.append(text)
            people.append(_Speaker(part, number, tuple(texts)))
    return people


def _record_speaker(
    person: _Speaker, *, settings: _Settings, out: Path, speech: Speech
) -> list[tuple[Utterance, float]]:
    """Write a speaker's recordings; returns each with its length in seconds."""
    rate = settings.sample_rate
    voice = draw_voice(settings.generator(person.part, person.number))
    generators = [settings.generator(person.part, person.number, number) for number in range(len(person.texts))]
    sounds = speech.say(person.name, [vary_voice(voice, rng) for rng in generators], person.texts, rate)
    folder = (out / ("train" if person.part == TRAIN else "test") / "wav" / person.name).absolute()
    recorded = []
    for number, (sound, rng) in enumerate(zip(sounds, generators, strict=True)):
        spoken = _cut(sound, rate, settings.seconds * rng.uniform(0.75, 1.25))
        samples = recording(spoken, rng, rate, SEVERITY[person.part])
        key = f"{person.name}-{number:03d}"
        _write_audio(folder / f"{key}.flac", samples, rate)
        recorded.append((Utterance(key, person.name, str(folder / f"{key}.flac")), len(samples) / rate))
    return recorded


def _cut(sound: Samples, rate: int, seconds: float) -> Samples:
    """The first ``seconds`` of ``sound`` from where it starts to be heard, faded out over 20 ms."""
    heard = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
    start = max(0, int(heard[0]) - round(0.05 * rate)) if len(heard) else 0
    cut = sound[start : start + round(seconds * rate)].copy()
    fade = min(len(cut), round(0.02 * rate))
    cut[len(cut) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return cut


def _write_noises(out: Path, settings: _Settings, speech: Speech, workers: int) -> None:
    """``OUT/noise``: noise, music (tone patterns) and speech (babble of voices that are in no other part)."""
    count = round(5.0 * settings.sample_rate)
    crowd: list[Samples] = []
    for number in range(BABBLE_SPEAKERS if settings.noises else 0):
        rng = settings.generator(BABBLE, number)
        voice: Voice = draw_voice(rng)
        crowd += speech.say(f"ba{number:04d}", [voice], [draw_text(rng, 25)], settings.sample_rate)
    kinds = list(NOISES)

    def make(item: tuple[str, int]) -> tuple[str, str]:
        kind, number = item
        rng = settings.generator(NOISE, ("noise", "music", "speech").index(kind), number)
        if kind == "noise":
            name, samples = (
                kinds[number % len(kinds)],
                NOISES[kinds[number % len(kinds)]](rng, count, settings.sample_rate),
            )
        elif kind == "music":
            name, samples = "tones", tones(rng, count, settings.sample_rate)
        else:
            members = rng.choice(len(crowd), size=rng.integers(3, len(crowd)), replace=False)
            name, samples = "babble", babble([crowd[member] for member in members], rng, count)
        key = f"{kind}/{name}-{number:03d}.wav"
        path = (out / "noise" / "wav" / key).absolute()
        _write_audio(path, samples, settings.sample_rate)
        return key, str(path)

    items = [(kind, number) for kind in ("noise", "music", "speech") for number in range(settings.noises)]
    wavs = dict(map_threads(make, items, workers=workers, description="noises", block=1))
    write_table(out / "noise" / "wav.scp", wavs)
    write_table(out / "noise" / "utt2type", {key: key.partition("/")[0] for key in wavs})


def _write_rooms(out: Path, settings: _Settings, workers: int) -> None:
    """``OUT/rir``: room responses."""

    def make(number: int) -> tuple[str, str]:
        samples = room_response(settings.generator(ROOM, number), settings.sample_rate)
        path = (out / "rir" / "wav" / f"room-{number:03d}.wav").absolute()
        _write_audio(path, 0.9 * samples, settings.sample_rate)
        return f"rir/{path.name}", str(path)

    wavs = dict(map_threads(make, range(settings.noises), workers=workers, description="rooms", block=1))
    write_table(out / "rir" / "wav.scp", wavs)
    write_table(out / "rir" / "utt2type", dict.fromkeys(wavs, "rir"))


def _write_audio(path: Path, samples: Samples, rate: int) -> None:
    """16-bit FLAC or WAV, by the suffix, atomically."""
    with atomic_path(path) as temporary:
        soundfile.write(temporary, np.round(32767 * samples).astype(np.int16), rate, subtype="PCM_16")
