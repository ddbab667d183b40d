"""Noise and room-response stores: an LMDB, a folder or a Kaldi list of recordings, read by key, a part at a time."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import tempfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from tqdm import tqdm

from speakerkit.audio import CONTAINER_SUFFIXES, AudioInfo, Samples, audio_info, load_audio
from speakerkit.data.lists import read_scp, read_table
from speakerkit.data.shards import AUDIO_SUFFIXES, encoded_audio
from speakerkit.errors import AudioError, DataError, MissingExtraError

KEYS_PICKLED = b"__keys__"  # WeSpeaker's: a pickled list of str
KEYS_JSON = b"__keys_json__"  # ours: the same list, and what we read where it is there
TYPES_JSON = b"__types_json__"  # ours: key to type, where keys alone do not tell it
RESERVED = {KEYS_PICKLED, KEYS_JSON, TYPES_JSON}
UNTYPED = "other"  # kind of a recording of which neither key nor utt2type says it

FIRST_MAP_BYTES = 16 << 20
DECODED_KEPT = 64  # recordings that a store remembers decoded,
DECODED_SECONDS = 4.0  # each at most this long: room responses, not noises
RESAMPLING_MARGIN = 0.01  # seconds read beyond a section, so that it is never a sample short

# A pickled list of text is made of these operations alone; everything that could name or call code is not among them.
_PICKLED_TEXT = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_PICKLED_LIST = {"PROTO", "FRAME", "EMPTY_LIST", "LIST", "MARK", "APPEND", "APPENDS", "STOP"}
_PICKLED_MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}


class AudioStore(ABC):
    """Recordings found by key. One store belongs to one thread; forked and spawned workers may share one.

    Args:
        name: what error messages call the store.
        keys: of its recordings.
        types: key to type ("noise", "music", "speech") where the first part of the key does not say it.
    """

    def __init__(self, name: str, keys: list[str], types: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._keys = sorted(set(keys))
        self._members = frozenset(keys)
        self._types = dict(types or {})
        self._infos: dict[str, AudioInfo] = {}
        self._decoded: OrderedDict[tuple[str, int], Samples] = OrderedDict()

    def keys(self) -> list[str]:
        """Keys of all recordings, sorted."""
        return self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._members

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": OrderedDict()}

    def kind(self, key: str) -> str:
        """Type of a recording: from the store's table, else the first part of a key with slashes, else "other"."""
        first, slash, _ = key.partition("/")
        return self._types.get(key) or (first if slash else UNTYPED)

    def read(
        self, key: str, sample_rate: int, rng: np.random.Generator | None = None, duration: float | None = None
    ) -> Samples:
        """The first channel of a recording at ``sample_rate`` Hz, (samples,) float32, not to be written into.

        Args:
            rng: where a longer recording is cut; ``None`` cuts at its start.
            duration: seconds wanted; only these are decoded. A shorter recording comes whole; so does any if ``None``.

        Raises:
            DataError: a key that is not there.
            AudioError: a recording that cannot be decoded.
        """
        if key not in self:
            raise DataError(self.name, f"holds no recording {key!r}", "see the store's keys()")
        try:
            whole = self._decoded.get((key, sample_rate))
            if whole is not None:
                self._decoded.move_to_end((key, sample_rate))
            elif self._info(key).seconds > DECODED_SECONDS:
                return self._part(key, sample_rate, rng, duration)
            else:
                whole = self._decode(key, sample_rate)
        except AudioError as error:
            raise AudioError(f"{self.name}: {key}", error.fault, error.remedy) from None
        wanted = len(whole) if duration is None else min(len(whole), round(duration * sample_rate))
        first = int(rng.integers(len(whole) - wanted + 1)) if rng else 0
        return whole[first : first + wanted]

    def _info(self, key: str) -> AudioInfo:
        if key not in self._infos:
            self._infos[key] = audio_info(self._source(key))
        return self._infos[key]

    def _part(self, key: str, sample_rate: int, rng: np.random.Generator | None, duration: float | None) -> Samples:
        source = self._source(key)
        if duration is None:
            return load_audio(source, sample_rate, channel=0).samples
        wanted = duration + RESAMPLING_MARGIN
        start = rng.uniform(0.0, max(0.0, self._info(key).seconds - wanted)) if rng else 0.0
        section = load_audio(source, sample_rate, channel=0, start=start, duration=wanted)
        return section.samples[: round(duration * sample_rate)]

    def _decode(self, key: str, sample_rate: int) -> Samples:
        samples = load_audio(self._source(key), sample_rate, channel=0).samples
        samples.setflags(write=False)
        self._decoded[key, sample_rate] = samples
        if len(self._decoded) > DECODED_KEPT:
            self._decoded.popitem(last=False)
        return samples

    @abstractmethod
    def _source(self, key: str) -> str | bytes:
        """The path or the encoded bytes of a recording that is there."""


class FileStore(AudioStore):
    """Recordings in files of their own: key to path."""

    def __init__(self, name: str, paths: Mapping[str, str], types: Mapping[str, str] | None = None) -> None:
        super().__init__(name, list(paths), types)
        self._paths = dict(paths)

    def _source(self, key: str) -> str:
        return self._paths[key]


class LmdbStore(AudioStore):
    """Recordings as encoded bytes in an LMDB folder, WeSpeaker's or ours.

    Raises:
        DataError: no LMDB, a truncated one, or one whose list of keys is not plain text.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = os.path.abspath(folder)
        self._opened: _Environment | None = _environment(self._folder)
        plain, pickled = self._opened.get(KEYS_JSON), self._opened.get(KEYS_PICKLED)
        if plain is not None:
            keys = _keys_from_json(plain, folder)
        elif pickled is not None:
            keys = _keys_from_pickle(pickled, folder)
        else:
            raise DataError(folder, "has no list of its keys (__keys__)", "make it with `data lmdb`")
        types = self._opened.get(TYPES_JSON)
        super().__init__(str(folder), keys, _types_from_json(types, folder) if types else {})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_opened": None}

    def _source(self, key: str) -> bytes:
        if self._opened is None:
            self._opened = _environment(self._folder)
        data = self._opened.get(key.encode(errors="replace"))
        if data is None:
            raise AudioError(key, "is in the list of keys and not in the store", "make the store anew")
        return data


class _Environment:
    """An open LMDB, closed with its last reference.

    It is read-only and without locks, so nothing in it changes and a forked child may go on with its parent's.
    """

    def __init__(self, folder: str) -> None:
        lmdb, data = _lmdb(), os.path.join(folder, "data.mdb")
        self.folder, self._error = folder, lmdb.Error
        try:
            self.inode = os.stat(data).st_ino
            self._lmdb = lmdb.open(folder, readonly=True, lock=False, readahead=False, create=False)
            needed = (self._lmdb.info()["last_pgno"] + 1) * self._lmdb.stat()["psize"]
            size = os.path.getsize(data)
        except (lmdb.Error, OSError) as error:
            raise DataError(folder, f"is no readable LMDB ({error})", "make it with `data lmdb`") from None
        if needed > size:  # reading the missing pages would kill the process
            raise DataError(data, f"is truncated: {size} of {needed} bytes are there", "copy or make it again")

    def get(self, key: bytes) -> bytes | None:
        try:
            with self._lmdb.begin() as transaction:
                return transaction.get(key)
        except self._error as error:
            raise DataError(self.folder, f"cannot be read ({error})", "make it anew with `data lmdb`") from None

    def close(self) -> None:
        self._lmdb.close()


_environments: WeakValueDictionary[str, _Environment] = WeakValueDictionary()


def _environment(folder: str) -> _Environment:
    """The environment of a folder, shared by its stores: LMDB allows one in a process."""
    known = _environments.get(folder)
    try:
        anew = known is not None and known.inode != os.stat(os.path.join(folder, "data.mdb")).st_ino
    except OSError as error:
        raise DataError(folder, f"is no readable LMDB ({error})", "make it with `data lmdb`") from None
    if known is not None and anew:
        known.close()
        known = None
    if known is None:
        known = _environments[folder] = _Environment(folder)
    return known


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError:
        raise MissingExtraError("LMDB stores", "train") from None
    return lmdb


def _keys_from_json(data: bytes, folder: str | Path) -> list[str]:
    try:
        keys = json.loads(data)
    except ValueError:
        keys = None
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DataError(folder, "has a list of keys that is no JSON list of text", "make it with `data lmdb`")
    return keys


def _types_from_json(data: bytes, folder: str | Path) -> dict[str, str]:
    try:
        types = json.loads(data)
    except ValueError:
        types = None
    if not isinstance(types, dict) or not all(isinstance(kind, str) for kind in types.values()):
        raise DataError(folder, "has a table of types that is no JSON object of text", "make it with `data lmdb`")
    return types


def _keys_from_pickle(data: bytes, folder: str | Path) -> list[str]:
    """The text in a pickled list of text, taken from its operations; nothing is ever unpickled."""
    keys: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name in _PICKLED_TEXT:
                keys.append(str(argument))
            elif operation.name not in _PICKLED_LIST | _PICKLED_MEMO:
                raise DataError(
                    folder,
                    f"is unsafe: its list of keys is a pickle with {operation.name}, which plain text does not need",
                    "do not open it with other tools; make it anew with `data lmdb`",
                )
    except (ValueError, OverflowError, UnicodeDecodeError) as error:
        raise DataError(folder, f"has an unreadable list of keys ({error})", "make it with `data lmdb`") from None
    return keys


def open_store(path: str | Path) -> AudioStore:
    """Open an LMDB folder, a folder of audio files, a Kaldi directory (``wav.scp`` [+ ``utt2type``]) or a ``wav.scp``.

    Raises:
        DataError: none of these, or one without recordings.
    """
    folder = Path(path)
    store: AudioStore = (
        LmdbStore(folder) if (folder / "data.mdb").exists() else FileStore(str(path), *audio_files(path))
    )
    if not len(store):
        raise DataError(path, "holds no recordings", "give a folder of audio, an LMDB or a Kaldi directory")
    return store


def audio_files(path: str | Path, allow_pipes: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """Key to path and key to type, of a ``wav.scp``, a Kaldi directory, or a folder (keys are relative paths).

    Raises:
        DataError: none of these, or an entry that is a command unless ``allow_pipes``.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(path, "no such file or folder", "check the path")
    if path.is_file():
        return read_scp(path, allow_pipes), {}
    if (path / "wav.scp").exists():
        types = read_table(path / "utt2type") if (path / "utt2type").exists() else {}
        return read_scp(path / "wav.scp", allow_pipes), types
    files = (
        file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and not file.name.startswith(".")
    )
    return {file.relative_to(path).as_posix(): str(file) for file in sorted(files) if file.is_file()}, {}


def write_lmdb(
    scp: Mapping[str, str], out: str | Path, *, types: Mapping[str, str] | None = None, allow_pipes: bool = False
) -> Path:
    """Pack the encoded bytes of audio files into an LMDB folder that WeSpeaker reads too; return its path.

    Keys go in sorted. The folder appears whole or not at all, and replaces an earlier store of that name.

    Raises:
        DataError: no recordings, a key that LMDB cannot hold, or an ``out`` that is something else than a store.
        AudioError: a recording whose header cannot be read.
    """
    out = Path(out)
    if not scp:
        raise DataError(out, "would hold no recordings", "check the list or folder that it is made from")
    if out.exists() and not (out.is_dir() and {file.name for file in out.iterdir()} <= {"data.mdb", "lock.mdb"}):
        raise DataError(out, "is there and is no LMDB store", "choose another name, or move it away")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as workspace:
        fresh = Path(workspace) / "store"
        fresh.mkdir()
        _fill(fresh, scp, types or {}, allow_pipes)
        if out.exists():
            out.rename(Path(workspace) / "earlier")
        fresh.rename(out)
    return out


def _fill(folder: Path, scp: Mapping[str, str], types: Mapping[str, str], allow_pipes: bool) -> None:
    keys = sorted(scp)
    environment = _lmdb().open(str(folder), map_size=FIRST_MAP_BYTES, lock=False, sync=False)
    try:
        longest = environment.max_key_size()
        for key in tqdm(keys, desc="lmdb", unit="file", disable=None):
            name = key.encode()
            if name in RESERVED or not 0 < len(name) <= longest:
                raise DataError(scp[key], f"has a key that LMDB cannot hold: {key[:60]!r}", f"1 to {longest} bytes")
            data, suffix = encoded_audio(scp[key], allow_pipes=allow_pipes)
            if suffix in CONTAINER_SUFFIXES:
                raise AudioError(scp[key], f"is a {suffix} file, which stores do not hold", "convert it to flac")
            _put(environment, name, data)
        _put(environment, KEYS_PICKLED, pickle.dumps(keys))
        _put(environment, KEYS_JSON, json.dumps(keys, ensure_ascii=False).encode())
        if types:
            _put(environment, TYPES_JSON, json.dumps({key: types[key] for key in keys if key in types}).encode())
        environment.sync(True)
    finally:
        environment.close()


def _put(environment: Any, key: bytes, value: bytes) -> None:
    """Store one value, doubling the map until it fits."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.put(key, value)
            return
        except _lmdb().MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])
