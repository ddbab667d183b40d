"""The store of voiceprints: what is kept of each voice, and the rules that every database keeps them by."""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from speakerkit.bundle import Bundle
from speakerkit.errors import ConfigError, DataError

Vector = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Match = Literal["mean", "exemplars"]

FORMAT = 1
UNKNOWN = "unknown"  # what an open-set search calls a stranger
LONGEST_NAME = 200  # characters
UNIT = 1e-6  # a vector whose length is this near to one is kept to the bit
EMPTY, ENROL = "holds no voices", "enrol one with `speakerkit enroll NAME a.wav --db DATABASE`"
BLOCK = 16_384  # rows that are read at once
MOST_VALUES = 30_000  # of a statement: SQLite takes 32 766, PostgreSQL 65 535
# Tables of both databases; what differs between them stands in braces.
SCHEMA = (
    "CREATE TABLE state (format INTEGER NOT NULL, generation BIGINT NOT NULL)",
    "CREATE TABLE voices (id {identity}, name TEXT NOT NULL UNIQUE, vector {vector} NOT NULL, changed BIGINT NOT NULL)",
    "CREATE INDEX voices_changed ON voices (changed)",
    "CREATE TABLE enrolments (id {identity}, voice BIGINT NOT NULL REFERENCES voices (id), vector {vector} NOT NULL, "
    "model TEXT NOT NULL, dimension INTEGER NOT NULL, normalisation TEXT NOT NULL, magnitude {real} NOT NULL, "
    "seconds {real} NOT NULL, speech {real} NOT NULL, sha256 TEXT NOT NULL, source TEXT NOT NULL, "
    "created TEXT NOT NULL, UNIQUE (voice, sha256))",
    "CREATE INDEX enrolments_sha256 ON enrolments (sha256)",
    "INSERT INTO state (format, generation) VALUES ({format}, 0)",
)


class NoDatabase(DataError):
    """There is no database of voiceprints at this place; one that cannot be opened is another matter."""


@dataclass(frozen=True)
class ModelStamp:
    """Where a vector comes from: SHA-256 of the model, its dimension, and what was done to its length."""

    digest: str
    dimension: int
    normalisation: str = "length"

    @classmethod
    def of(cls, bundle: Bundle) -> ModelStamp:
        """The stamp of what ``bundle`` makes."""
        return cls(bundle.digest(), bundle.config.embedding_size)

    def __str__(self) -> str:
        return f"{self.digest[:12]} ({self.dimension} values)"


@dataclass(frozen=True, eq=False)
class Enrolment:
    """One recording of a voice.

    Attributes:
        vector: (dim,) float32 of length one.
        magnitude: length of the embedding before that, a measure of its quality.
        seconds: length of the audio.
        speech: seconds of it that are loud enough to be speech; 0 where nobody measured.
        sha256: of the recording's bytes; the same recording counts once for a voice.
        source: path that it was enrolled from.
        created: time, ISO 8601 in UTC.
    """

    vector: Vector
    magnitude: float
    seconds: float
    speech: float
    sha256: str
    source: str
    created: str

    @classmethod
    def from_embedding(
        cls, embedding: npt.ArrayLike, seconds: float, sha256: str, source: str, speech: float = 0.0
    ) -> Enrolment:
        """Enrolment of now, by an embedding (dim,) of any length.

        Raises:
            DataError: the embedding has no direction.
        """
        vector, magnitude = unit(embedding, source)
        source = os.fsencode(source).decode("utf-8", "backslashreplace")  # a path need not be text, what is kept must
        return cls(vector, magnitude, seconds, speech, sha256, source, now())


def now() -> str:
    """The time, ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Voice:
    """An enrolled voice: its recordings, their seconds (of audio, and of speech) together, and when the first came."""

    name: str
    recordings: int
    seconds: float
    speech: float
    created: str


@dataclass(frozen=True)
class Added:
    """What an enrolment changed.

    Attributes:
        voice: as it is now.
        new: recordings added.
        known: sources that the voice had already.
        shared: names of other voices that hold one of the recordings.
    """

    voice: Voice
    new: int
    known: tuple[str, ...]
    shared: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Vectors (rows, dim) and the voice (rows,) that each belongs to."""

    ids: Ids
    vectors: Vector


class CandidateIndex(Protocol):
    """What proposes voices near to a vector; the cosines themselves are computed from the store.

    Attributes:
        generation: of the store when it was built; ``None`` where it is always up to date.
    """

    generation: int | None

    def candidates(self, vector: Vector, count: int) -> Ids:
        """Up to ``count`` voices, the same one perhaps several times; fewer mean that there are no more."""


class VoiceStore(ABC):
    """Voices and their recordings in a database. All vectors in it come from one model.

    Every change is one transaction that raises the *generation* by one, and a voice keeps the generation of its last
    change: an index of an earlier generation knows what it has missed.

    Attributes:
        location: path or address without password; error messages name it.
    """

    location: str

    @abstractmethod
    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement with ``?`` for its values; returns what it yields."""

    @abstractmethod
    def _stream(self, sql: str, *values: object) -> Iterator[list[tuple[Any, ...]]]:
        """What a statement yields, ``BLOCK`` rows at a time."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[None]:
        """A transaction; only one writes at a time, the others wait."""

    @abstractmethod
    def _packed(self, vector: Vector) -> object:
        """A vector as the database takes it."""

    @abstractmethod
    def _unpacked(self, values: Sequence[Any], dimension: int) -> Vector:
        """Vectors (rows, dim) from what the database gives.

        Raises:
            DataError: one is of another size.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""

    def own_index(self, match: Match) -> CandidateIndex | None:
        """The search of the database itself; ``None`` where it has none."""
        return None

    def __enter__(self) -> VoiceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str, enrolments: Sequence[Enrolment], stamp: ModelStamp) -> Added:
        """Add recordings to a voice, new or not; those that it has already are passed over.

        Raises:
            ConfigError: a name that cannot be one.
            DataError: the store holds vectors of another model.
        """
        return next(iter(self.add_all([(name, enrolments)], stamp)))

    def add_all(self, entries: Iterable[tuple[str, Sequence[Enrolment]]], stamp: ModelStamp) -> list[Added]:
        """As :meth:`add`, of many voices: all of them or, where one is refused, none."""
        with self._writing():
            generation = self._advance()
            self.require_model(stamp, empty=True)
            return [self._add(check_name(name), enrolments, stamp, generation) for name, enrolments in entries]

    def _add(self, name: str, enrolments: Sequence[Enrolment], stamp: ModelStamp, generation: int) -> Added:
        voice = self._id(name)
        held = {item.sha256: item for item in self._enrolments(voice)} if voice >= 0 else {}
        fresh: dict[str, Enrolment] = {}
        known = []
        for item in enrolments:
            if item.vector.shape != (stamp.dimension,):
                fault = f"has an embedding of shape {item.vector.shape}, the model gives {stamp.dimension} values"
                raise DataError(item.source, fault, "embed it with that model")
            if item.sha256 in held or item.sha256 in fresh:
                known.append(item.source)
            else:
                fresh[item.sha256] = item
        together = {**held, **fresh}
        if not together:
            raise DataError(f"voice {name!r}", "is given no recordings", "give one or more")
        if fresh:
            # In the order of the hashes: the mean is the same to the bit, whatever came first.
            rows = np.stack([together[digest].vector for digest in sorted(together)])
            mean, _ = unit(rows.mean(axis=0, dtype=np.float64), f"voice {name!r}")
            self._insert(name, voice, mean, fresh.values(), stamp, generation)
        seconds, speech = (sum(getattr(item, key) for item in together.values()) for key in ("seconds", "speech"))
        created = min(item.created for item in together.values())
        return Added(
            Voice(name, len(together), seconds, speech, created),
            len(fresh),
            tuple(known),
            self._shared(name, enrolments),
        )

    def _insert(
        self,
        name: str,
        voice: int,
        mean: Vector,
        enrolments: Iterable[Enrolment],
        stamp: ModelStamp,
        generation: int,
    ) -> None:
        """Write a voice (``voice`` is negative for a new one) and what is new of its recordings."""
        vector = self._packed(mean)
        if voice < 0:
            ((voice,),) = self._rows(
                "INSERT INTO voices (name, vector, changed) VALUES (?, ?, ?) RETURNING id", name, vector, generation
            )
        else:
            self._rows("UPDATE voices SET vector = ?, changed = ? WHERE id = ?", vector, generation, voice)
        for item in enrolments:
            self._rows(
                "INSERT INTO enrolments (voice, vector, model, dimension, normalisation, magnitude, seconds, "
                "speech, sha256, source, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                voice,
                self._packed(item.vector),
                stamp.digest,
                stamp.dimension,
                stamp.normalisation,
                float(item.magnitude),
                float(item.seconds),
                float(item.speech),
                item.sha256,
                item.source,
                item.created,
            )

    def remove(self, *names: str) -> None:
        """Forget voices and all their recordings: all of them or, where one is not there, none.

        Raises:
            DataError: no voice of a name.
        """
        with self._writing():
            self._advance()
            for name in names:
                voice = self._known_id(name)
                self._rows("DELETE FROM enrolments WHERE voice = ?", voice)
                self._rows("DELETE FROM voices WHERE id = ?", voice)

    def rename(self, old: str, new: str) -> None:
        """Give a voice another name.

        Raises:
            ConfigError: a name that cannot be one.
            DataError: no voice of the old name, or one of the new.
        """
        new = check_name(new)
        with self._writing():
            self._advance()
            voice = self._known_id(old)
            if self._id(new) >= 0:
                raise DataError(
                    self.location, f"has a voice {new!r} already", "choose another name, or remove that one"
                )
            self._rows("UPDATE voices SET name = ? WHERE id = ?", new, voice)

    def stamp(self) -> ModelStamp | None:
        """The model that all vectors come from; ``None`` where there are none."""
        rows = self._rows("SELECT model, dimension, normalisation FROM enrolments LIMIT 1")
        return ModelStamp(*rows[0]) if rows else None

    def require_model(self, stamp: ModelStamp, *, empty: bool = False) -> None:
        """Raise DataError where the vectors come from another model, or (unless ``empty``) where there are none."""
        held = self.stamp()
        if held is None:
            if not empty:
                raise DataError(self.location, EMPTY, ENROL)
        elif held != stamp:
            fault = f"holds voiceprints of model {held}, not of {stamp}"
            raise DataError(self.location, fault, "use the model that made them, or enrol anew in another database")

    def generation(self) -> int:
        """How many changes there have been."""
        return int(self._rows("SELECT generation FROM state")[0][0])

    def _advance(self) -> int:
        return int(self._rows("UPDATE state SET generation = generation + 1 RETURNING generation")[0][0])

    def __len__(self) -> int:
        return int(self._rows("SELECT COUNT(*) FROM voices")[0][0])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._id(_normal(name)) >= 0

    def voice(self, name: str) -> Voice:
        """The voice of a name.

        Raises:
            DataError: there is none.
        """
        (values,) = self._rows(
            "SELECT COUNT(*), SUM(seconds), SUM(speech), MIN(created) FROM enrolments WHERE voice = ?",
            self._known_id(name),
        )
        return Voice(_normal(name), *values)

    def voices(self) -> list[Voice]:
        """All voices, by name."""
        rows = self._rows(
            "SELECT v.name, COUNT(*), SUM(e.seconds), SUM(e.speech), MIN(e.created) FROM voices v "
            "JOIN enrolments e ON e.voice = v.id GROUP BY v.id, v.name"
        )
        return sorted((Voice(*row) for row in rows), key=lambda voice: voice.name)

    def enrolments(self, name: str) -> list[Enrolment]:
        """The recordings of a voice, in the order in which they came.

        Raises:
            DataError: no voice of this name.
        """
        return self._enrolments(self._known_id(name))

    def _enrolments(self, voice: int) -> list[Enrolment]:
        rows = self._rows(
            "SELECT vector, magnitude, seconds, speech, sha256, source, created, dimension FROM enrolments "
            "WHERE voice = ? ORDER BY id",
            voice,
        )
        vectors = self._unpacked([row[0] for row in rows], rows[0][-1]) if rows else ()
        return [Enrolment(vector, *row[1:-1]) for vector, row in zip(vectors, rows, strict=True)]

    def cosine(self, name: str, vector: Vector, match: Match = "mean") -> float:
        """Cosine of a vector (dim,) of length one to a voice: to its mean, or to the nearest of its recordings.

        Raises:
            DataError: no voice of this name.
        """
        return self.cosines([self._known_id(name)], vector, match)[_normal(name)]

    def cosines(self, ids: Iterable[int], vector: Vector, match: Match = "mean") -> dict[str, float]:
        """As :meth:`cosine`, of the voices that are left of ``ids``, by name.

        Raises:
            DataError: a vector that is stored has not the length that all have.
        """
        wanted = sorted({int(voice) for voice in ids})
        if not wanted:
            return {}
        if len(wanted) > MOST_VALUES:
            halves = wanted[: len(wanted) // 2], wanted[len(wanted) // 2 :]
            return {name: cosine for half in halves for name, cosine in self.cosines(half, vector, match).items()}
        marks = ", ".join("?" * len(wanted))
        sql = (
            "SELECT v.name, v.vector FROM voices v"
            if match == "mean"
            else "SELECT v.name, e.vector FROM voices v JOIN enrolments e ON e.voice = v.id"
        )
        rows = self._rows(f"{sql} WHERE v.id IN ({marks})", *wanted)
        if not rows:
            return {}
        vectors = self._unpacked([row[1] for row in rows], len(vector)).astype(np.float64)
        if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < 10 * UNIT).all():
            raise DataError(self.location, "is damaged: a voiceprint is not of length one", "restore it from a copy")
        nearest: dict[str, float] = {}
        for (name, _), cosine in zip(rows, np.clip(vectors @ vector.astype(np.float64), -1.0, 1.0), strict=True):
            nearest[name] = max(float(cosine), nearest.get(name, -1.0))
        return nearest

    def blocks(self, match: Match = "mean", since: int = 0) -> Iterator[Block]:
        """The vectors of all voices that changed after generation ``since``: one a voice, or one a recording."""
        stamp = self.stamp()
        if stamp is None:
            return
        if match == "mean":
            sql = "SELECT id, vector FROM voices WHERE changed > ? ORDER BY id"
        else:
            sql = (
                "SELECT e.voice, e.vector FROM enrolments e JOIN voices v ON v.id = e.voice WHERE v.changed > ? "
                "ORDER BY e.id"
            )
        for rows in self._stream(sql, since):
            ids = np.fromiter((row[0] for row in rows), dtype=np.int64, count=len(rows))
            yield Block(ids, self._unpacked([row[1] for row in rows], stamp.dimension))

    def recordings(self) -> Iterator[tuple[str, Enrolment]]:
        """All recordings with the names of their voices."""
        sql = (
            "SELECT v.name, e.dimension, e.vector, e.magnitude, e.seconds, e.speech, e.sha256, e.source, e.created "
            "FROM enrolments e JOIN voices v ON v.id = e.voice ORDER BY e.id"
        )
        for row in chain.from_iterable(self._stream(sql)):
            yield row[0], Enrolment(self._unpacked([row[2]], row[1])[0], *row[3:])

    def means(self) -> Iterator[tuple[str, Vector]]:
        """The mean (dim,) of each voice, of length one, with its name."""
        stamp = self.stamp()
        if stamp is not None:
            for name, vector in chain.from_iterable(self._stream("SELECT name, vector FROM voices ORDER BY id")):
                yield name, self._unpacked([vector], stamp.dimension)[0]

    def _id(self, name: str) -> int:
        """The number of a voice, -1 where there is none; numbers are never used again."""
        rows = self._rows("SELECT id FROM voices WHERE name = ?", name)
        return int(rows[0][0]) if rows else -1

    def _known_id(self, name: str) -> int:
        voice = self._id(_normal(name))
        if voice < 0:
            raise DataError(self.location, f"has no voice {name!r}", "see `speakerkit voices list`")
        return voice

    def _shared(self, name: str, enrolments: Sequence[Enrolment]) -> tuple[str, ...]:
        found: set[str] = set()
        for digest in {enrolment.sha256 for enrolment in enrolments}:
            rows = self._rows(
                "SELECT v.name FROM voices v JOIN enrolments e ON e.voice = v.id WHERE e.sha256 = ? AND v.name <> ?",
                digest,
                name,
            )
            found.update(row[0] for row in rows)
        return tuple(sorted(found))


def unit(vector: npt.ArrayLike, source: str | Path) -> tuple[Vector, float]:
    """A vector (dim,) scaled to length one, and the length that it had.

    Raises:
        DataError: its length is zero or not finite.
    """
    values = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(values))
    if not (np.isfinite(length) and length > 0):
        raise DataError(source, "has an embedding without a direction (zero or not finite)", "embed it again")
    if abs(length - 1) > UNIT:
        values = values / length
    return values.astype(np.float32), length


def check_name(name: str) -> str:
    """The name of a voice in Unicode's composed form, so that two spellings that look alike are one.

    Raises:
        ConfigError: empty, too long, reserved, or not printable text without blanks at its ends.
    """
    name = _normal(name)
    if name == UNKNOWN:
        raise ConfigError(f"voice {name!r}", "is what strangers are called", "choose another name")
    if not name or name != name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        remedy = f"a name is 1 to {LONGEST_NAME} printable characters without blanks at its ends"
        raise ConfigError(f"voice {name[:LONGEST_NAME]!r}", "has a name that cannot be used", remedy)
    return name


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def open_store(location: str | Path, *, create: bool = False) -> VoiceStore:
    """Open a SQLite file, or a PostgreSQL database by its ``postgresql://`` address.

    Args:
        location: path or address.
        create: make it where there is none.

    Raises:
        NoDatabase: it is not there.
        DataError: it is damaged, cannot be reached, or is something else.
        MissingExtraError: PostgreSQL without its driver.
    """
    if str(location).startswith(("postgresql://", "postgres://")):
        from speakerkit.verification.voiceprints.postgres import PostgresStore

        return PostgresStore(str(location), create=create)
    from speakerkit.verification.voiceprints.sqlite import SqliteStore

    return SqliteStore(location, create=create)
