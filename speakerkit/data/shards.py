"""Tar shards: many small recordings in few large files, compatible with WeSpeaker's, read by index.

A shard is a plain tar whose header scan takes milliseconds, so training does not stream it: every recording has an
offset and is read when its turn comes. That is what makes a resumed run continue at the exact sample, gives every rank
the same number of steps however recordings are spread over shards, and keeps their order for any number of workers.
Members that are neither audio nor a speaker id are stepped over and never decoded.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import soundfile
from tqdm import tqdm

from speakerkit.audio import audio_info, load_audio
from speakerkit.data.lists import Utterance, command_of, read_lines, refuse_pipe, run_entry
from speakerkit.data.parallel import map_threads
from speakerkit.errors import AudioError, DataError, MissingExtraError, SpeakerKitError
from speakerkit.files import atomic_open, atomic_path, write_lines

AUDIO_SUFFIXES = frozenset({".flac", ".mp3", ".m4a", ".ogg", ".opus", ".wav"})
SPEAKER_SUFFIX = ".spk"
MAX_SPEAKER_BYTES = 4096
INDEX_THREADS = 8
HANDLES = 64  # shards that a process keeps open

# What a damaged or hostile header makes the standard library raise.
_UNREADABLE = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
    KeyError,
    IndexError,
)


@dataclass(frozen=True, slots=True)
class ShardMember:
    """Where one recording lies.

    Attributes:
        key: utterance id, the member's name up to its last dot.
        speaker: speaker id.
        suffix: of the encoded audio, with its dot (".flac").
        shard: path of the tar.
        offset: first byte of the audio in the tar.
        size: of the audio in bytes.
    """

    key: str
    speaker: str
    suffix: str
    shard: str
    offset: int
    size: int


def write_shards(
    utterances: Sequence[Utterance],
    out_dir: str | Path,
    *,
    prefix: str = "shards",
    per_shard: int = 1000,
    shuffle: bool = True,
    seed: int = 42,
    workers: int = 1,
    allow_pipes: bool = False,
) -> list[Path]:
    """Pack recordings into ``out_dir/<prefix>_%09d.tar`` and name the tars in ``out_dir/shard.list``.

    Members are ``KEY.spk`` and ``KEY.<suffix>`` with the original encoded bytes; an utterance with vad segments goes in
    as their concatenation, a 16-bit wav. The same utterances and seed give the same bytes for any number of ``workers``
    (processes). Each tar appears whole or not at all, and ``shard.list`` only when all of them are there.

    Raises:
        DataError: nothing to pack, an id that cannot name a member, a recording whose header cannot be read, an entry
            that is a command unless ``allow_pipes``, or a shard that cannot be written; the file at fault is named.
    """
    out_dir = Path(os.path.abspath(out_dir))
    if per_shard < 1 or workers < 1:
        raise DataError(out_dir, f"cannot hold {per_shard} recordings a shard from {workers} workers", "give 1 or more")
    _check_utterances(utterances, out_dir, allow_pipes)
    ordered = list(utterances)
    if shuffle:
        ordered = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    parts = [ordered[first : first + per_shard] for first in range(0, len(ordered), per_shard)]
    paths = [out_dir / f"{prefix}_{number:09d}.tar" for number in range(len(parts))]
    listing = out_dir / "shard.list"
    listing.unlink(missing_ok=True)  # the list of an earlier run must not name a mixture of its tars and these
    with tqdm(total=len(ordered), desc="shards", unit="utt", disable=None) as bar:
        for written in _in_processes(partial(_write_shard, allow_pipes=allow_pipes), paths, parts, workers):
            bar.update(written)
    write_lines(listing, map(str, paths))
    return paths


def _check_utterances(utterances: Sequence[Utterance], out_dir: Path, allow_pipes: bool) -> None:
    if not utterances:
        raise DataError(out_dir, "would hold no recordings", "check the list that the shards are made from")
    seen: set[str] = set()
    for utterance in utterances:
        _check_member_name(utterance.key, out_dir)
        if not utterance.wav:
            raise DataError(out_dir, f"utterance {utterance.key!r} names no audio file", "shards hold audio")
        if not utterance.speaker.strip():
            raise DataError(out_dir, f"utterance {utterance.key!r} has no speaker", "fill in utt2spk")
        if utterance.key in seen:
            raise DataError(out_dir, f"utterance id {utterance.key!r} comes twice", "ids must be unique")
        seen.add(utterance.key)
        if not allow_pipes:
            refuse_pipe(out_dir, utterance.key, utterance.wav)


def _check_member_name(name: str, where: str | Path) -> None:
    parts = name.replace("\\", "/").split("/")
    if not name or name[0] in "/\\" or ".." in parts or re.match(r"[A-Za-z]:[/\\]", name):
        raise DataError(where, f"holds the unsafe name {name!r}", "names are relative and without '..'; make it anew")


def _in_processes(
    write: Callable[[Path, Sequence[Utterance]], int],
    paths: Sequence[Path],
    parts: Sequence[Sequence[Utterance]],
    workers: int,
) -> Iterator[int]:
    """Yield what each ``write`` returns as it ends; the first failure drops the shards not yet begun."""
    if workers == 1 or len(paths) == 1:
        yield from map(write, paths, parts)
        return
    pool = ProcessPoolExecutor(min(workers, len(paths)))
    try:
        for future in as_completed([pool.submit(write, *job) for job in zip(paths, parts, strict=True)]):
            yield future.result()
    except BrokenProcessPool:
        raise DataError(
            paths[0].parent, "a worker process was killed", "use fewer --workers, it may be memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _write_shard(path: Path, utterances: Sequence[Utterance], *, allow_pipes: bool) -> int:
    """Write one tar and return the number of its utterances."""
    try:
        with (
            atomic_open(path, "wb") as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for utterance in utterances:
                data, suffix = _encoded(utterance, allow_pipes)
                _add(tar, utterance.key + SPEAKER_SUFFIX, utterance.speaker.encode())
                _add(tar, utterance.key + suffix, data)
    except SpeakerKitError as error:
        # DataError alone: an error crosses the process border only if its class is made from these three.
        raise DataError(error.subject, error.fault, error.remedy) from None
    except OSError as error:
        raise DataError(path, f"cannot be written ({error.strerror or error})", "check space and permissions") from None
    return len(utterances)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its defaults (time 0, no owner, mode 644) are the same on every machine
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _encoded(utterance: Utterance, allow_pipes: bool) -> tuple[bytes, str]:
    """What goes into the tar: the file as it is, or the concatenated vad segments as a wav."""
    data, suffix = encoded_audio(utterance.wav, allow_pipes=allow_pipes)
    if utterance.vad:
        return _speech_as_wav(utterance, data if command_of(utterance.wav) else utterance.wav), ".wav"
    return data, suffix


def _speech_as_wav(utterance: Utterance, source: str | bytes) -> bytes:
    audio = load_audio(source)
    parts = [audio.samples[round(start * audio.rate) : round(end * audio.rate)] for start, end in utterance.vad]
    for (start, end), part in zip(utterance.vad, parts, strict=True):
        if not len(part):
            raise DataError(
                utterance.wav,
                f"has no speech from {start} to {end} s: it ends at {audio.seconds:.3f} s",
                f"correct the vad segments of {utterance.key!r}",
            )
    wav = io.BytesIO()
    soundfile.write(wav, np.concatenate(parts), audio.rate, format="WAV", subtype="PCM_16")
    return wav.getvalue()


def encoded_audio(location: str, *, allow_pipes: bool = False) -> tuple[bytes, str]:
    """The bytes of an audio file as they lie on disk, and its suffix, after a look at its header.

    Args:
        location: a path; with ``allow_pipes`` also a shell command (``cmd |`` or ``pipe:cmd``) that prints audio, which
            counts as ".wav".

    Raises:
        AudioError: missing, empty or undecodable audio, or a format that shards and stores do not hold.
        DataError: a command that is not allowed, or that fails.
    """
    if command_of(location):
        if not allow_pipes:
            refuse_pipe(location, location, location)
        data, suffix = run_entry(location), ".wav"
        try:
            frames = audio_info(data).frames
        except AudioError as error:
            raise AudioError(location, error.fault, error.remedy) from None
    else:
        suffix = Path(location).suffix.lower()
        frames = audio_info(location).frames
        if suffix not in AUDIO_SUFFIXES:
            raise AudioError(
                location, f"is of a kind ({suffix or 'no suffix'}) that is not packed", "convert it to flac"
            )
        data = Path(location).read_bytes()
    if frames == 0:
        raise AudioError(location, "holds no samples", "record it again or leave it out")
    return data, suffix


def index_shard(path: str | Path) -> list[ShardMember]:
    """Recordings of one shard, in its order, from a scan of its headers.

    Consecutive members of the same name up to the last dot are one utterance: one ``.spk`` and one audio file.

    Raises:
        DataError: missing, compressed, truncated or no tar; a link, device or unsafe name in it; an utterance that
            lacks one of the two, or comes twice.
    """
    path = str(path)
    members: list[ShardMember] = []
    seen: set[str] = set()
    try:
        with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for group in _groups(tar, path):
                member = _utterance(group, stream, path)
                if member is None:
                    continue
                if member.key in seen:
                    raise DataError(path, f"holds {member.key!r} twice", "make the shard anew")
                seen.add(member.key)
                members.append(member)
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise DataError(path, "is truncated or damaged: it has no end-of-archive mark", "make or copy it again")
    except FileNotFoundError:
        raise DataError(path, "no such file", "check the shard list, or run `data shards`") from None
    except _UNREADABLE as error:
        raise DataError(path, f"is no readable tar ({error})", "shards are plain, uncompressed tar files") from None
    if not members:
        raise DataError(path, "holds no utterances", "each is a KEY.spk and a KEY.wav, .flac, ... beside it")
    return members


def _groups(tar: tarfile.TarFile, path: str) -> Iterator[list[tuple[str, str, tarfile.TarInfo]]]:
    """Lists of consecutive (key, suffix, member) with one key; directories are left out."""
    group: list[tuple[str, str, tarfile.TarInfo]] = []
    end = -1
    while (member := tar.next()) is not None:
        _check_member_name(member.name, path)
        if member.size < 0 or tar.offset <= end:  # some versions of tarfile would go round in circles here
            raise DataError(path, f"member {member.name!r} declares a size that leads back", "make the shard anew")
        end = tar.offset
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise DataError(path, f"member {member.name!r} is a link, a device or sparse", "shards hold plain files")
        name = member.name.removeprefix("./")
        key, dot, suffix = name.rpartition(".")
        key, suffix = (key, f".{suffix.lower()}") if dot else (name, "")
        if group and group[0][0] != key:
            yield group
            group = []
        group.append((key, suffix, member))
    if group:
        yield group


def _utterance(group: Sequence[tuple[str, str, tarfile.TarInfo]], stream: IO[bytes], path: str) -> ShardMember | None:
    """The recording of a group; ``None`` where it holds neither a speaker nor audio."""
    key = group[0][0]
    speakers, sounds = [], []
    for _, suffix, member in group:
        if suffix == SPEAKER_SUFFIX:
            speakers.append(member)
        elif suffix in AUDIO_SUFFIXES:
            sounds.append((suffix, member))
    if not speakers and not sounds:
        return None
    if len(speakers) != 1 or len(sounds) != 1:
        raise DataError(
            path,
            f"utterance {key!r} has {len(speakers)} .spk and {len(sounds)} audio members",
            f"one of each stand beside each other; audio is {', '.join(sorted(AUDIO_SUFFIXES))}",
        )
    suffix, sound = sounds[0]
    return ShardMember(key, _speaker(speakers[0], stream, path), suffix, path, sound.offset_data, sound.size)


def _speaker(member: tarfile.TarInfo, stream: IO[bytes], path: str) -> str:
    stream.seek(member.offset_data)
    try:
        text = stream.read(min(member.size, MAX_SPEAKER_BYTES + 1)).decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or member.size > MAX_SPEAKER_BYTES:
        raise DataError(path, f"member {member.name!r} is no speaker id", "it is one short word in UTF-8")
    return text


def read_member(member: ShardMember) -> bytes:
    """The encoded audio of a recording.

    Reads by position from a handle that each process opens when it first needs it, so threads and forked workers do not
    disturb one another.

    Raises:
        DataError: the shard is gone or shorter than when it was indexed.
    """
    try:
        status = os.stat(member.shard)
        data = os.pread(_handle(member.shard, status.st_ino, status.st_mtime_ns).number, member.size, member.offset)
    except OSError as error:
        raise DataError(member.shard, f"cannot be read ({error.strerror or error})", "check the shard list") from None
    if len(data) < member.size:
        raise DataError(member.shard, f"is truncated in {member.key!r}", "make or copy it again")
    return data


class _Handle:
    """A file descriptor that closes with its last reference, so that a cache may drop it while a thread still reads."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=HANDLES)
def _handle(path: str, inode: int, modified: int) -> _Handle:
    """``inode`` and ``modified`` are part of the key: a shard written anew under its old name is opened anew."""
    return _Handle(path)


def read_shard_list(
    path: str | Path, *, allow_pipes: bool = False, cache: str | Path | None = None
) -> list[ShardMember]:
    """Recordings of all shards that a ``shard.list`` names, in its order.

    Relative entries are looked up from the working directory and then from the list's own folder.

    Args:
        allow_pipes: fetch entries that are URLs or ``pipe:`` commands, once, and index the copies.
        cache: folder for the copies; ``shard_cache`` beside the list if not given.

    Raises:
        DataError: an unreadable list or shard, an utterance that stands in two of them, or an entry that is a URL or
            a command unless ``allow_pipes``.
    """
    path = Path(path)
    folder = path.parent / "shard_cache" if cache is None else Path(cache)
    shards = [_local(entry, path, allow_pipes, folder) for entry in read_lines(path)]
    if not shards:
        raise DataError(path, "names no shards", "it has one tar path a line")
    members: dict[str, ShardMember] = {}
    for indexed in map_threads(index_shard, shards, workers=INDEX_THREADS, description="index", unit="shard", block=1):
        for member in indexed:
            if member.key in members:
                other = members[member.key].shard
                raise DataError(member.shard, f"holds {member.key!r}, which {other} has too", "list one of them")
            members[member.key] = member
    return list(members.values())


def _local(entry: str, listing: Path, allow_pipes: bool, cache: Path) -> str:
    """The path of a shard; that of its copy where ``entry`` is a URL or a command."""
    if entry.startswith("file:"):
        return url2pathname(urlparse(entry).path)
    remote = f"pipe:{command_of(entry)}" if command_of(entry) else entry
    if remote.startswith("pipe:") or "://" in remote:
        if not allow_pipes:
            raise DataError(
                listing, f"entry {entry!r} is a URL or a command", "list local tars, or allow it with --allow-pipes"
            )
        return str(_fetch(remote, cache))
    beside = listing.parent / entry
    return str(beside) if not os.path.exists(entry) and beside.exists() else entry


def _fetch(remote: str, cache: Path) -> Path:
    """A copy of a remote shard, made once; only a whole tar gets its name."""
    copy = cache / f"{hashlib.sha256(remote.encode()).hexdigest()[:32]}.tar"
    if copy.exists():
        return copy
    try:
        from webdataset.gopen import gopen
    except ImportError:
        raise MissingExtraError(f"fetching {remote}", "train") from None
    with atomic_path(copy) as temporary:
        try:
            with gopen(remote, "rb") as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except (OSError, ValueError) as error:
            raise DataError(remote, f"cannot be fetched ({error})", "try the address or command alone") from None
        try:
            index_shard(temporary)
        except DataError as error:
            raise DataError(remote, error.fault, error.remedy) from None
    return copy
