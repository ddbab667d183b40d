"""Archives of strangers: what is plain comes out, what would reach beyond its folder or its size does not."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from speakerkit.errors import BundleError
from speakerkit.zoo import archives
from speakerkit.zoo.archives import unpack
from tests.hostile.inputs import JUNK

Contents = dict[str, bytes]


def make_zip(path: Path, contents: Contents) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def make_tar(path: Path, contents: Contents, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_tar_gz(path: Path, contents: Contents) -> Path:
    return make_tar(path, contents, "w:gz")


MAKERS = (make_zip, make_tar, make_tar_gz)
Maker = Callable[[Path, Contents], Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "cage" / "out"
    folder.mkdir(parents=True)
    return folder


def found(folder: Path) -> Contents:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, out: Path, fault: str) -> None:
    """It is refused for that reason, and nothing appears outside the folder that it was given."""
    with pytest.raises(BundleError, match=fault):
        unpack(archive, out)
    assert list(out.parent.iterdir()) == [out]
    assert not any(path.is_symlink() for path in out.rglob("*"))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"a.pt": b"1", "c.yaml": b"2"}, {"a.pt": b"1", "c.yaml": b"2"}),
        ({"top/a.pt": b"1", "top/c.yaml": b"2"}, {"a.pt": b"1", "c.yaml": b"2"}),
        ({"./top/a.pt": b"1", "./top/c.yaml": b"2"}, {"a.pt": b"1", "c.yaml": b"2"}),
        ({"top/sub/a.pt": b"1"}, {"sub/a.pt": b"1"}),
        ({"one/a.pt": b"1", "two/a.pt": b"2"}, {"one/a.pt": b"1", "two/a.pt": b"2"}),
        ({"top/a.pt": b"1", "README": b"2"}, {"top/a.pt": b"1", "README": b"2"}),
        ({"top/a.pt": b"1", "__MACOSX/top/._a.pt": b"x", "top/.DS_Store": b"x"}, {"a.pt": b"1"}),
        ({"top/a.pt": bytes(3_000_000)}, {"a.pt": bytes(3_000_000)}),
        ({"top/empty": b""}, {"empty": b""}),
    ],
)
def test_comes_out(make: Maker, contents: Contents, expected: Contents, tmp_path: Path, out: Path) -> None:
    unpack(make(tmp_path / "archive", contents), out)
    assert found(out) == expected


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "top/../../escaped",
        "/escaped",
        "..",
        "C:/escaped",
        "..\\escaped",
        "top/\x1b[31mred",
        "C:\\escaped",
    ],
)
def test_names_that_leave_the_folder(make: Maker, name: str, tmp_path: Path, out: Path) -> None:
    refused(make(tmp_path / "archive", {"a": b"1", name: b"2"}), out, "unsafe name")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("names", [("a", "./a"), ("t/a", "t/a/b"), ("t/a/b", "t/a")])
def test_two_of_one_name(make: Maker, names: tuple[str, str], tmp_path: Path, out: Path) -> None:
    refused(make(tmp_path / "archive", dict.fromkeys(names, b"1")), out, "comes twice")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar(kind: bytes, tmp_path: Path, out: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("top/a")
        info.type, info.linkname = kind, "../../secret"
        archive.addfile(info)
    refused(tmp_path / "a.tar", out, "is a link or a device")


def test_links_in_a_zip(tmp_path: Path, out: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("top/a")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../../secret")
    refused(tmp_path / "a.zip", out, "is a link or a device")


def test_encrypted(tmp_path: Path, out: Path) -> None:
    content = bytearray(make_zip(tmp_path / "a.zip", {"a": b"1"}).read_bytes())
    directory = content.index(b"PK\1\2")
    content[directory + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", out, "is encrypted")


@pytest.mark.parametrize("make", MAKERS)
def test_too_much(make: Maker, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make(tmp_path / "archive", {f"t/{number}": bytes(1000) for number in range(11)})
    monkeypatch.setattr(archives, "MOST_FILES", 10)
    refused(archive, out, "11 files")
    monkeypatch.setattr(archives, "MOST_FILES", 11)
    monkeypatch.setattr(archives, "LARGEST", 10_999)
    refused(archive, out, "no speaker model does")
    monkeypatch.setattr(archives, "LARGEST", 11_000)
    unpack(archive, out)


@pytest.mark.parametrize("declared", [10, 100_000])
def test_a_zip_that_lies_about_its_size(declared: int, tmp_path: Path, out: Path) -> None:
    content = bytearray(make_zip(tmp_path / "a.zip", {"a": bytes(50_000)}).read_bytes())
    directory = content.index(b"PK\1\2")
    struct.pack_into("<I", content, directory + 24, declared)
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", out, "damaged|than the archive says")


@pytest.mark.parametrize("make", MAKERS)
def test_damaged(make: Maker, tmp_path: Path, out: Path) -> None:
    archive = make(tmp_path / "archive", {"a": bytes(range(256)) * 1000})
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    refused(archive, out, "is damaged|is neither zip nor tar")


def test_flipped_byte(tmp_path: Path, out: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(range(256)) * 1000})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    refused(archive, out, "is damaged")


@pytest.mark.parametrize("content", [b"", JUNK, b"<!DOCTYPE html><html></html>"])
def test_no_archive(content: bytes, tmp_path: Path, out: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", out, "is neither zip nor tar")


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_in_it(make: Maker, tmp_path: Path, out: Path) -> None:
    refused(make(tmp_path / "archive", {"__MACOSX/._a": b"x"}), out, "holds no files")
