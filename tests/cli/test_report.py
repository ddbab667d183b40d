"""``speakerkit report``: a page of score files or of turns, or one line of what is wrong with them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speakerkit.diarization.formats.tables import write_json
from speakerkit.diarization.turns import Diarization, Speaker, Turn
from speakerkit.verification.metrics import evaluate
from speakerkit.verification.trials import read_scores
from tests.command import speakerkit
from tests.verification.test_report import Page

SCORES = "a/1 a/2 0.9 target\na/1 b/1 0.6 nontarget\nb/1 b/2 0.4 target\na/2 b/2 0.1 nontarget\n"


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "cosine.score"
    path.write_text(SCORES)
    return path


def test_a_page(scores: Path, tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text(f"a/1 {scores}\n")
    (tmp_path / "utt2dur").write_text("a/1 3.5\n")
    (tmp_path / "utt2spk").write_text("a/1 ana\na/2 ana\nb/1 <bo>\nb/2 <bo>\n")
    lists = [word for name in ("scp", "utt2dur", "utt2spk") for word in (f"--{name}", tmp_path / name)]
    lists[1] = tmp_path / "wav.scp"
    ran = speakerkit(
        "report", "trials", scores, "--out", tmp_path / "r.html", *lists, "--bootstrap", 5, "--date", "today", "--llr"
    )
    assert (ran.code, ran.out) == (0, "")
    page = Page((tmp_path / "r.html").read_text())
    figures = evaluate(read_scores(scores), llr=True)
    assert page.row("cosine", 8)[-1].startswith(f"{figures.cllr:.4f} ")
    assert "speaker <bo>" in page.text
    assert "speaker ana, 3.50 s" in page.text
    assert "of 2 speakers (by utt2spk)" in page.text
    assert f"speakerkit report trials {scores} --scp {tmp_path}/wav.scp" in page.text
    assert "--out" not in page.text
    assert "r.html" not in page.text
    assert "today" in page.text
    assert page.of("audio")[0]["src"] == scores.as_uri()


def test_trials_may_be_left_out(scores: Path, tmp_path: Path) -> None:
    for options in ([scores, "--out", tmp_path / "r.html"], ["--out", tmp_path / "r.html", scores]):
        assert speakerkit("report", *options).code == 0
        assert Page((tmp_path / "r.html").read_text()).row("cosine", 5)
    assert "trials" in speakerkit("report", "--help").out


def test_a_page_under_any_name_has_the_same_bytes(scores: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        ran = speakerkit("report", "trials", scores, f"--out={tmp_path / name}", "--title-label", "caf\udce9")
        assert ran.code == 0, ran
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert "caf\\udce9" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("files", "options", "named", "fault"),
    [
        ({}, ["nothere"], "nothere", "no such file"),
        ({"s": "a b 0.5\n"}, ["s"], "s", "no labels"),
        ({"s": "a b 0.5 target\n"}, ["s"], "s", "nontarget trials"),
        ({"s": SCORES, "t": SCORES.replace("a/2", "a/3")}, ["s", "t"], "t", "trial 1 is not that of s"),
        ({"s": SCORES, "t": SCORES[19:]}, ["s", "t"], "t", "3 trials, s 4"),
        ({"s": SCORES, "w": "x y.wav\n"}, ["s", "--scp", "w"], "w", "none of the recordings"),
        ({"s": SCORES}, ["s", "--scp", "nothere"], "nothere", "no such file"),
        ({"s": SCORES, "d": "a/1 long\n"}, ["s", "--utt2dur", "d"], "d", "'long'"),
        ({"s": SCORES, "d": "a/1 nan\n"}, ["s", "--utt2dur", "d"], "d", "'nan'"),
        ({"s": SCORES, "k": "a/1 a\n"}, ["s", "--utt2spk", "k"], "s", "no speaker is known of"),
        ({"s": SCORES}, ["s", "--bootstrap", "1"], "bootstrap", "greater than or equal to 2"),
        ({"s": SCORES}, ["s", "--worst", "-1"], "worst", "greater than or equal to 0"),
    ],
)
def test_bad_input_is_told_in_one_line(
    files: dict[str, str],
    options: list[Any],
    named: str,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_text(content)
    ran = speakerkit("report", "trials", *options, "--out", "r.html")
    assert (ran.code, ran.out) == (2, "")
    (error,) = ran.errors
    assert named in error
    assert fault in error
    assert not Path("r.html").exists()


@pytest.mark.parametrize("out", ["s", "r.pdf", "taken.html"])
def test_a_page_that_cannot_be_written(out: str, scores: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.html").mkdir()
    ran = speakerkit("report", "trials", scores, "--out", tmp_path / out)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert scores.read_text() == SCORES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cosine.score", "taken.html"]


TURNS = (
    "SPEAKER a 1 0.000 1.000 <NA> <NA> ana <NA> <NA>\n"
    "SPEAKER a 1 0.500 1.000 <NA> <NA> bo 0.7 <NA>\n"
    "SPEAKER b 1 0.000 2.000 <NA> <NA> ana <NA> <NA>\n"
)


@pytest.fixture
def turns(tmp_path: Path, write_wav: Callable[..., Path]) -> Path:
    write_wav("a.wav", seconds=1.5)
    path = tmp_path / "ab.rttm"
    path.write_text(TURNS)
    return path


def test_a_page_of_turns(turns: Path, tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    for name in ("one.html", "other.html"):
        options = ["--audio", audio, "--recording", "a", "--out", tmp_path / name, "--date", "today"]
        ran = speakerkit("report", "diarization", turns, *options)
        assert (ran.code, ran.out) == (0, "")
        assert ran.err == f"{tmp_path / name}: report on 2 turns\n"
    page = Page((tmp_path / "one.html").read_text())
    assert page.row("ana", 3) == ["ana", "0:01.0", "50.0 %"]
    assert page.of("audio")[0]["src"] == audio.as_uri()
    assert f"speakerkit report diarization {turns} --audio {audio} --recording a --date today" in page.text
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()
    speakerkit("report", "diarization", turns, *options, "--embed-audio", "--title-label", "<Meeting>")
    page = Page((tmp_path / "other.html").read_text())
    assert "<Meeting>" in page.text
    assert page.of("audio")[0]["src"] == f"data:audio/wav;base64,{base64.b64encode(audio.read_bytes()).decode()}"


def test_a_page_of_json_compares_the_voices(tmp_path: Path) -> None:
    voices = {label: Speaker(label, np.array(voice, np.float32)) for label, voice in (("x", [3, 4]), ("y", [4, 3]))}
    made = Diarization("a", (Turn(0, 1, "x"), Turn(1, 2, "y")), 2.0, speakers=voices)
    (tmp_path / "a.json").write_text(write_json([made], embeddings=True))
    assert speakerkit("report", "diarization", tmp_path / "a.json", "--out", tmp_path / "r.html").code == 0
    assert "0.96" in Page((tmp_path / "r.html").read_text()).cells  # (3 * 4 + 4 * 3) / (5 * 5)


@pytest.mark.parametrize(
    ("source", "options", "named", "fault"),
    [
        ("none.rttm", [], "none.rttm", "no such file"),
        ("ab.rttm", [], "ab.rttm", "holds 2 recordings; --recording can be 'a', 'b'"),
        ("ab.rttm", ["--recording", "c"], "ab.rttm", "has no recording 'c'"),
        ("a.wav", [], "a.wav", "suffix"),
        ("ab.rttm", ["--recording", "a", "--audio", "none.wav"], "none.wav", "no such file"),
        ("ab.rttm", ["--recording", "a", "--audio", "ab.rttm"], "ab.rttm", "cannot be decoded"),
        ("late.rttm", ["--audio", "a.wav"], "a.wav", "lasts 1.50 s, but turns of 'a' go to 9.00 s"),
        ("ab.rttm", ["--recording", "a", "--out", "r.txt"], "--out", "does not end in .html"),
    ],
)
def test_turns_that_make_no_page(
    source: str, options: list[str], named: str, fault: str, turns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(turns.parent)
    Path("late.rttm").write_text("SPEAKER a 1 8 1 <NA> <NA> ana <NA> <NA>\n")
    ran = speakerkit("report", "diarization", source, "--out", "r.html", *options)
    assert (ran.code, ran.out) == (2, "")
    (error,) = ran.errors
    assert named in error
    assert fault in error
    assert not Path("r.html").exists()
