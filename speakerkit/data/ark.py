"""Embeddings on disk: Kaldi ark/scp, npz, npy with keys beside it, JSON lines. Works without torch.

Nothing that is read here can run code: commands in a scp, pickles in an ark and object arrays in npy are refused.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from kaldiio import matio

from speakerkit.data.lists import read_lines, read_scp
from speakerkit.errors import DataError
from speakerkit.files import atomic_open, write_lines

Vectors = npt.NDArray[np.float32]

READ_SUFFIXES = (".scp", ".ark", ".npz", ".npy", ".jsonl")
# What a user may ask for, to the suffix of the file that names the set; scp has its ark, npy its keys beside it.
WRITE_FORMATS = {"ark,scp": ".scp", "scp": ".scp", "ark": ".scp", "npz": ".npz", "npy": ".npy", "jsonl": ".jsonl"}

BINARY_KINDS = (b"FV ", b"DV ", b"FM ", b"DM ")  # float and double, vector and matrix


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of one extractor, found by key.

    Attributes:
        keys: utterance ids, unique, without blanks.
        vectors: (utterances, dim) float32, all finite.
        source: file that they come from; error messages name it.

    Raises:
        DataError: no rows, rows without values, NaN or infinite values, duplicate or blank keys.
    """

    keys: list[str]
    vectors: Vectors
    source: str = "embeddings"
    _rows: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            vectors = np.ascontiguousarray(self.vectors, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(self.keys):
            raise DataError(
                self.source,
                f"holds {len(self.keys)} keys for an array of shape {vectors.shape}",
                "the array must be (keys, dimension)",
            )
        if vectors.size == 0:
            raise DataError(self.source, "holds no embeddings", "run the earlier stage that writes it again")
        rows = {key: row for row, key in enumerate(self.keys)}
        if len(rows) != len(self.keys):
            twice = next(key for row, key in enumerate(self.keys) if rows[key] != row)
            raise DataError(self.source, f"key {twice!r} comes twice", "keys must be unique")
        for key in self.keys:
            _check_key(key, self.source)
        finite = np.logical_and.reduce(np.isfinite(vectors), axis=1)
        if not finite.all():
            raise DataError(
                self.source,
                f"{np.sum(~finite)} of {len(vectors)} embeddings hold NaN or infinity, "
                f"{self.keys[int(np.argmin(finite))]!r} first",
                "extract them again",
            )
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "_rows", rows)

    @classmethod
    def from_rows(cls, keys: Sequence[str], rows: Sequence[npt.NDArray[Any]], source: str = "embeddings") -> Embeddings:
        """Stack rows (dim,) and name the first one whose dimension differs."""
        for key, row in zip(keys, rows, strict=True):
            if len(row) != len(rows[0]):
                raise DataError(
                    source,
                    f"embedding {key!r} has {len(row)} values, {keys[0]!r} has {len(rows[0])}",
                    "keep the embeddings of different models apart",
                )
        with np.errstate(over="ignore"):
            vectors = np.array(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if len(rows) else 0)
        return cls(list(keys), vectors, source)

    @property
    def dim(self) -> int:
        """Values in an embedding."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Vectors:
        """The embedding (dim,) of ``key``."""
        return self.vectors[self.rows([key])[0]]

    def rows(self, keys: Iterable[str]) -> npt.NDArray[np.intp]:
        """Row numbers of ``keys``.

        Raises:
            DataError: a key has no embedding; names the first and counts them.
        """
        wanted = list(keys)
        missing = [key for key in wanted if key not in self._rows]
        if missing:
            raise DataError(
                self.source,
                f"no embedding for {missing[0]!r} ({len(missing)} of {len(wanted)} keys are missing)",
                "extract the missing ones, or check that the keys are spelt alike",
            )
        return np.fromiter(map(self._rows.__getitem__, wanted), dtype=np.intp, count=len(wanted))


def read_embeddings(path: str | Path) -> Embeddings:
    """Read embeddings from ``.scp``, ``.ark``, ``.npz`` (``keys``, ``embeddings``), ``.npy`` or ``.jsonl``.

    A ``.npy`` (utterances, dim) has its keys beside it, one a line, in ``STEM.keys.txt`` or ``STEM.txt``. JSON lines
    are ``{"key": .., "embedding": [..]}``. The ark of a scp is looked for as written, then beside the scp.

    Raises:
        DataError: missing or malformed files, commands, pickles, and whatever :class:`Embeddings` refuses.
    """
    path = Path(path)
    readers = {
        ".scp": _read_scp,
        ".ark": _read_ark,
        ".npz": _read_npz,
        ".npy": _read_npy,
        ".jsonl": _read_jsonl,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(path, "is no embedding file that is known by its suffix", f"give {', '.join(READ_SUFFIXES)}")
    return reader(path)


def write_embeddings(path: str | Path, embeddings: Embeddings, format: str | None = None) -> Path:
    """Write embeddings sorted by key, so that the same set gives the same bytes; returns the file that names them.

    Args:
        path: a file, or a stem where ``format`` is given.
        embeddings: what to write.
        format: one of ``WRITE_FORMATS``; ``None`` goes by the suffix of ``path``.

    Each file is replaced atomically. Of a pair (scp and ark, npy and keys) the first goes away while the second
    changes: a reader finds a pair that belongs together or none.
    """
    path = embedding_path(path, format)
    order = sorted(range(len(embeddings)), key=embeddings.keys.__getitem__)
    keys = [embeddings.keys[row] for row in order]
    vectors = embeddings.vectors[order]
    if path.suffix == ".scp":
        _write_ark_and_scp(path, keys, vectors)
    elif path.suffix == ".npy":
        with atomic_open(path.with_suffix(".keys.txt")) as stream:
            stream.writelines(f"{key}\n" for key in keys)
            path.unlink(missing_ok=True)
        with atomic_open(path, "wb") as stream:
            np.save(stream, vectors, allow_pickle=False)
    elif path.suffix == ".npz":
        with atomic_open(path, "wb") as stream:
            np.savez(stream, keys=np.array(keys), embeddings=vectors)
    else:
        write_lines(path, map(_json_line, keys, vectors))
    return path


def embedding_path(path: str | Path, format: str | None = None) -> Path:
    """The file that names a set of embeddings: ``x.scp`` for "x" and "ark", "x.ark" and so on.

    Raises:
        DataError: an unknown format, or a suffix that contradicts it.
    """
    path = Path(path)
    suffix = ".scp" if path.suffix == ".ark" else path.suffix
    if format is not None and format not in WRITE_FORMATS:
        raise DataError(path, f"format {format!r} is not known", f"choose one of {' '.join(WRITE_FORMATS)}")
    wanted = suffix if format is None else WRITE_FORMATS[format]
    if wanted not in WRITE_FORMATS.values():
        raise DataError(path, "the suffix names no embedding format", f"end it in {', '.join(READ_SUFFIXES)}")
    if suffix == wanted:
        return path.with_suffix(wanted)
    if suffix in WRITE_FORMATS.values():
        raise DataError(path, f"has a suffix other than that of format {format!r}", "leave the suffix out")
    return path.with_name(path.name + wanted)


class EmbeddingWriter:
    """Write embeddings row by row; a killed run goes on where it stopped.

    Rows are appended to a journal, ``PATH.partial``, which is a Kaldi ark. Leaving the block without an error adds
    the rows of an earlier finished file, writes the finished file(s) by :func:`write_embeddings` and removes the
    journal; leaving with an error keeps the journal. On opening, a torn last row of the journal is dropped. One writer
    at a time.

    Args:
        path: a file, or a stem where ``format`` is given.
        format: one of ``WRITE_FORMATS``; ``None`` goes by the suffix of ``path``.
        resume: keep the rows that are there; ``False`` starts anew and replaces them at the end (by nothing where no
            row was added: old rows never pass for new ones).

    Attributes:
        path: the finished file.
        done: keys that need no extraction any more.

    Raises:
        DataError: an earlier finished file cannot be read.
    """

    def __init__(self, path: str | Path, format: str | None = None, *, resume: bool = True) -> None:
        self.path = embedding_path(path, format)
        self._journal = self.path.with_name(self.path.name + ".partial")
        self._stream: BinaryIO | None = None
        self._finished: Embeddings | None = None
        self._journal_keys: set[str] = set()
        self._journal_end = 0
        self._dim = 0
        if resume:
            self._recover()
        else:
            self._journal.unlink(missing_ok=True)
        self.done = set(self._journal_keys)
        if self._finished is not None:
            self.done.update(self._finished.keys)

    def _recover(self) -> None:
        if self._journal.exists():
            keys, rows, self._journal_end = _read_journal(self._journal)
            self._journal_keys = set(keys)
            self._dim = len(rows[0]) if rows else 0
        if self.path.exists():
            self._finished = read_embeddings(self.path)
            if self._dim and self._dim != self._finished.dim:
                raise DataError(
                    self._journal,
                    f"holds {self._dim} values a row, {self.path.name} {self._finished.dim}",
                    "delete the one that another model wrote",
                )
            self._dim = self._finished.dim

    def add(self, key: str, vector: npt.ArrayLike) -> None:
        """Append the embedding (dim,) of ``key``.

        Raises:
            DataError: a key that is there already or holds blanks, NaN or infinity, or another dimension.
        """
        _check_key(key, self.path)
        with np.errstate(over="ignore"):
            row = np.asarray(vector, dtype=np.float32)
        if key in self.done:
            raise DataError(self.path, f"key {key!r} comes twice", "keys must be unique")
        if row.ndim != 1 or row.size == 0 or row.size != (self._dim or row.size):
            raise DataError(
                self.path,
                f"embedding {key!r} has shape {row.shape}, expected ({self._dim or 'dim'},)",
                "resume with the model that wrote the others, or write to another file",
            )
        if not np.isfinite(row).all():
            raise DataError(self.path, f"embedding {key!r} holds NaN or infinity", "look at its audio")
        self._append(key, row)
        self.done.add(key)

    def _append(self, key: str, row: Vectors) -> None:
        if self._stream is None:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            self._journal.touch()
            self._stream = open(self._journal, "r+b")  # noqa: SIM115 - closed by __exit__
            self._stream.seek(self._journal_end)
            self._stream.truncate()
        _write_row(self._stream, key, row)
        self._stream.flush()
        self._journal_keys.add(key)
        self._dim = len(row)

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._journal_keys:
                self._publish()
        finally:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
        if kind is None:
            self._journal.unlink(missing_ok=True)
            if not self.done:
                self.path.unlink(missing_ok=True)

    def _publish(self) -> None:
        # The journal holds every row before the finished file is touched: a kill from here on loses nothing.
        if self._finished is not None:
            for key, row in zip(self._finished.keys, self._finished.vectors, strict=True):
                if key not in self._journal_keys:
                    self._append(key, row)
            self._finished = None
        if self._stream is not None:
            os.fsync(self._stream.fileno())
        keys, rows, self._journal_end = _read_journal(self._journal)
        write_embeddings(self.path, Embeddings.from_rows(keys, rows, str(self._journal)))


def _check_key(key: str, source: str | Path) -> None:
    if not key or key.split() != [key]:
        raise DataError(source, f"key {key[:100]!r} is empty or holds blanks", "rename it")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            raise DataError(source, f"key {key[:100]!r} is not valid text", "rename the file in UTF-8") from None


@contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise DataError(path, "no such file", "check the path, or run the earlier stage that writes it") from None
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "name the embedding file itself") from None
    with stream:
        yield stream


def _read_scp(path: Path) -> Embeddings:
    table = read_scp(path)
    places: dict[str, list[tuple[int, int]]] = {}
    for number, value in enumerate(table.values()):
        ark, _, offset = value.rpartition(":")
        if ark and offset.isdecimal():
            places.setdefault(ark, []).append((int(offset), number))
        else:
            places.setdefault(value, []).append((0, number))
    keys = list(table)
    rows: list[Vectors] = [np.empty(0, np.float32)] * len(keys)
    for ark, entries in places.items():
        ark_path = _find_ark(path, ark)
        with _readable(ark_path) as stream:
            for position, number in sorted(entries):
                stream.seek(position)
                rows[number] = _read_row(stream, ark_path, keys[number])
    return Embeddings.from_rows(keys, rows, str(path))


def _find_ark(scp: Path, name: str) -> Path:
    """As Kaldi reads it (from the working folder or absolute); a folder that was moved is read too."""
    for candidate in (Path(name), scp.parent / name, scp.parent / Path(name).name):
        if os.path.isfile(candidate):
            return candidate
    raise DataError(scp, f"names {name[:200]!r}, which is not there", "keep the ark beside it, or extract again")


def _read_ark(path: Path) -> Embeddings:
    with _readable(path) as stream:
        pairs = list(_ark_rows(stream, path))
    return Embeddings.from_rows([key for key, _ in pairs], [row for _, row in pairs], str(path))


def _ark_rows(stream: BinaryIO, path: Path) -> Iterator[tuple[str, Vectors]]:
    while True:
        start = stream.tell()
        try:
            key = matio.read_token(stream)
        except ValueError:
            raise DataError(path, f"byte {start} starts no key", "is it a Kaldi ark?") from None
        if key is None and stream.tell() == start:
            return
        if key is None:
            raise DataError(path, f"byte {start} starts no key", "is it a Kaldi ark?")
        yield key, _read_row(stream, path, key)


def _read_row(stream: BinaryIO, path: Path, key: str) -> Vectors:
    """The vector at the stream's position, binary or text.

    kaldiio's own dispatcher is not used: it unpickles an entry that is marked so.
    """
    start = stream.tell()
    head = stream.read(16)
    stream.seek(start)
    try:
        if head[:2] == b"\0B" and head[2:5] in BINARY_KINDS:
            row, size = matio.read_matrix_or_vector(stream, return_size=True)
            if stream.tell() - start != size:
                raise ValueError("it is cut short")
        elif head.lstrip()[:1] == b"[":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # numpy's, for an empty vector: Embeddings refuses it
                row = matio.read_ascii_mat(stream)
        else:
            raise ValueError(f"it starts with {head[:5]!r}")
        if row.ndim == 2 and len(row) == 1:
            row = row[0]
        if row.ndim != 1:
            raise ValueError(f"it is a matrix of {row.shape[0]} x {row.shape[1]}, features perhaps")
    except (ValueError, AssertionError, struct.error, OverflowError, MemoryError, RuntimeError, TypeError) as error:
        reason = str(error) or "its header contradicts itself"
        raise DataError(
            path, f"entry {key[:100]!r} at byte {start} is not a Kaldi vector: {reason}", "extract it again"
        ) from None
    with np.errstate(over="ignore"):
        return row.astype(np.float32, copy=False)


def _read_journal(path: Path) -> tuple[list[str], list[Vectors], int]:
    """Keys, rows, and the byte where the last whole row ends."""
    keys: list[str] = []
    rows: list[Vectors] = []
    end = 0
    with _readable(path) as stream:
        entries = _ark_rows(stream, path)
        while True:
            try:
                key, row = next(entries)
            except (StopIteration, DataError):
                return keys, rows, end
            keys.append(key)
            rows.append(row)
            end = stream.tell()


def _write_row(stream: IO[bytes], key: str, row: Vectors) -> int:
    """Append a binary Kaldi entry; returns the offset that a scp gives for it."""
    stream.write(f"{key} ".encode())
    offset = stream.tell()
    matio.write_array(stream, row)
    return offset


def _write_ark_and_scp(scp: Path, keys: Sequence[str], vectors: Vectors) -> None:
    ark = scp.with_suffix(".ark")
    with atomic_open(ark, "wb") as stream:
        offsets = [_write_row(stream, key, row) for key, row in zip(keys, vectors, strict=True)]
        scp.unlink(missing_ok=True)
    write_lines(scp, (f"{key} {ark}:{offset}" for key, offset in zip(keys, offsets, strict=True)))


def _load_numpy(path: Path, names: Sequence[str] = ()) -> list[npt.NDArray[Any]]:
    """The array of a npy, or the arrays ``names`` of a npz."""
    with _readable(path) as stream:
        try:
            loaded = np.load(stream, allow_pickle=False)
            if names:
                return [loaded[name] for name in names]
            if isinstance(loaded, np.ndarray):
                return [loaded]
        except Exception as error:  # numpy, zipfile, zlib and tokenize each raise their own on broken bytes
            reason = " ".join(str(error).split())[:200]
            raise DataError(path, f"cannot be read as arrays of numbers ({reason})", "write it again") from None
    raise DataError(path, "is an archive, not one array", "name it .npz")


def _read_npz(path: Path) -> Embeddings:
    keys, vectors = _load_numpy(path, ("keys", "embeddings"))
    if keys.ndim != 1 or keys.dtype.kind != "U":
        raise DataError(path, f"its keys are {keys.dtype} of shape {keys.shape}", "they must be a row of strings")
    return Embeddings([str(key) for key in keys], _as_numbers(vectors, path), str(path))


def _read_npy(path: Path) -> Embeddings:
    vectors = read_array(path)
    names = [path.with_suffix(suffix) for suffix in (".keys.txt", ".txt")]
    keys = next((name for name in names if name.exists()), None)
    if keys is None:
        raise DataError(path, f"has no keys beside it ({names[0].name})", "write one key a line there, in row order")
    return Embeddings(read_lines(keys), vectors, str(path))


def read_array(path: str | Path) -> npt.NDArray[Any]:
    """The array of numbers in a ``.npy``.

    Raises:
        DataError: missing, malformed, or holding anything but real numbers.
    """
    path = Path(path)
    (array,) = _load_numpy(path)
    return _as_numbers(array, path)


def _as_numbers(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise DataError(path, f"holds {array.dtype} values", "embeddings are real numbers")
    return array


def _read_jsonl(path: Path) -> Embeddings:
    keys: list[str] = []
    rows: list[npt.NDArray[Any]] = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            entry = json.loads(line)
            key, row = entry["key"], np.asarray(entry["embedding"], dtype=np.float64)
            if not isinstance(key, str) or row.ndim != 1:
                raise ValueError("wrong kind of value")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise DataError(
                path, f"line {number} is not an embedding ({error!r})", 'expected {"key": .., "embedding": [..]}'
            ) from None
        keys.append(key)
        rows.append(row)
    return Embeddings.from_rows(keys, rows, str(path))


def _json_line(key: str, row: Vectors) -> str:
    # Nine significant digits give every float32 back exactly.
    values = ", ".join(f"{value:.9g}" for value in row.tolist())
    return f'{{"key": {json.dumps(key, ensure_ascii=False)}, "embedding": [{values}]}}'
