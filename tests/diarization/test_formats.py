"""Formats of turns: every one gives back what was written, all agree, and damage is named with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerkit.diarization.formats import (
    FORMATS,
    read_turns,
    read_uem,
    rounded,
    to_text,
    write_text,
    write_uem,
)
from speakerkit.diarization.formats.text import escape, unescape
from speakerkit.diarization.turns import Diarization, Speaker, Turn
from speakerkit.errors import DataError
from tests.hostile.inputs import DEEP, JUNK, LONG_LINE

NAMES = (
    "spk 1", "Zoë", "日本 語", 'a "b"', "x,y;z", "<NA>", "100%", "%20", "a%41", "[c]: d", "<v e> --> f&amp;", "-1",
    "=1+2", " lead", "trail ", "a  b", "tab\tnew\nline\r", "\u2028\x85", "\ufeff", ";;", "!x", "null", "NOTE",
    "%%C3%A9é", "  ",
)  # fmt: skip


def drawn(seed: int, recording: str = "meeting", count: int = 40) -> Diarization:
    """Turns at any float, of speakers with awkward names."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 100, count)
    ends = np.minimum(starts + rng.exponential(2, count), 101.23456)
    speakers = rng.choice(len(NAMES), count)
    sure = [None if rng.random() < 0.5 else float(rng.random()) for _ in range(count)]
    turns = [
        Turn(float(start), float(end), NAMES[who], confidence)
        for start, end, who, confidence in zip(starts, ends, speakers, sure, strict=True)
    ]
    return Diarization(recording, tuple(turns), 101.23456)


def times(diarization: Diarization) -> list[tuple[int, int, str]]:
    return [(round(1000 * turn.start), round(1000 * turn.end), turn.speaker) for turn in diarization.turns]


def written(diarization: Diarization, name: str, folder: Path) -> Path:
    path = folder / f"{escape(diarization.recording)}{FORMATS[name].suffix}"
    write_text(path, to_text([diarization], name))
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_every_format_gives_back_the_same_turns(name: str, seed: int, tmp_path: Path) -> None:
    made = drawn(seed)
    (key, read), *rest = read_turns(written(made, name, tmp_path)).items()
    assert not rest
    assert key == read.recording == "meeting"
    assert times(read) == times(rounded(made))
    again = read_turns(written(read, name, tmp_path))["meeting"]
    assert again.turns == read.turns
    if name in ("rttm", "json", "csv"):
        assert [turn.confidence for turn in read.turns] == [turn.confidence for turn in rounded(made).turns]
    if name in ("json", "textgrid"):
        assert read.duration == 101.234


@settings(max_examples=20)
@given(speaker=st.text(min_size=1, max_size=8), recording=st.text(min_size=1, max_size=4))
def test_any_name_survives_every_format(speaker: str, recording: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    made = Diarization(recording, (Turn(0.5, 1.25, speaker),), 2.0)
    for name, each in FORMATS.items():
        path = folder / f"file{each.suffix}"
        write_text(path, to_text([made], name))
        (read,) = read_turns(path).values()
        assert read.labels == (speaker,), name
        assert read.recording == (recording if each.write else "file"), name


@given(st.text())
def test_escaping_loses_nothing_and_leaves_nothing(name: str) -> None:
    field = escape(name, r"\s\u0080-\U0010ffff")
    assert field.isascii()
    assert not re.search(r"\s", field)
    assert unescape(field) == unescape(escape(name)) == name


def test_rounding_keeps_turns_valid() -> None:
    turns = (
        Turn(1.0, 1.0001, "short"),
        Turn(9.9998, 9.9999, "last"),
        Turn(2.0, 2.9996, "meets"),
        Turn(3.0004, 4.0, "meets"),
        Turn(0.0, 9.9999, "all"),
    )
    result = rounded(Diarization("a", turns, 9.9999))
    assert times(result) == [
        (0, 9999, "all"),
        (1000, 1001, "short"),
        (2000, 4000, "meets"),
        (9998, 9999, "last"),
    ]
    assert result.duration == 9.999
    assert times(rounded(result)) == times(result)
    with pytest.raises(DataError, match="shorter than a millisecond"):
        rounded(Diarization("a", (Turn(0, 0.0005, "b"),), 0.0005))


def test_rttm_is_fields_of_ascii(tmp_path: Path) -> None:
    text = to_text([drawn(0, "räum 1"), drawn(1, "b")], "rttm")
    fields = [line.split(" ") for line in text.splitlines()]
    assert {len(each) for each in fields} == {10}
    assert text.isascii()
    starts = [(each[1], float(each[3])) for each in fields]
    assert starts == sorted(starts)
    assert all(float(each[4]) > 0 and float(each[3]) + float(each[4]) < 101.2345 for each in fields)
    assert fields[-1][1] == "r%C3%A4um%201"
    assert Diarization("a", (Turn(1, 2.5, "b c", 0.12345),)).to_rttm() == (
        "SPEAKER a 1 1.000 1.500 <NA> <NA> b%20c 0.123 <NA>\n"
    )


def test_known_texts(tmp_path: Path) -> None:
    d = Diarization("a", (Turn(0.5, 3661.25, "B"), Turn(1, 2, "A", 0.5)), 4000.0)
    assert d.to_lab() == "0.500 3661.250 B\n1.000 2.000 A\n"
    assert d.to_audacity() == "0.500\t3661.250\tB\n1.000\t2.000\tA\n"
    assert d.to_csv() == (
        "recording,channel,start,end,speaker,confidence\na,1,0.500,3661.250,B,\na,1,1.000,2.000,A,0.500\n"
    )
    assert d.to_srt() == "1\n00:00:00,500 --> 01:01:01,250\n[B]\n\n2\n00:00:01,000 --> 00:00:02,000\n[A]\n"
    assert d.to_vtt() == (
        "WEBVTT\n\n00:00:00.500 --> 01:01:01.250\n<v B>B</v>\n\n00:00:01.000 --> 00:00:02.000\n<v A>A</v>\n"
    )
    recording = json.loads(d.to_json())["recordings"][0]
    assert recording["turns"][1] == {"start": 1.0, "end": 2.0, "speaker": "A", "confidence": 0.5}
    path = tmp_path / "new" / "a.TextGrid"
    assert d.to_textgrid(path) == path.read_text()
    assert [each.name for each in path.parent.iterdir()] == ["a.TextGrid"]


def test_json_keeps_speakers_and_settings(tmp_path: Path) -> None:
    from speakerkit.diarization.formats.tables import write_json

    voice = np.array([0.1, -3e-8, 2.0], dtype=np.float32)
    made = Diarization("a", (Turn(0, 1, "ana"),), 2.0, 2, {"ana": Speaker("ana", voice, 0.75)}, {"threshold": 0.5})
    path = tmp_path / "x.json"
    write_text(path, write_json([made], embeddings=True))
    read = read_turns(path)["a"]
    assert np.array_equal(read.speakers["ana"].embedding, voice)
    assert (read.speakers["ana"].cosine, read.channel, read.settings) == (0.75, 2, {"threshold": 0.5})
    assert "embedding" not in made.to_json()
    with pytest.raises(DataError, match="cannot be written as JSON"):
        Diarization("a", settings={"x": float("nan")}).to_json()


def test_channels_and_several_recordings(tmp_path: Path) -> None:
    made = [Diarization("b", (Turn(0, 1, "x"),), channel=2), Diarization("b", (Turn(0, 2, "y"),)), drawn(0, "a")]
    for name in ("rttm", "csv", "json"):
        path = tmp_path / f"x{FORMATS[name].suffix}"
        write_text(path, to_text(made, name))
        read = read_turns(path)
        assert list(read) == ["a", "b:1", "b:2"]
        assert times(read["b:2"]) == [(0, 1000, "x")]
        assert read["b:2"].channel == 2
    with pytest.raises(DataError, match="'b:2' comes twice"):
        to_text([*made, Diarization("b:2")], "rttm")
    with pytest.raises(DataError, match="hold one recording, not 3"):
        to_text(made, "srt")
    with pytest.raises(DataError, match="'b' comes twice"):
        to_text([made[0], made[0]], "rttm")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "silent.rttm").write_text("")
    (tmp_path / "x.rttm").write_text("SPEAKER a 1 0 1 <NA> <NA> s <NA> <NA>\n")
    (tmp_path / "a.flac").write_bytes(b"")
    (tmp_path / "a.lab").write_text("0 1 s\n")
    assert {key: len(each.turns) for key, each in read_turns(tmp_path).items()} == {"a": 1, "silent": 0}
    assert list(read_turns(tmp_path, "lab")) == ["a"]
    (tmp_path / "y.rttm").write_text("SPEAKER a 1 3 1 <NA> <NA> s <NA> <NA>\n")
    with pytest.raises(DataError, match="'a' comes twice"):
        read_turns(tmp_path)
    with pytest.raises(DataError, match="holds no file of turns"):
        read_turns(tmp_path, "srt")


def test_nobody_speaks(tmp_path: Path) -> None:
    for name in FORMATS:
        read = read_turns(written(Diarization("quiet", duration=3.0), name, tmp_path))
        assert [(key, each.turns) for key, each in read.items()] == [("quiet", ())]


OTHERS = {
    "nist.rttm": ";; comment\nSPKR-INFO m 1 <NA> <NA> <NA> unknown s <NA>\nSPEAKER m A 1 2e0 <NA> <NA> s <NA>\r\n"
    "SPEAKER m 1 4 0 <NA> <NA> s\n",
    "short.TextGrid": 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n5\n<exists>\n2\n'
    '"TextTier"\n"p"\n0\n5\n1\n2\n"a mark"\n'
    '"IntervalTier"\n"s"\n0\n5\n3\n0\n1\n""\n1\n3\n"he said ""no"" ! 7"\n3\n5\n" "\n',
    "said.srt": "1\n00:00:01,000 --> 00:00:02,000\ns: hello\nthere\n\n2\n00:00:02,000 --> 00:00:03,000 X1:1\n[s] hi\n",
    "said.vtt": "WEBVTT - x\nKind: captions\n\nNOTE no\ncue\n\nSTYLE\n::cue {}\n\nid\n"
    "00:01.000 --> 00:03.000 align:left\n<v.loud s>hello</v>\n",
    "marks.txt": "1\t3\ts\n\\\t100\t200\n",
    "sheet.csv": "Speaker,end, start,channel\ns,3,1,A\n\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_programs(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(OTHERS[name], newline="")
    (read,) = read_turns(path).values()
    assert times(read) == [(1000, 3000, "s")]
    if name.endswith("TextGrid"):
        assert read.duration == 5
        path.write_text(OTHERS[name], encoding="utf-16")
        assert read_turns(path)["short"].turns == read.turns


GRID = to_text([Diarization("a", (Turn(1, 2, "s"),), 5.0)], "textgrid")
JSON = json.loads(to_text([Diarization("a", (Turn(1, 2, "s"),), 5.0)], "json"))


def changed(**turn: object) -> str:
    value = json.loads(json.dumps(JSON))
    value["recordings"][0]["turns"][0].update(turn)
    return json.dumps(value)


BAD = [
    ("a.rttm", "\nSPEAKER a 1 0 1 <NA> <NA>\n", "line 2 has 7 fields"),
    ("a.rttm", "SPEAKER a 1 0 1 <NA> <NA> s <NA> <NA>\nSPEAKER a 1 0 1 <NA> <NA> a b c d\n", "line 2 has 11 fields"),
    ("a.rttm", "SPEAKER a 1 nan 1 <NA> <NA> s <NA> <NA>\n", "line 1 has the time 'nan'"),
    ("a.rttm", "SPEAKER a 1 1 -0.5 <NA> <NA> s <NA> <NA>\n", "line 1 has the time '-0.5'"),
    ("a.rttm", "SPEAKER a 1 1e300 1 <NA> <NA> s <NA> <NA>\n", "line 1 has the time '1e300'"),
    ("a.rttm", f"SPEAKER a 1 {'9' * 5000} 1 <NA> <NA> s <NA> <NA>\n", "line 1 has the time '999"),
    ("a.rttm", "SPEAKER a 1 1_0 1 <NA> <NA> s <NA> <NA>\n", "line 1 has the time '1_0'"),
    ("a.rttm", "SPEAKER a x 1 1 <NA> <NA> s <NA> <NA>\n", "line 1 has the channel 'x'"),
    ("a.rttm", "SPEAKER a 1 1 1 <NA> <NA> s 1.5 <NA>\n", "line 1 has the confidence '1.5'"),
    ("a.rttm", "SPEAKER a 1 1 1 <NA> <NA> <NA> <NA> <NA>\n", "line 1 has no speaker"),
    ("a.rttm", "hello\n", "line 1 starts with 'hello'"),
    ("a.rttm", LONG_LINE, "line 1 starts with 'xxx"),
    ("a.lab", "0 1 s\n2 1 s\n", r"line 2 ends \(1 s\) before it starts"),
    ("a.lab", "0 1 s t\n", "line 1 has 4 fields"),
    ("a.txt", "0 1 s\n", "line 1 has 1 columns"),
    ("a.txt", "0\t1\t\n", "line 1 has no speaker"),
    ("a.csv", "start,end\n0,1\n", "line 1 is no header"),
    ("a.csv", "start,end,speaker\n0,1\n", "line 2 has 2 columns"),
    ("a.csv", "start,end,speaker\n0,inf,s\n", "line 2 has the time 'inf'"),
    ("a.csv", "start,end,speaker\n0,1," + "x" * 200_000, "line 2 is no CSV"),
    ("a.srt", "1\n00:00:01,000 -> 00:00:02,000\n[s]\n", "line 2 is no timing"),
    ("a.srt", "1\n00:00:61,000 --> 00:01:02,000\n[s]\n", "line 2 has the time '00:00:61,000'"),
    ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nhello\n", "line 2 starts a cue that names no speaker"),
    ("a.vtt", "00:01.000 --> 00:02.000\n<v s>\n", "line 1 is not WEBVTT"),
    ("a.TextGrid", GRID.replace("xmax = 2.000", "xmax = 7.000"), "line 22 ends an interval at 7 s"),
    ("a.TextGrid", GRID.replace("size = 1", "size = x"), "line 10 has '\"IntervalTier\"' where the number of tiers"),
    ("a.TextGrid", GRID.replace("size = 1", "size = 99999999"), "is the last, where a tier's class should follow"),
    ("a.TextGrid", "", "line 1 is the last"),
    ("a.TextGrid", b"ooBinaryFile\x08TextGrid", "binary TextGrid"),
    ("a.json", "{", "line 1 is no JSON"),
    ("a.json", DEEP, "no usable JSON"),
    ("a.json", "[]", "not of format"),
    ("a.json", changed(start=float("nan")), "no usable JSON"),
    ("a.json", changed(start=-1), "turn 1 of 'a' has the start -1"),
    ("a.json", changed(end="2"), "turn 1 of 'a' has the end 2"),
    ("a.json", changed(end=0.5), "turn 1 of 'a' ends"),
    ("a.json", changed(end=6), r"turn to 6 s, but lasts 5 s"),
    ("a.json", changed(speaker=""), "turn 1 of 'a' has no speaker"),
    ("a.json", changed(confidence=2), "turn 1 of 'a' has the confidence 2"),
    ("a.rttm", None, "no such file"),
    ("a.xyz", "", r"has a suffix \(.xyz\) of no known format"),
    ("a.uem", "", "holds regions to score, not turns"),
]


@pytest.mark.parametrize(("name", "content", "fault"), BAD)
def test_damage_is_named_with_its_line(name: str, content: str | bytes | None, fault: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=fault) as raised:
        read_turns(path)
    assert raised.value.subject == str(path)


@pytest.mark.parametrize("name", FORMATS)
def test_junk_and_cut_files(name: str, tmp_path: Path) -> None:
    """What is cut may still be whole (at the end of a line); it never is anything but turns or one error."""
    path = tmp_path / f"a{FORMATS[name].suffix}"
    for junk in (JUNK, bytes(1000), b"\xff\xfe\x00"):
        path.write_bytes(junk)
        with pytest.raises(DataError):
            read_turns(path)
    whole = to_text([drawn(0, "a", 5)], name).encode()
    cut = 0
    for length in range(1, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        try:
            read_turns(path)
        except DataError:
            cut += 1
    assert cut > 0


def test_uem(tmp_path: Path) -> None:
    path = tmp_path / "x.uem"
    spans = {"b c": ((0.0, 1.5), (2.0, 3.25)), "a": ((1.0, 2.0),)}
    write_text(path, write_uem(spans))
    assert path.read_text() == "a 1 1.000 2.000\nb%20c 1 0.000 1.500\nb%20c 1 2.000 3.250\n"
    assert read_uem(path) == spans
    path.write_text(";; x\na 1 5 7\na 1 0 6\n")
    assert read_uem(path) == {"a": ((0.0, 7.0),)}
    for content, fault in (
        ("a 1 0\n", "line 1 has 3 fields"),
        ("a 1 2 1\n", "region from 2 to 1 s"),
        ("a 1 0 nan\n", "the time 'nan'"),
        ("", "no region"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=fault):
            read_uem(path)


@pytest.mark.parametrize("corpus", ["ami-mini", "voxconverse-rttm"])
def test_real_references_are_the_same_in_every_format(corpus: str, real_data: Path, tmp_path: Path) -> None:
    if not (real_data / corpus).is_dir():
        pytest.skip(f"no {corpus} in SPEAKERKIT_DATA")
    for reference in list(read_turns(real_data / corpus).values())[:5]:
        speech = sum(turn.seconds for turn in reference.turns)
        assert speech > 0
        for name in FORMATS:
            read = read_turns(written(reference, name, tmp_path))[reference.recording]
            assert times(read) == times(reference)
            assert sum(turn.seconds for turn in read.turns) == pytest.approx(speech, abs=1e-6)


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="which is no text"):
        Diarization("a", (Turn(0, 1, "x\udc80"),)).to_rttm()
    with pytest.raises(DataError, match="without name"):
        Diarization("").to_rttm()
