"""Zip and tar archives of strangers: only plain files, only inside their folder, only as large as they say."""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from speakerkit.errors import BundleError, first_line
from speakerkit.zoo.download import BLOCK, require_space

MOST_FILES = 1000
LARGEST = 16 << 30  # bytes of all files together
LITTER = ("__MACOSX", ".DS_Store")
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class _Member:
    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of a zip or tar into ``folder``; a folder that holds all of them is left out.

    Raises:
        BundleError: no archive, a damaged one, or one with links, devices, or names that leave the folder.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _write(archive, list(_zip_members(archive, opened)), folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened_tar:
                _write(archive, list(_tar_members(archive, opened_tar)), folder)
        else:
            raise BundleError(archive, "is neither zip nor tar", "a web page may have come instead; open its address")
    except DAMAGE as error:
        raise BundleError(archive, f"is damaged ({first_line(error)})", "fetch it again") from None


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            continue
        if kind not in (0, stat.S_IFREG):
            raise _unsafe(archive, info.filename, "is a link or a device")
        if info.flag_bits & 1:
            raise _unsafe(archive, info.filename, "is encrypted")
        yield _Member(_safe(archive, info.filename), info.file_size, partial(opened.open, info))


def _tar_members(archive: Path, opened: tarfile.TarFile) -> Iterator[_Member]:
    total = 0
    for count, info in enumerate(opened, start=1):
        total += info.size
        _require_sane(archive, count, total)  # here too: going on to the next entry means to decompress this one
        if info.isdir():
            continue
        if not info.isreg():
            raise _unsafe(archive, info.name, "is a link or a device")
        yield _Member(_safe(archive, info.name), info.size, partial(_stream, opened, info))


def _stream(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = opened.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return stream


def _safe(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    leaves = path.is_absolute() or ".." in path.parts or not path.parts
    if leaves or "\\" in name or ":" in name or not name.isprintable():
        raise _unsafe(archive, name, "has an unsafe name")
    return path


def _unsafe(archive: Path, name: str, fault: str) -> BundleError:
    return BundleError(archive, f"its entry {name!r} {fault}", "do not use this archive")


def _write(archive: Path, members: list[_Member], folder: Path) -> None:
    members = [m for m in members if not (set(m.path.parts) & set(LITTER) or m.path.name.startswith("._"))]
    if not members:
        raise BundleError(archive, "holds no files", "fetch it again")
    total = sum(member.size for member in members)
    _require_sane(archive, len(members), total)
    require_space(folder, total)
    tops = {member.path.parts[0] for member in members}
    inside = len(tops) == 1 and all(len(member.path.parts) > 1 for member in members)
    for member in members:
        target = folder.joinpath(*member.path.parts[inside:])
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = target.open("xb")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise _unsafe(archive, str(member.path), "comes twice") from None
        with stream, member.open() as source:
            _copy(archive, member, source, stream)


def _require_sane(archive: Path, files: int, size: int) -> None:
    if files > MOST_FILES or size > LARGEST:
        raise BundleError(archive, f"holds {files} files of {size / 1e9:.1f} GB or more", "no speaker model does")


def _copy(archive: Path, member: _Member, source: IO[bytes], target: IO[bytes]) -> None:
    left = member.size
    while block := source.read(BLOCK):
        left -= len(block)
        if left < 0:
            raise _unsafe(archive, str(member.path), "is larger than the archive says")
        target.write(block)
    if left:
        raise _unsafe(archive, str(member.path), "is shorter than the archive says")
