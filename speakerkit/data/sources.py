"""Recordings of single speakers that something is mixed from: which there are, and where in them is speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speakerkit.audio import Samples, load_audio, require_signal
from speakerkit.data.lists import (
    Utterance,
    command_of,
    open_entry,
    read_data_dir,
    read_lines,
    read_table,
    read_utterance_list,
)
from speakerkit.data.shards import ShardMember, read_member, read_shard_list
from speakerkit.data.stores import AudioStore
from speakerkit.errors import AudioError, DataError

Span = tuple[float, float]
Voice = Utterance | ShardMember  # a recording of one speaker, wherever it lies

GENDERS = "spk2gender"  # speaker to m or f, in a Kaldi directory
LONGEST_PAUSE = 0.3  # seconds of silence that belong to speech; annotators join across about as much
WINDOW = 0.01  # seconds, of the energy that tells speech from silence
LOUDEST = 0.05  # seconds, of the sound that the others are compared with
BELOW = 30.0  # dB under the loudest sound of an utterance, from which on it is silence
MARGIN = 0.05  # seconds kept around what is loud
READ = 0.01  # seconds of each noise and response that show whether it can be read


def read_sources(path: str | Path, allow_pipes: bool = False) -> list[Utterance]:
    """Utterances of a Kaldi directory or raw list, all of whose files are there.

    Raises:
        DataError: a bad list, or files that are missing, counted and the first named.
    """
    path = Path(path)
    utterances = read_utterance_list(path, allow_pipes) if path.is_file() else read_data_dir(path, allow_pipes)
    features = next((each.key for each in utterances if not each.wav), None)
    if features is not None:
        raise DataError(path, f"{features!r} is features, which cannot be mixed", "give a list of audio")
    missing = [each.wav for each in utterances if not command_of(each.wav) and not Path(each.wav).is_file()]
    if missing:
        raise DataError(path, f"names {len(missing)} files that are not there, {missing[0]} first", "check the paths")
    return utterances


def read_voices(path: str | Path, allow_pipes: bool = False) -> list[Voice]:
    """As :func:`read_sources`; ``path`` may also be a ``shard.list``.

    Raises:
        DataError: as :func:`read_sources` and :func:`speakerkit.data.shards.read_shard_list`.
    """
    path = Path(path)
    if path.is_file() and not "".join(read_lines(path)[:1]).startswith("{"):
        return list(read_shard_list(path, allow_pipes=allow_pipes))
    return list(read_sources(path, allow_pipes))


def read_genders(path: str | Path) -> dict[str, str]:
    """Speaker to "M" or "F", of a Kaldi ``spk2gender`` or LibriSpeech's ``SPEAKERS.TXT``.

    Raises:
        DataError: neither.
    """
    lines = [line for line in read_lines(path) if not line.startswith(";")]
    if any("|" in line for line in lines):
        rows = [[field.strip() for field in line.split("|")] for line in lines]
        table = {row[0]: row[1] for row in rows if len(row) > 2}
    else:
        table = read_table(path)
    genders = {speaker: gender[:1].upper() for speaker, gender in table.items()}
    strange = next((speaker for speaker, gender in genders.items() if gender not in ("M", "F")), None)
    if strange is not None or not genders:
        fault = "names no speakers" if strange is None else f"says that {strange!r} is {table[strange]!r}"
        raise DataError(path, fault, "give SPEAKERS.TXT, or lines: speaker m|f")
    return genders


def load_speech(voice: Voice, rate: int) -> tuple[Samples, tuple[Span, ...]]:
    """A whole recording, (samples,) at ``rate`` Hz, and where in it is speech: what it says itself, or its energy.

    Raises:
        AudioError: it cannot be read, is silent or holds no speech.
    """
    name = f"{voice.key} in {voice.shard}" if isinstance(voice, ShardMember) else voice.wav
    try:
        source = read_member(voice) if isinstance(voice, ShardMember) else open_entry(voice.wav)
        audio = load_audio(source, rate)
    except AudioError as error:
        raise AudioError(name, error.fault, error.remedy) from None
    require_signal(audio, name)
    spans = voice.vad if isinstance(voice, Utterance) and voice.vad else speech_spans(audio.samples, rate)
    if not any(audio.samples[round(start * rate) : round(end * rate)].any() for start, end in spans):
        raise AudioError(name, "holds no speech", "drop it, or correct its segments")
    return audio.samples, spans


def require_recordings(store: AudioStore) -> AudioStore:
    """The store, every recording of which can be opened.

    Raises:
        DataError: some cannot, counted and the first named.
    """
    faults = []
    for key in store:
        try:
            store.read(key, 16000, duration=READ)
        except AudioError as error:
            faults.append(f"{error.subject}: {error.fault}")
    if faults:
        raise DataError(store.name, f"{len(faults)} recordings cannot be read, the first {faults[0]}", "check them")
    return store


def speech_spans(samples: Samples, rate: int) -> tuple[Span, ...]:
    """Where a clean utterance is speech: (start, end) in seconds, sorted and disjoint.

    Speech is what lies less than 30 dB under the loudest 50 ms, with 50 ms around it; pauses of up to 0.3 s belong to
    it. Unlike a detector of speech this needs no background to compare with: that there is speech is given. It does for
    read speech and telephone speech; for noisier utterances, give the segments of a detector.
    """
    window = max(1, round(WINDOW * rate))
    count = -(-len(samples) // window)
    padded = np.pad(samples.astype(np.float64), (0, count * window - len(samples)))
    power = np.square(padded.reshape(count, window)).mean(axis=1)  # (windows,)
    size = min(count, round(LOUDEST / WINDOW))
    loudest = np.convolve(power, np.ones(size) / size, mode="valid").max(initial=0.0)
    if not loudest:
        return ()
    loud = (power > loudest * 10 ** (-BELOW / 10)).astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud, [0]])))
    seconds = len(samples) / rate
    spans: list[Span] = []
    for first, last in edges.reshape(-1, 2).tolist():
        start, end = max(0.0, first * window / rate - MARGIN), min(seconds, last * window / rate + MARGIN)
        if spans and start - spans[-1][1] <= LONGEST_PAUSE - 2 * MARGIN:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
    return tuple(spans)
