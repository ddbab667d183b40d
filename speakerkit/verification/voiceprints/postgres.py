"""Voiceprints on a PostgreSQL server, for many machines; with pgvector the server searches by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from speakerkit.errors import DataError, MissingExtraError, first_line
from speakerkit.verification.voiceprints.store import (
    BLOCK,
    EMPTY,
    ENROL,
    FORMAT,
    SCHEMA,
    Ids,
    Match,
    NoDatabase,
    Vector,
    VoiceStore,
)

PATIENCE = 10  # seconds for the server to answer
LONGEST_WAIT = "60s"  # of a writer for another
LOCK = 0x53504B56  # advisory lock: one makes the tables, others wait
REAL_ARRAY = 1021  # number of the type REAL[], the same on every server
HEADER = 20  # bytes before the elements of a one-dimensional array in PostgreSQL's binary format
ELEMENT = np.dtype([("size", ">i4"), ("value", ">f4")])
LARGEST_INDEXED = 2000  # values: pgvector's limit for an index
MOST_CANDIDATES = 1000  # pgvector's limit of hnsw.ef_search
KINDS = {
    "identity": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "vector": "REAL[]",
    "real": "DOUBLE PRECISION",
    "format": str(FORMAT),
}
COLUMNS = {"mean": ("voices", "id"), "exemplars": ("enrolments", "voice")}


class PostgresStore(VoiceStore):
    """A store in the schema ``speakerkit`` of a database.

    Vectors are plain ``REAL[]``: a server without pgvector will do, and is then searched from here.

    Args:
        url: ``postgresql://user:password@host:port/database``.
        create: make the schema, and pgvector's extension where the server has it and lets us.

    Raises:
        NoDatabase: it holds no voiceprints (without ``create``).
        DataError: the server cannot be reached, or refuses.
        MissingExtraError: psycopg is not installed.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        self._psycopg = _driver()
        self._url, self.location = url, _without_password(url)
        # A server without an encoding of its own (SQL_ASCII) would hand out bytes for text.
        settings: dict[str, Any] = {"autocommit": True, "client_encoding": "utf8"}
        if "connect_timeout" not in url:
            settings["connect_timeout"] = PATIENCE
        with self._refusing():
            self._connection = self._psycopg.connect(url, **settings)
        try:
            self._prepare(create)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, create: bool) -> None:
        self._register_arrays()
        self._rows("SELECT set_config('lock_timeout', ?, false)", LONGEST_WAIT)
        if create:
            self._make()
        if not self._rows("SELECT to_regclass('speakerkit.state') IS NOT NULL")[0][0]:
            raise NoDatabase(self.location, "holds no voiceprints", ENROL)
        extension = self._rows(
            "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
            "WHERE e.extname = 'vector'"
        )
        self.has_pgvector = bool(extension)
        self._rows("SELECT set_config('search_path', ?, false)", ", ".join(["speakerkit", *(s for (s,) in extension)]))
        version = self._rows("SELECT format FROM state")[0][0]
        if version != FORMAT:
            raise DataError(self.location, f"is of format {version}, not {FORMAT}", "use the version that wrote it")

    def _register_arrays(self) -> None:
        """Read ``REAL[]`` into arrays by one copy; psycopg's own reader makes a list of Python's numbers first."""
        from psycopg.adapt import Loader
        from psycopg.pq import Format

        class VectorLoader(Loader):
            format = Format.BINARY

            def load(self, data: Any) -> Vector:
                elements = memoryview(data)[HEADER:]
                whole = len(elements) // ELEMENT.itemsize * ELEMENT.itemsize  # NULL has no bytes of its own
                return np.frombuffer(elements[:whole], ELEMENT)["value"].astype(np.float32)

        self._connection.adapters.register_loader(REAL_ARRAY, VectorLoader)

    def _make(self) -> None:
        """Create the tables, unless another machine has."""
        with self._refusing(), self._connection.transaction():
            self._rows("SELECT pg_advisory_xact_lock(?)", LOCK)
            if self._rows("SELECT to_regclass('speakerkit.state') IS NOT NULL")[0][0]:
                return
            self._rows("CREATE SCHEMA IF NOT EXISTS speakerkit")
            self._rows("SET LOCAL search_path TO speakerkit")
            for statement in SCHEMA:
                self._rows(statement.format_map(KINDS))
            if self._rows("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
                self._make_extension()

    def _make_extension(self) -> None:
        """Ask for pgvector; without the right to, the store works without it."""
        try:
            with self._connection.transaction():
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
        except self._psycopg.errors.InsufficientPrivilege:
            pass

    def close(self) -> None:
        """Let go of the server."""
        self._connection.close()

    def remove(self, *names: str) -> None:
        """As the base class; an index of a database without voices goes too: it is of one model's dimension."""
        super().remove(*names)
        if not len(self):
            for table, _ in COLUMNS.values():
                self._rows(f"DROP INDEX IF EXISTS {table}_nearest")

    def own_index(self, match: Match) -> PostgresIndex | None:
        """The server's search where it has pgvector."""
        return PostgresIndex(self, match) if self.has_pgvector else None

    def build_index(self, match: Match) -> None:
        """Build pgvector's HNSW index; it keeps up with later changes by itself.

        Raises:
            DataError: no pgvector, no voices, or more values than it indexes.
        """
        stamp = self.stamp()
        if stamp is None or not self.has_pgvector or stamp.dimension > LARGEST_INDEXED:
            fault = (
                EMPTY
                if stamp is None
                else f"cannot index {stamp.dimension} values"
                if self.has_pgvector
                else "has no extension pgvector"
            )
            raise DataError(
                self.location, fault, f"pgvector indexes up to {LARGEST_INDEXED} values; it is searched without"
            )
        table, _ = COLUMNS[match]
        self._rows(
            f"CREATE INDEX IF NOT EXISTS {table}_nearest ON {table} "
            f"USING hnsw ((vector::vector({stamp.dimension})) vector_ip_ops)"
        )

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._refusing():
            cursor = self._connection.execute(_query(sql), values or None, binary=True)
            return cursor.fetchall() if cursor.description else []

    def _stream(self, sql: str, *values: object) -> Iterator[list[tuple[Any, ...]]]:
        with (
            self._refusing(),
            self._connection.transaction(),
            self._connection.cursor(name="speakerkit", binary=True) as cursor,
        ):
            cursor.execute(_query(sql), values or None)
            while rows := cursor.fetchmany(BLOCK):
                yield rows

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # The first statement of each change updates the one row of `state`, at which all others wait.
        with self._refusing(), self._connection.transaction():
            yield

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except (self._psycopg.Error, UnicodeError) as error:
            remedy = "check the address, the server and the rights of its user"
            reason = first_line(error).replace(self._url, self.location)  # a bad address is quoted, password and all
            raise DataError(self.location, f"cannot be used ({reason})", remedy) from None

    def _packed(self, vector: Vector) -> list[float]:
        return vector.tolist()

    def _unpacked(self, values: Sequence[Any], dimension: int) -> Vector:
        if any(len(value) != dimension for value in values):
            raise DataError(self.location, f"holds a voiceprint without {dimension} values", "restore it from a copy")
        return np.array(values, dtype=np.float32).reshape(len(values), dimension)


class PostgresIndex:
    """Search by pgvector: exact, or by its HNSW index where ``voices index`` built one."""

    generation: int | None = None

    def __init__(self, store: PostgresStore, match: Match) -> None:
        self._store = store
        self._table, self._voice = COLUMNS[match]

    def candidates(self, vector: Vector, count: int) -> Ids:
        """As :class:`~speakerkit.verification.voiceprints.store.CandidateIndex`."""
        wide = str(min(MOST_CANDIDATES, max(100, count)))
        self._store._rows("SELECT set_config('hnsw.ef_search', ?, false)", wide)
        kind = f"vector({len(vector)})"
        rows = self._store._rows(
            f"SELECT {self._voice} FROM {self._table} ORDER BY vector::{kind} <#> ?::real[]::{kind} LIMIT ?",  # noqa: S608
            vector.tolist(),
            count,
        )
        return np.array([row[0] for row in rows], dtype=np.int64)


def _query(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # the driver will refuse it too
        return f"{url.partition('://')[0]}://..."
    user, _, host = parts.netloc.rpartition("@")
    user = user.partition(":")[0]
    return urlunsplit((parts.scheme, f"{user}@{host}" if user else host, parts.path, "", ""))


def _driver() -> ModuleType:
    try:
        import psycopg
    except ImportError:
        raise MissingExtraError("voiceprints on PostgreSQL", "postgres") from None
    return psycopg
