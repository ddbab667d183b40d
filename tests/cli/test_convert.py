"""``convert`` and ``score der`` as a user meets them, and what they say of bad files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import speakerkit
from tests.hostile.inputs import JUNK, LONG_LINE

TWO = (
    "SPEAKER a 1 1.000 4.000 <NA> <NA> ana <NA> <NA>\n"
    "SPEAKER a 1 4.000 4.000 <NA> <NA> bo <NA> <NA>\n"
    "SPEAKER b 1 0.000 2.000 <NA> <NA> ana <NA> <NA>\n"
)
HEARD = (
    "SPEAKER a 1 1.000 3.500 <NA> <NA> 1 <NA> <NA>\n"
    "SPEAKER a 1 4.500 2.500 <NA> <NA> 2 <NA> <NA>\n"
    "SPEAKER a 1 7.000 1.000 <NA> <NA> 1 <NA> <NA>\n"
    "SPEAKER b 1 0.000 2.500 <NA> <NA> 1 <NA> <NA>\n"
)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.rttm"
    path.write_text(TWO)
    return path


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    path = tmp_path / "heard.rttm"
    path.write_text(HEARD)
    return path


def test_convert_there_and_back(two: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "json"):
        assert speakerkit("convert", two, tmp_path / f"x.{suffix}").err.endswith("3 turns, 2 recordings\n")
        speakerkit("convert", tmp_path / f"x.{suffix}", tmp_path / "back.rttm")
        assert (tmp_path / "back.rttm").read_text() == TWO
    for suffix in ("TextGrid", "txt", "lab", "srt", "vtt"):
        assert speakerkit("convert", two, tmp_path / f"a.{suffix}", "--recording", "a").code == 0
        back = speakerkit("convert", tmp_path / f"a.{suffix}", "-", "--to", "rttm")
        assert back.out == "".join(TWO.splitlines(keepends=True)[:2])


def test_convert_writes_a_folder_and_reads_it(two: Path, tmp_path: Path) -> None:
    assert speakerkit("convert", two, f"{tmp_path}/new/", "--to", "srt").err.endswith("2 files\n")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.srt", "b.srt"]
    assert speakerkit("convert", tmp_path / "new", "-", "--to", "rttm").out == TWO


def test_convert_names_and_lengths(two: Path, tmp_path: Path) -> None:
    speakerkit("convert", two, tmp_path / "a.TextGrid", "--recording", "a", "--duration", 9.5)
    assert speakerkit("convert", tmp_path / "a.TextGrid", "-", "--to", "uem").out == "a 1 0.000 9.500\n"
    named = speakerkit("convert", tmp_path / "a.TextGrid", "-", "--to", "rttm", "--recording", "sala 1")
    assert named.out.startswith("SPEAKER sala%201 1 1.000")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("two.rttm", "x.srt"), "files hold one recording, not 2; choose one"),
        (("two.rttm", "x.srt", "--recording", "c"), "has no recording 'c'; it has 'a', 'b'"),
        (("two.rttm", "x.csv", "--duration", "9"), "holds 2 recordings: choose one"),
        (("two.rttm", "x.csv", "--recording", "a", "--duration", "5"), "the recording lasts 5 s"),
        (("two.rttm", "x.csv", "--recording", "a", "--duration", "nan"), "duration"),
        (("two.rttm", "x.csv", "--recording", "a", "--duration", "inf"), "duration"),
        (("two.rttm", "x.uem"), "does not say how long it lasts; give --duration"),
        (("two.rttm", "x.doc"), "has a suffix (.doc) of no known format"),
        (("two.rttm", "x", "--to", "doc"), "is no format of turns"),
        (("two.rttm", "-"), "has a suffix (none)"),
        (("none.rttm", "x.csv"), "no such file"),
        (("two.rttm", "x.csv", "--from", "csv"), "line 1 is no header"),
        (("empty", "x.csv"), "holds no file of turns"),
    ],
)
def test_convert_refuses(
    arguments: tuple[str, ...], fault: str, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    ran = speakerkit("convert", *arguments)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert fault in ran.errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "two.rttm"]


def test_score_der_prints_a_table(two: Path, heard: Path) -> None:
    ran = speakerkit("score", "der", two, heard, "--collar", 0.25, "--explain", "--conventions")
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines()]
    # The collars leave 3 s of each speaker of a; 4.25-4.75 has one label too few, 7-7.75 the wrong one.
    assert ["a", "6.00", "20.83", "8.33", "0.00", "12.50", "33.75"] in lines
    assert ["all", "(2)", "7.50", "20.00", "6.67", "3.33", "10.00", "29.17"] in lines
    assert "on each side of every start and end in the reference is not scored" in ran.out
    assert "confusion: bo taken for 1 (ana)" in ran.out
    assert "false alarm: 1 (ana)" in ran.out
    assert "0.25 s for both sides (pyannote.metrics), without overlap" in ran.out


def test_score_der_as_json(two: Path, heard: Path, tmp_path: Path) -> None:
    uem = tmp_path / "x.uem"
    uem.write_text("a 1 0 7.5\n")
    ran = speakerkit("score", "der", two, heard, "--uem", uem, "--json", "--explain", "--no-overlap", "--median", 11)
    report = json.loads(ran.out)
    assert report["errors"]["speech"] == pytest.approx(5.5)
    assert report["errors"]["der"] == pytest.approx(0.5 / 5.5)
    assert report["convention"]["overlap"] is False
    assert report["outside"] == ["b"]
    assert [span["kind"] for span in report["worst"]] == ["confusion"]
    assert "1 recordings of the reference are not in the UEM, and are not scored: b" in ran.err


def test_score_der_of_missing_and_extra_recordings(two: Path, heard: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.rttm"
    one.write_text(HEARD.replace("SPEAKER b", "SPEAKER c"))
    ran = speakerkit("score", "der", two, one)
    assert (ran.code, len(ran.errors), ran.out) == (2, 1, "")
    assert "lacks 1 recordings of the reference: b" in ran.errors[0]
    ran = speakerkit("score", "der", two, one, "--missing-as-silence")
    assert ran.code == 0
    assert "1 recordings are missing in the hypothesis, and count as silence: b" in ran.err
    assert "1 recordings are in the hypothesis but not in the reference, and are not scored: c" in ran.err


def test_score_der_takes_folders_and_other_formats(two: Path, heard: Path, tmp_path: Path) -> None:
    plain = speakerkit("score", "der", two, heard).out
    speakerkit("convert", heard, f"{tmp_path}/new/", "--to", "vtt")
    assert speakerkit("score", "der", two, tmp_path / "new").out == plain
    speakerkit("convert", heard, tmp_path / "heard.json")
    assert speakerkit("score", "der", two, tmp_path / "heard.json").out == plain


@pytest.mark.parametrize(
    "content",
    [
        JUNK,
        LONG_LINE.encode(),
        TWO[:70].encode(),
        TWO.replace("4.000", "nan").encode(),
        TWO.replace("4.000", "-4").encode(),
        TWO.replace("4.000", "1e308").encode(),
        TWO.replace(" <NA>", "").encode(),
        TWO.encode("utf-16-le"),
    ],
    ids=["junk", "long", "cut", "nan", "negative", "huge", "columns", "utf16"],
)
def test_hostile_turns(content: bytes, two: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.rttm"
    bad.write_bytes(content)
    for command in (
        ("convert", bad, tmp_path / "x.csv"),
        ("score", "der", two, bad),
        ("score", "der", bad, two),
        ("score", "der", two, two, "--uem", bad),
    ):
        ran = speakerkit(*command)
        assert ran.code == 2, command
        assert len(ran.errors) == 1
        assert "bad.rttm: line " in ran.errors[0]
        assert ran.out == ""


@pytest.mark.parametrize("option", [("--collar", "-1"), ("--collar", "nan"), ("--median", "4"), ("--extent", "x")])
def test_options_without_sense(option: tuple[str, str], two: Path) -> None:
    ran = speakerkit("score", "der", two, two, *option)
    assert (ran.code, len(ran.errors)) == (2, 1)
