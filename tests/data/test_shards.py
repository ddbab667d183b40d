"""Shards: same bytes for any number of workers, read back by index, and no damaged or hostile tar gets through."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from speakerkit.audio import load_audio
from speakerkit.cli import lists as cli
from speakerkit.data.lists import Utterance, write_data_dir
from speakerkit.data.shards import index_shard, read_member, read_shard_list, write_shards
from speakerkit.errors import DataError

RATE = 16000


def tone(path: Path, seconds: float = 0.2, frequency: float = 440.0, rate: int = RATE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * frequency * time), rate)
    return str(path)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    suffixes = ["wav", "flac", "ogg", "mp3"]
    return [
        Utterance(f"id{n % 3}/video.x/{n:05d}.wav", f"id{n % 3}", tone(tmp_path / f"a b/{n}.{suffixes[n % 4]}"))
        for n in range(11)
    ]


def make_tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def wav_bytes() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.linspace(-0.5, 0.5, 1600), RATE, format="WAV")
    return stream.getvalue()


def test_round_trip_keeps_the_encoded_bytes(tmp_path: Path, utterances: list[Utterance]) -> None:
    paths = write_shards(utterances, tmp_path / "out", per_shard=4)
    assert [path.name for path in paths] == [f"shards_{n:09d}.tar" for n in range(3)]
    assert (tmp_path / "out/shard.list").read_text().split() == [str(path) for path in paths]
    members = read_shard_list(tmp_path / "out/shard.list")
    by_key = {utterance.key: utterance for utterance in utterances}
    assert sorted(member.key for member in members) == sorted(by_key)
    assert [member.key for member in members] != [utterance.key for utterance in utterances]  # shuffled
    for member in members:
        utterance = by_key[member.key]
        assert member.speaker == utterance.speaker
        assert member.suffix == Path(utterance.wav).suffix
        assert read_member(member) == Path(utterance.wav).read_bytes()


def test_members_stand_in_wespeakers_order(tmp_path: Path, utterances: list[Utterance]) -> None:
    (path,) = write_shards(utterances[:2], tmp_path / "out", shuffle=False)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            "id0/video.x/00000.wav.spk",
            "id0/video.x/00000.wav.wav",
            "id1/video.x/00001.wav.spk",
            "id1/video.x/00001.wav.flac",
        ]
        assert {member.mtime for member in members} == {0}
        assert tar.extractfile(members[2]).read() == b"id1"  # type: ignore[union-attr]


def test_bytes_depend_on_the_seed_and_not_on_workers(tmp_path: Path, utterances: list[Utterance]) -> None:
    def packed(name: str, workers: int, seed: int) -> list[bytes]:
        paths = write_shards(utterances, tmp_path / name, per_shard=3, workers=workers, seed=seed)
        return [path.read_bytes() for path in paths]

    assert packed("one", 1, 1) == packed("three", 3, 1)
    assert packed("one", 1, 1) != packed("other", 2, 2)


def test_vad_segments_are_concatenated(tmp_path: Path) -> None:
    ramp = (np.arange(RATE) / RATE).astype(np.float32) - 0.5
    soundfile.write(tmp_path / "ramp.flac", ramp, RATE, subtype="PCM_16")
    utterance = Utterance("u", "s", str(tmp_path / "ramp.flac"), ((0.1, 0.2), (0.5, 0.75)))
    (path,) = write_shards([utterance], tmp_path / "out")
    (member,) = index_shard(path)
    audio = load_audio(read_member(member))
    assert member.suffix == ".wav"
    np.testing.assert_allclose(audio.samples, np.r_[ramp[1600:3200], ramp[8000:12000]], atol=2 / 32768)
    with pytest.raises(DataError, match=r"ramp.flac: has no speech from 1.5 to 2.0 s"):
        write_shards([Utterance("u", "s", str(tmp_path / "ramp.flac"), ((1.5, 2.0),))], tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("content", [b"", b"this is text, not sound", None])
def test_a_bad_file_fails_all_and_is_named(
    tmp_path: Path, utterances: list[Utterance], workers: int, content: bytes | None
) -> None:
    write_shards(utterances, tmp_path / "out", per_shard=3)
    bad = tmp_path / "bad.wav"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.wav"):
        write_shards([*utterances, Utterance("bad", "s", str(bad))], tmp_path / "out", per_shard=3, workers=workers)
    assert not (tmp_path / "out/shard.list").exists()
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("key", ["../up", "/root", "a/../../b", "..\\up", "C:/x"])
def test_keys_that_leave_the_folder_are_refused(tmp_path: Path, key: str) -> None:
    wav = tone(tmp_path / "a.wav")
    with pytest.raises(DataError, match="unsafe name"):
        write_shards([Utterance(key, "s", wav)], tmp_path / "out")
    tar = make_tar(tmp_path / "x.tar", (f"{key}.spk", b"s"), (f"{key}.wav", wav_bytes()))
    with pytest.raises(DataError, match="unsafe name"):
        index_shard(tar)


def test_writing_refuses_what_contradicts_itself(tmp_path: Path) -> None:
    wav = tone(tmp_path / "a.wav")
    for wrong in (
        [],
        [Utterance("a", "s", wav)] * 2,
        [Utterance("a", "s", feat="x.ark:3")],
        [Utterance("a", " ", wav)],
    ):
        with pytest.raises(DataError):
            write_shards(wrong, tmp_path / "out")
    with pytest.raises(DataError, match="--allow-pipes"):
        write_shards([Utterance("a", "s", f"cat {wav} |")], tmp_path / "out")


def test_commands_run_only_where_allowed(tmp_path: Path) -> None:
    wav = tone(tmp_path / "a.wav")
    (path,) = write_shards([Utterance("a", "s", f"cat {wav} |")], tmp_path / "out", allow_pipes=True)
    (member,) = index_shard(path)
    assert read_member(member) == Path(wav).read_bytes()
    assert member.suffix == ".wav"
    with pytest.raises(DataError, match="failed with status 3"):
        write_shards([Utterance("a", "s", "exit 3 |")], tmp_path / "out", allow_pipes=True)


def test_other_members_are_stepped_over(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    evil = f"cos\nsystem\n(S'touch {sentinel}'\ntR.".encode()
    folder = tarfile.TarInfo("./u")
    folder.type = tarfile.DIRTYPE
    tar = make_tar(
        tmp_path / "x.tar",
        ("README", b"hello"),
        folder,
        ("./u/1.pkl", evil),
        ("./u/1.spk", b"anna\n"),
        ("./u/1.pyd", evil),
        ("./u/1.WAV", wav_bytes()),
        ("last.txt", b"bye"),
    )
    (member,) = index_shard(tar)
    assert (member.key, member.speaker, member.suffix) == ("u/1", "anna", ".wav")
    assert read_member(member) == wav_bytes()
    assert not sentinel.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("a.wav")
    link.type, link.linkname = kind, "/etc/passwd"
    with pytest.raises(DataError, match=r"'a.wav' is a link, a device"):
        index_shard(make_tar(tmp_path / "x.tar", ("a.spk", b"s"), link))


def test_incomplete_and_repeated_utterances_are_refused(tmp_path: Path) -> None:
    spk, wav = ("a.spk", b"s"), ("a.wav", wav_bytes())
    for members in ([spk], [wav], [spk, ("b.spk", b"t"), wav], [spk, wav, ("a.flac", b"")], [("a.spk", b"\xff"), wav]):
        with pytest.raises(DataError, match="'a"):
            index_shard(make_tar(tmp_path / "x.tar", *members))
    twice = make_tar(tmp_path / "x.tar", spk, wav, ("b.spk", b"s"), ("b.wav", wav_bytes()), spk, wav)
    with pytest.raises(DataError, match="'a' twice"):
        index_shard(twice)
    with pytest.raises(DataError, match="holds no utterances"):
        index_shard(make_tar(tmp_path / "x.tar", ("README.txt", b"hello")))


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = make_tar(
        tmp_path / "x.tar", ("a.spk", b"s"), ("a.wav", wav_bytes()), ("b.spk", b"s"), ("b.wav", wav_bytes())
    )
    data = whole.read_bytes()
    end = index_shard(whole)[-1]
    content = -(-(end.offset + end.size) // 512) * 512  # what follows is end mark and padding
    for length in [*range(0, content, 997), *range(0, content + 1, 512)]:
        whole.write_bytes(data[:length])
        with pytest.raises(DataError) as caught:
            index_shard(whole)
        assert "\n" not in str(caught.value)
    damaged = bytearray(data)
    damaged[end.offset - 512 : end.offset] = b"\xa5" * 512  # a header in the middle
    whole.write_bytes(damaged)
    with pytest.raises(DataError):
        index_shard(whole)


def test_random_damage_to_headers_never_hangs_or_raises_anything_else(tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "x.tar", ("a.spk", b"s"), ("a.wav", wav_bytes()), ("b.spk", b"s"), ("b.wav", wav_bytes())
    )
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        header = int(rng.choice([0, 1024, 5120, 6144]))
        for place in rng.integers(0, 512, 3):
            damaged[header + place] = rng.integers(256)
        block = damaged[header : header + 512]
        block[148:156] = b" " * 8
        damaged[header + 148 : header + 156] = b"%06o\0 " % sum(block)  # a right checksum, so that the rest is believed
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            index_shard(path)


@pytest.mark.timeout(20)
def test_a_size_that_leads_back_does_not_go_round_in_circles(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", ("a.spk", b"s"), ("a.wav", wav_bytes()))
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = (-1024).to_bytes(12, "big", signed=True)  # base-256, as GNU tar writes sizes
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    path.write_bytes(data)
    with pytest.raises(DataError):
        index_shard(path)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.tar"
    text.write_text("not a tar at all\n" * 100)
    packed = tmp_path / "x.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.spk"))
    for path in (text, packed, tmp_path, tmp_path / "missing.tar"):
        with pytest.raises(DataError, match=path.name):
            index_shard(path)


def test_shard_lists_refuse_doubles_urls_and_commands(tmp_path: Path, utterances: list[Utterance]) -> None:
    (path,) = write_shards(utterances[:2], tmp_path / "out")
    listing = tmp_path / "x.list"
    for text, message in (
        (f"{path}\n{path}\n", "has too"),
        ("https://example.org/x.tar\n", "URL"),
        (f"pipe:cat {path}\n", "--allow-pipes"),
        (f"cat {path} |\n", "--allow-pipes"),
        ("missing.tar\n", "no such file"),
        ("\n", "names no shards"),
    ):
        listing.write_text(text)
        with pytest.raises(DataError, match=message):
            read_shard_list(listing)


def test_relative_entries_are_found_beside_the_list(tmp_path: Path, utterances: list[Utterance]) -> None:
    write_shards(utterances, tmp_path / "out", per_shard=5)
    listing = tmp_path / "out/relative.list"
    listing.write_text("".join(f"shards_{n:09d}.tar\n" for n in range(3)))
    assert len(read_shard_list(listing)) == len(utterances)


def test_a_piped_shard_is_fetched_once_and_whole(tmp_path: Path, utterances: list[Utterance]) -> None:
    pytest.importorskip("webdataset")
    (path,) = write_shards(utterances[:3], tmp_path / "out")
    listing, log = tmp_path / "x.list", tmp_path / "log"
    listing.write_text(f"pipe:echo fetched >> {log}; cat {path}\n")
    for _ in range(2):
        members = read_shard_list(listing, allow_pipes=True, cache=tmp_path / "cache")
        assert [read_member(member) for member in members] == [read_member(member) for member in index_shard(path)]
    assert log.read_text() == "fetched\n"
    for command in (f"head -c 5000 {path}", "exit 1"):
        listing.write_text(f"pipe:{command}\n")
        with pytest.raises(DataError, match=command):
            read_shard_list(listing, allow_pipes=True, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_reading_survives_forks_and_sees_a_shard_made_anew(tmp_path: Path, utterances: list[Utterance]) -> None:
    (path,) = write_shards(utterances, tmp_path / "out")
    members = index_shard(path)
    expected = [read_member(member) for member in members]
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            same = all([read_member(member) for member in members] == expected for _ in range(50))
            os._exit(0 if same else 1)
        children.append(child)
    assert all([read_member(member) for member in members] == expected for _ in range(50))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    write_shards(utterances[:1], tmp_path / "out")
    (member,) = index_shard(path)
    assert read_member(member) == Path(utterances[0].wav).read_bytes()
    with pytest.raises(DataError, match="is truncated"):
        read_member(members[-1])
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_member(member)


def test_commands(tmp_path: Path, utterances: list[Utterance]) -> None:
    app = typer.Typer()
    app.command()(cli.raw)
    app.command()(cli.shards)
    app.command()(cli.lmdb)
    app.command()(cli.augmentations)
    run = CliRunner()
    write_data_dir(tmp_path / "data", utterances)
    result = run.invoke(app, ["raw", f"{tmp_path}/data", f"{tmp_path}/raw.list"], catch_exceptions=False)
    assert result.exit_code == 0
    for source in ("data", "raw.list"):
        arguments = [f"{tmp_path}/{source}", f"{tmp_path}/{source}.out", "--per-shard", "4", "--no-shuffle"]
        result = run.invoke(app, ["shards", *arguments], catch_exceptions=False)
        assert result.stdout.strip() == f"{tmp_path}/{source}.out/shard.list"
        members = read_shard_list(tmp_path / f"{source}.out/shard.list")
        assert [member.key for member in members] == sorted(utterance.key for utterance in utterances)
    result = run.invoke(app, ["lmdb", f"{tmp_path}/data", f"{tmp_path}/store"], catch_exceptions=False)
    assert result.stdout.strip() == f"{tmp_path}/store"
    assert "snr" in run.invoke(app, ["augmentations"], catch_exceptions=False).stdout
