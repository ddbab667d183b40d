"""Lists: what is written is read back, peers' files are read, and contradictions are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speakerkit.data.lists import (
    Utterance,
    command_of,
    open_entry,
    read_data_dir,
    read_lines,
    read_scp,
    read_table,
    read_utterance_list,
    read_vad,
    write_data_dir,
    write_table,
    write_utterance_list,
)
from speakerkit.errors import DataError, SpeakerKitError, one_line

UTTERANCES = [
    Utterance("id1/v/00001.wav", "id1", "/data/a b  c.wav"),
    Utterance("ünï", "日本", "/data/ü\u2028x\u3000y\x0cz.flac", ((0.5, 1.25), (2.0, 3.0))),
    Utterance("plain", "id1", "relative/x.wav"),
]


def test_raw_list_round_trip(tmp_path: Path) -> None:
    write_utterance_list(tmp_path / "raw.list", UTTERANCES)
    assert read_utterance_list(tmp_path / "raw.list") == UTTERANCES


def test_feat_list_round_trip(tmp_path: Path) -> None:
    rows = [Utterance("a", "s", feat="/x/feats.ark:12345")]
    write_utterance_list(tmp_path / "feat.list", rows)
    assert read_utterance_list(tmp_path / "feat.list") == rows


def test_wespeaker_raw_list(tmp_path: Path) -> None:
    """As WeSpeaker's tools/make_raw_list.py writes it: vad times are strings."""
    path = tmp_path / "raw.list"
    path.write_text(
        '{"key": "id10001/x/00001.wav", "spk": "id10001", "wav": "/v/00001.wav"}\n'
        '{"key": "b", "spk": 7, "wav": "/v/b.wav", "vad": [["0.350", "1.20"], ["2", "3.5"]]}\n'
    )
    first, second = read_utterance_list(path)
    assert first == Utterance("id10001/x/00001.wav", "id10001", "/v/00001.wav")
    assert second == Utterance("b", "7", "/v/b.wav", ((0.35, 1.2), (2.0, 3.5)))
    write_utterance_list(tmp_path / "again.list", [second])
    written = json.loads((tmp_path / "again.list").read_text())
    assert written["vad"] == [["0.350", "1.200"], ["2.000", "3.500"]]


@pytest.mark.parametrize(
    "row",
    [
        "no json",
        "[]",
        '"text"',
        "{}",
        '{"key": "a", "spk": "s"}',
        '{"key": "a", "wav": "x"}',
        '{"key": "", "spk": "s", "wav": "x"}',
        '{"key": "a b", "spk": "s", "wav": "x"}',
        '{"key": "a", "spk": null, "wav": "x"}',
        '{"key": "a", "spk": "s", "wav": ["x"]}',
        '{"key": "a", "spk": true, "wav": "x"}',
        '{"key": "a", "spk": "s", "wav": "x", "vad": [[1]]}',
        '{"key": "a", "spk": "s", "wav": "x", "vad": [["b", "c"]]}',
        '{"key": "a", "spk": "s", "wav": "x", "vad": [["2", "1"]]}',
        '{"key": "a", "spk": "s", "wav": "x", "vad": [["nan", "1"]]}',
        '{"key": "a", "spk": "s", "wav": "x", "vad": [["0", "inf"]]}',
        '{"key": "a", "spk": "s", "wav": "cat x |"}',
        '{"key": "a", "spk": "s", "wav": "pipe:cat x"}',
        '{"key": "a", "spk": "s", "feat": "| cat x"}',
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "raw.list"
    path.write_text('{"key": "ok", "spk": "s", "wav": "x"}\n' + row + "\n")
    with pytest.raises(DataError, match=r"raw\.list: (line 2|entry 'a' is a command)"):
        read_utterance_list(path)


def test_data_dir_round_trip(tmp_path: Path) -> None:
    whole = [Utterance(each.key, each.speaker, each.wav) for each in UTTERANCES]
    write_data_dir(tmp_path, whole, {each.key: 1.5 for each in whole})
    assert read_data_dir(tmp_path) == sorted(whole, key=lambda each: each.key)
    assert read_table(tmp_path / "spk2utt")["id1"] == "id1/v/00001.wav plain"
    assert set(read_table(tmp_path / "utt2dur").values()) == {"1.5000"}


def test_data_dir_contradictions(tmp_path: Path) -> None:
    write_data_dir(tmp_path, UTTERANCES)
    write_table(tmp_path / "utt2spk", {"plain": "id1"})
    with pytest.raises(DataError, match=r"utt2spk: lacks 2 keys, 'id1/v/00001.wav' first"):
        read_data_dir(tmp_path)
    for bad, message in (
        ([Utterance("a b", "s", "x")], "holds blanks"),
        ([Utterance("a", "", "x")], "is empty"),
        ([Utterance("a", "s", "x"), Utterance("a", "s", "y")], "comes twice"),
    ):
        with pytest.raises(DataError, match=message):
            write_data_dir(tmp_path, bad)


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes("\ufeffa  1 2\r\n\r\n  b\t/x y.wav  \r\n".encode())
    assert read_table(path) == {"a": "1 2", "b": "/x y.wav"}
    for text, message in (("a\n", "line 1 has one column"), ("a 1\nb 2\na 3\n", "'a' comes twice .line 3")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_table(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_lines(path)
    with pytest.raises(DataError, match="no such file"):
        read_lines(tmp_path / "none")
    with pytest.raises(DataError, match="is a directory"):
        read_lines(tmp_path)


@pytest.mark.parametrize(
    ("value", "command"),
    [
        ("a b.wav", ""),
        ("a|b.wav", ""),
        ("sph2pipe x.sph |", "sph2pipe x.sph"),
        ("cat x | sox - -t wav - |  ", "cat x | sox - -t wav -"),
        ("pipe:cat x", "cat x"),
        ("| cat", "| cat"),
        ("|", "|"),
    ],
)
def test_commands_are_told_from_paths(tmp_path: Path, value: str, command: str) -> None:
    assert command_of(value) == command
    (tmp_path / "wav.scp").write_text(f"a {value}\n")
    if command:
        with pytest.raises(DataError, match="--allow-pipes"):
            read_scp(tmp_path / "wav.scp")
    else:
        assert read_scp(tmp_path / "wav.scp") == {"a": value}
    assert read_scp(tmp_path / "wav.scp", allow_pipes=True) == {"a": value.strip()}


def test_entries() -> None:
    assert open_entry("a b.wav") == "a b.wav"
    assert open_entry("printf abc |") == b"abc"
    assert open_entry("pipe:printf abc") == b"abc"
    with pytest.raises(DataError, match=r"failed with status 3 .*sorry"):
        open_entry("echo sorry >&2; exit 3 |")


def test_vad(tmp_path: Path) -> None:
    path = tmp_path / "segments"
    path.write_text("a-2 a 2.5 3\na-1 a 0 1\nb-1 b 1 2\n")
    assert read_vad(path) == {"a": ((0.0, 1.0), (2.5, 3.0)), "b": ((1.0, 2.0),)}
    for line in ("a 0 1", "x a one 2", "x a 2 1", "x a -1 1", "x a nan 1", "x a 0 inf"):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match="line 1"):
            read_vad(path)


def test_messages_are_one_printable_line() -> None:
    error = SpeakerKitError("a  b\n\x1b[31m日本\udc80\u3000.wav", "is\n  bad", "mend it")
    assert str(error) == "a  b \\x1b[31m日本\\udc80\u3000.wav: is bad; mend it"
    assert len(str(SpeakerKitError("x" * 10**6, "is long", "y" * 10**6))) < 2100
    assert "is long" in str(SpeakerKitError("x" * 10**6, "is long"))
    assert one_line("  a \r\n\n b ") == "a b"
