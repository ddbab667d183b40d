"""JSON and CSV: turns of any number of recordings, for programs and spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from speakerkit.diarization.formats.text import (
    LONGEST_RECORDING,
    Collected,
    Place,
    by_key,
    escape,
    read_text,
    rounded,
    stem,
    unescape,
)
from speakerkit.diarization.turns import Diarization, Speaker, Turn
from speakerkit.errors import DataError

JSON_FORMAT = "speakerkit-diarization-1"
COLUMNS = ("recording", "channel", "start", "end", "speaker", "confidence")
REQUIRED = ("start", "end", "speaker")


def write_json(diarizations: Iterable[Diarization], embeddings: bool = False) -> str:
    """JSON: ``format`` and ``recordings``, each with its turns, speakers and settings; ``null`` for what is not known.

    Args:
        embeddings: write the speakers' voices too; they identify people, so not unless asked.

    Raises:
        DataError: settings that JSON cannot hold.
    """
    recordings = [_recording(rounded(each), embeddings) for each in diarizations]
    value = {"format": JSON_FORMAT, "recordings": recordings}
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError("settings", f"cannot be written as JSON ({error})", "keep to text and numbers") from None


def _recording(diarization: Diarization, embeddings: bool) -> dict[str, Any]:
    return {
        "recording": diarization.recording,
        "channel": diarization.channel,
        "duration": diarization.duration,
        "speakers": [_speaker(each, embeddings) for each in diarization.speakers.values()],
        "turns": [
            {"start": turn.start, "end": turn.end, "speaker": turn.speaker, "confidence": turn.confidence}
            for turn in diarization.turns
        ],
        "settings": dict(diarization.settings),
    }


def _speaker(speaker: Speaker, embeddings: bool) -> dict[str, Any]:
    cosine = None if speaker.cosine is None else float(speaker.cosine)
    found: dict[str, Any] = {"label": speaker.label, "cosine": cosine}
    if embeddings and speaker.embedding is not None:
        found["embedding"] = speaker.embedding.tolist()
    return found


def read_json(path: str | Path) -> dict[str, Diarization]:
    """Recordings of a JSON file as :func:`write_json` writes it.

    Raises:
        DataError: not such a file; turns are named by their number, from 1.
    """
    text = read_text(path)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise Place(path, error.lineno).error(f"is no JSON ({error.msg})", "write it again") from None
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"is no usable JSON ({str(error)[:100]})", "write it again") from None
    recordings = value.get("recordings") if isinstance(value, dict) else None
    if not isinstance(recordings, list) or value.get("format") != JSON_FORMAT:
        raise DataError(path, f"is not of format {JSON_FORMAT!r}", "convert it to a format that is read")
    return by_key((_read_recording(path, each) for each in recordings), path)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _read_recording(path: str | Path, value: Any) -> Diarization:
    if not isinstance(value, dict) or not isinstance(value.get("recording"), str) or not value["recording"]:
        raise DataError(path, "has a recording without name", "each has one")
    name, channel, duration = value["recording"], value.get("channel", 1), value.get("duration")
    if isinstance(channel, bool) or not isinstance(channel, int) or channel < 0:
        raise DataError(path, f"{name[:200]!r} has the channel {str(channel)[:50]}", "channels are numbers")
    duration = None if duration is None else _number(path, f"{name[:200]!r} has the duration", duration)
    settings = value.get("settings", {})
    if not isinstance(settings, dict):
        raise DataError(path, f"{name[:200]!r} has settings that are no object", "write them as names and values")
    listed = _list(path, name, value, "turns")
    turns = tuple(_read_turn(path, f"turn {number} of {name[:200]!r}", each) for number, each in enumerate(listed, 1))
    speakers = [_read_speaker(path, name, each) for each in _list(path, name, value, "speakers")]
    by_label = {speaker.label: speaker for speaker in speakers}
    beyond = [turn for turn in turns if duration is not None and turn.end > duration]
    if beyond:
        fault = f"{name[:200]!r} has a turn to {beyond[0].end:g} s, but lasts {duration:g} s"
        raise DataError(path, fault, "mend one of them")
    return Diarization(name, turns, duration, channel, by_label, settings)


def _list(path: str | Path, name: str, value: dict[str, Any], key: str) -> list[Any]:
    listed = value.get(key, [])
    if not isinstance(listed, list):
        raise DataError(path, f"{name[:200]!r} has {key} that are no list", "write them as a list")
    return listed


def _read_turn(path: str | Path, subject: str, value: Any) -> Turn:
    if not isinstance(value, dict) or not isinstance(value.get("speaker"), str) or not value["speaker"]:
        raise DataError(path, f"{subject} has no speaker", "each turn has start, end and speaker")
    start, end = (_number(path, f"{subject} has the {key}", value.get(key)) for key in ("start", "end"))
    if end < start:
        raise DataError(path, f"{subject} ends ({end:g} s) before it starts ({start:g} s)", "swap the times")
    confidence = value.get("confidence")
    if confidence is not None:
        confidence = _number(path, f"{subject} has the confidence", confidence, most=1.0)
    return Turn(start, end, value["speaker"], confidence)


def _number(path: str | Path, subject: str, value: Any, least: float = 0.0, most: float = LONGEST_RECORDING) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise DataError(path, f"{subject} {str(value)[:50]}", f"it is a number between {least:.0f} and {most:.0f}")
    return float(value)


def _read_speaker(path: str | Path, name: str, value: Any) -> Speaker:
    label = value.get("label") if isinstance(value, dict) else None
    if not isinstance(label, str) or not label:
        raise DataError(path, f"{name[:200]!r} has a speaker without label", "each has one")
    subject = f"speaker {label[:200]!r} of {name[:200]!r} has the"
    cosine, voice = value.get("cosine"), value.get("embedding")
    cosine = None if cosine is None else _number(path, f"{subject} cosine", cosine, -1.0, 1.0)
    return Speaker(label, None if voice is None else _embedding(path, subject, voice), cosine)


def _embedding(path: str | Path, subject: str, values: Any) -> npt.NDArray[np.float32]:
    if not isinstance(values, list) or not values:
        raise DataError(path, f"{subject} embedding {str(values)[:50]}", "it is a list of numbers")
    largest = float(np.finfo(np.float32).max)
    numbers = [_number(path, f"{subject} embedding's value", value, -largest, largest) for value in values]
    return np.array(numbers, dtype=np.float32)


def write_csv(diarizations: Iterable[Diarization]) -> str:
    """CSV with a header (``recording,channel,start,end,speaker,confidence``)."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in map(rounded, diarizations):
        for turn in each.turns:
            confidence = "" if turn.confidence is None else f"{turn.confidence:.3f}"
            times = (f"{turn.start:.3f}", f"{turn.end:.3f}")
            writer.writerow([escape(each.recording), each.channel, *times, escape(turn.speaker), confidence])
    return stream.getvalue()


def read_csv(path: str | Path) -> dict[str, Diarization]:
    """Turns of a CSV file with a header; ``start``, ``end`` and ``speaker`` must be there, in any order.

    Raises:
        DataError: no such header, or a row that does not fit it.
    """
    found = Collected(path)
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if not set(REQUIRED) <= set(header):
            raise Place(path, 1).error(
                "is no header with start, end and speaker", f"columns are {', '.join(COLUMNS)}, divided by commas"
            )
        for cells in reader:
            if cells:
                _read_row(found, Place(path, reader.line_num), header, cells)
    except csv.Error as error:
        raise Place(path, reader.line_num).error(f"is no CSV ({error})", "write it again") from None
    return found.diarizations()


def _read_row(found: Collected, place: Place, header: list[str], cells: list[str]) -> None:
    if len(cells) != len(header):
        raise place.error(f"has {len(cells)} columns", f"the header has {len(header)}")
    row = dict(zip(header, cells, strict=True))
    start, end = place.seconds(row["start"].strip()), place.seconds(row["end"].strip())
    channel = place.channel(row.get("channel", "").strip())
    turn = place.turn(start, end, unescape(row["speaker"]), place.confidence(row.get("confidence", "").strip()))
    found.add(unescape(row.get("recording", "")) or stem(found.path), turn, channel)
