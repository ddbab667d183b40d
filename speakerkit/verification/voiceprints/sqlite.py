"""Voiceprints in one SQLite file: nothing to install, and several processes may enrol at once."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speakerkit.errors import DataError, first_line
from speakerkit.verification.voiceprints.store import (
    BLOCK,
    ENROL,
    FORMAT,
    SCHEMA,
    Match,
    NoDatabase,
    Vector,
    VoiceStore,
)

APPLICATION = 0x53504B56  # "SPKV", in the header of the file: a database of another program is told from ours
PATIENCE = 60.0  # seconds that a writer waits for another
KINDS = {
    "identity": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "vector": "BLOB",  # float32, little-endian
    "real": "REAL",
    "format": str(FORMAT),
}
INDEXES = "CREATE TABLE indexes (match TEXT PRIMARY KEY, token TEXT NOT NULL, generation INTEGER NOT NULL)"


@dataclass(frozen=True)
class IndexNote:
    """What a database knows of the index beside it: a token in the name of its file, and its own generation then.

    A file that the database does not know, of an earlier database at this place or a copy put back, is never used.
    """

    token: str
    generation: int


class SqliteStore(VoiceStore):
    """A store in one file, with write-ahead logging: readers never wait, and a killed writer leaves no trace.

    Args:
        path: the file; only its owner may read one that is made here, since voices are personal data.
        create: make it where there is none.

    Raises:
        NoDatabase: no file (without ``create``).
        DataError: a damaged one, or one of another program.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.location = str(path)
        self._path = Path(path).absolute()  # SQLite takes some relative names, as ":memory:", for other things
        if os.path.isdir(path):
            raise DataError(path, "is a directory", "name the database file")
        if not create and not os.path.exists(path):
            raise NoDatabase(path, "no such database", ENROL)
        with self._refusing():
            if create:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None)
            try:
                self._prepare(create)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, create: bool) -> None:
        self._connection.execute("PRAGMA secure_delete = ON")  # a removed voice is overwritten, not only unlinked
        if create:
            self._make()
        ((application,), (version,)) = (self._rows(f"PRAGMA {name}")[0] for name in ("application_id", "user_version"))
        if application != APPLICATION:
            raise DataError(self.location, "is no database of voiceprints", "name another file")
        if version != FORMAT:
            raise DataError(self.location, f"is of format {version}, not {FORMAT}", "use the version that wrote it")

    def _make(self) -> None:
        """Create the tables, unless another process has."""
        if self._rows("SELECT COUNT(*) FROM sqlite_master")[0][0]:
            return
        self._write_ahead()
        with self._writing():
            if not self._rows("SELECT COUNT(*) FROM sqlite_master")[0][0]:
                for statement in (*SCHEMA, INDEXES):
                    self._connection.execute(statement.format_map(KINDS))
                self._connection.execute(f"PRAGMA application_id = {APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    def _write_ahead(self) -> None:
        """Switch to write-ahead logging; SQLite refuses at once, without waiting, where two ask at one moment."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def remove(self, *names: str) -> None:
        """As the base class; the log that still holds the voices is emptied into the file.

        Indexes of a database without voices go too.
        """
        super().remove(*names)
        if not len(self):
            for match, note in self._index_notes().items():
                self.index_path(match, note).unlink(missing_ok=True)
            self._rows("DELETE FROM indexes")
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def index_note(self, match: Match) -> IndexNote | None:
        """Of the index that was last built here; ``None`` where none was."""
        return self._index_notes().get(match)

    def _index_notes(self) -> dict[Match, IndexNote]:
        rows = self._rows("SELECT match, token, generation FROM indexes")
        return {match: IndexNote(token, generation) for match, token, generation in rows}

    def note_index(self, match: Match, note: IndexNote) -> None:
        """Note an index in the place of an earlier one."""
        with self._writing():
            self._rows("INSERT OR REPLACE INTO indexes VALUES (?, ?, ?)", match, note.token, note.generation)

    def index_path(self, match: Match, note: IndexNote) -> Path:
        """The index's file."""
        return Path(f"{self.location}.{match}.{note.token}.faiss")

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._refusing():
            return self._connection.execute(sql, values).fetchall()

    def _stream(self, sql: str, *values: object) -> Iterator[list[tuple[Any, ...]]]:
        with self._refusing(), closing(self._connection.execute(sql, values)) as cursor:
            while rows := cursor.fetchmany(BLOCK):
                yield rows

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            fault = f"cannot be used ({first_line(error)})"
            remedy = "check the path, the disk and the permissions of its folder, and whether another program holds it"
            raise DataError(self.location, fault, remedy) from None
        except (sqlite3.Error, UnicodeError) as error:
            fault = f"is damaged or no database ({first_line(error)})"
            raise DataError(self.location, fault, "restore it from a copy, or enrol into another file") from None
        except (OSError, ValueError) as error:
            raise DataError(self.location, f"cannot be opened ({first_line(error)})", "check the path") from None

    def _packed(self, vector: Vector) -> bytes:
        return vector.astype("<f4").tobytes()

    def _unpacked(self, values: Sequence[Any], dimension: int) -> Vector:
        if any(not isinstance(value, bytes) or len(value) != 4 * dimension for value in values):
            fault = f"is damaged: a voiceprint does not hold {dimension} values"
            raise DataError(self.location, fault, "restore it from a copy")
        return np.frombuffer(b"".join(values), dtype="<f4").reshape(len(values), dimension)
