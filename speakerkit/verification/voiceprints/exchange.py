"""Voiceprints out of a store and into another, of length one, so that inner products are cosines."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from speakerkit.data.ark import Embeddings, Vectors, embedding_path, read_embeddings, write_embeddings
from speakerkit.data.lists import read_lines
from speakerkit.errors import DataError
from speakerkit.files import write_json, write_lines
from speakerkit.verification.voiceprints.store import Added, Enrolment, Match, ModelStamp, VoiceStore, now, unit


@dataclass(frozen=True)
class _Row:
    """One exported vector's line in ``STEM.voices.jsonl``."""

    key: str
    name: str
    details: dict[str, Any]

    def line(self) -> str:
        return json.dumps({"key": self.key, "name": self.name, **self.details}, ensure_ascii=False)


@dataclass(frozen=True)
class VoiceFile:
    """What a file holds: the recordings of each voice, by name, and the model that made the vectors."""

    stamp: ModelStamp
    voices: dict[str, list[Enrolment]]

    def add_to(self, store: VoiceStore) -> list[Added]:
        """Add all of it to a store or, where something is refused, nothing."""
        return store.add_all(self.voices.items(), self.stamp)


def export_voices(store: VoiceStore, path: str | Path, format: str | None = None, match: Match = "mean") -> Path:
    """Write the vectors of all voices, and what is known of them beside.

    Beside the vectors stand ``STEM.model.json`` (the model's hash, dimension, normalisation) and
    ``STEM.voices.jsonl`` (for each key: name, seconds of audio and of speech, hash and source of
    the recording, time). A key is the name,
    blanks percent-encoded; with "exemplars", the name, a slash, and the recording's hash.

    Args:
        store: what to write.
        path: file, or a stem where ``format`` is given.
        format: as for :func:`~speakerkit.data.ark.write_embeddings`.
        match: "mean" writes one vector a voice; "exemplars" one a recording, which loses nothing.

    Returns:
        the file that names the vectors.

    Raises:
        DataError: an empty store, or a path that names no format.
    """
    stamp = store.stamp()
    if stamp is None:
        raise DataError(store.location, "holds no voices", "enrol one with `speakerkit enroll NAME a.wav`")
    rows, vectors = _mean_rows(store) if match == "mean" else _exemplar_rows(store)
    path = embedding_path(path, format)
    for name in ("model.json", "voices.jsonl"):
        _beside(path, name).unlink(missing_ok=True)
    embeddings = Embeddings([row.key for row in rows], np.stack(vectors), store.location)
    write_embeddings(path, embeddings)
    write_lines(_beside(path, "voices.jsonl"), (row.line() for row in sorted(rows, key=lambda row: row.key)))
    note = {"sha256": stamp.digest, "dimension": stamp.dimension, "normalisation": stamp.normalisation}
    write_json(_beside(path, "model.json"), note)
    return path


def read_voices(
    path: str | Path, *, stamp: ModelStamp | None = None, speakers: Mapping[str, str] | None = None
) -> VoiceFile:
    """Read vectors for a store: an export of :func:`export_voices`, or embeddings of ``speakerkit embed``.

    Without ``STEM.voices.jsonl`` a key is the name of its voice, and the hash of the vector stands for that of the
    recording.

    Args:
        path: npy, npz, jsonl, scp or ark.
        stamp: model that made the vectors; needed where ``STEM.model.json`` does not tell.
        speakers: key to name of a voice (``utt2spk``), for files without ``STEM.voices.jsonl``.

    Raises:
        DataError: malformed files, or vectors of a model that is not known or not ``stamp``.
    """
    path = Path(path)
    embeddings = read_embeddings(path)
    stamp = _stamp_of(path, embeddings.dim, stamp)
    details = _read_details(_beside(path, "voices.jsonl"))
    voices: dict[str, list[Enrolment]] = {}
    for key, vector in zip(embeddings.keys, embeddings.vectors, strict=True):
        row = details.get(key, {})
        name = row.get("name") or (unquote(key) if speakers is None else speakers.get(key, ""))
        if not name:
            raise DataError(path, f"key {key!r} has no speaker", "give each key one in utt2spk")
        voices.setdefault(name, []).append(_enrolment(key, vector, row, path))
    return VoiceFile(stamp, voices)


def _mean_rows(store: VoiceStore) -> tuple[list[_Row], list[Vectors]]:
    voices = {voice.name: voice for voice in store.voices()}
    rows, vectors = [], []
    for name, vector in store.means():
        voice = voices.get(name)
        if voice is None:
            continue  # enrolled or renamed this moment
        details = {
            "seconds": voice.seconds,
            "speech": voice.speech,
            "recordings": voice.recordings,
            "created": voice.created,
        }
        rows.append(_Row(_key(name), name, details))
        vectors.append(vector)
    return rows, vectors


def _exemplar_rows(store: VoiceStore) -> tuple[list[_Row], list[Vectors]]:
    rows, vectors = [], []
    for name, item in store.recordings():
        details = {
            "seconds": item.seconds,
            "speech": item.speech,
            "recordings": 1,
            "created": item.created,
            "sha256": item.sha256,
            "source": item.source,
            "magnitude": item.magnitude,
        }
        rows.append(_Row(f"{_key(name)}/{item.sha256}", name, details))
        vectors.append(item.vector)
    return rows, vectors


def _key(name: str) -> str:
    """A name without blanks; letters of every script stay as they are."""
    return "".join(quote(letter) if letter.isspace() or letter == "%" else letter for letter in name)


def _enrolment(key: str, vector: Vectors, row: Mapping[str, Any], path: Path) -> Enrolment:
    direction, length = unit(vector, f"{path}: {key}")
    try:
        return Enrolment(
            direction,
            _amount(row.get("magnitude", length)),
            _amount(row.get("seconds", 0.0)),
            _amount(row.get("speech", 0.0)),
            str(row.get("sha256") or hashlib.sha256(direction.tobytes()).hexdigest()),
            str(row.get("source", f"{path.name}: {key}")),
            str(row.get("created") or now()),
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            _beside(path, "voices.jsonl"), f"has bad details of {key!r} ({error})", "export again"
        ) from None


def _amount(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{number} is no length")
    return number


def _read_details(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    details = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = json.loads(line)
            if not all(isinstance(row[name], str) and row[name] for name in ("key", "name")):
                raise ValueError("key or name is no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(path, f"line {number} tells of no voiceprint ({error!r})", "export again") from None
        details[row["key"]] = row
    return details


def _stamp_of(path: Path, dimension: int, given: ModelStamp | None) -> ModelStamp:
    """The model that made the vectors of a file: as its note says, and as was given."""
    note_path = _beside(path, "model.json")
    if note_path.exists():
        try:
            note = json.loads(note_path.read_text(encoding="utf-8"))
            noted = ModelStamp(note["sha256"], dimension)
            if not isinstance(noted.digest, str) or note.get("dimension", dimension) != dimension:
                raise ValueError("wrong kind of value")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise DataError(note_path, f"does not tell which model made {path.name}", "embed or export again") from None
    elif given is None:
        remedy = "give the model that made them with --model"
        raise DataError(path, f"has no {note_path.name} beside it, so its model is not known", remedy)
    else:
        noted = ModelStamp(given.digest, dimension)
    if given is not None and noted != given:
        raise DataError(path, f"holds vectors of model {noted}, not of {given}", "embed the recordings with this model")
    return noted


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}.{name}")
