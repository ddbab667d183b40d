"""``speakerkit report``: one page of score files, or one line of what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
        "report", scores, "--out", tmp_path / "r.html", *lists, "--bootstrap", 5, "--date", "today", "--llr"
    )
    assert (ran.code, ran.out) == (0, "")
    page = Page((tmp_path / "r.html").read_text())
    figures = evaluate(read_scores(scores), llr=True)
    assert page.row("cosine", 8)[-1].startswith(f"{figures.cllr:.4f} ")
    assert "speaker <bo>" in page.text
    assert "speaker ana, 3.50 s" in page.text
    assert "of 2 speakers (by utt2spk)" in page.text
    assert f"speakerkit report {scores} --scp {tmp_path}/wav.scp" in page.text
    assert "--out" not in page.text
    assert "r.html" not in page.text
    assert "today" in page.text
    assert page.of("audio")[0]["src"] == scores.as_uri()


def test_a_page_under_any_name_has_the_same_bytes(scores: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        ran = speakerkit("report", scores, f"--out={tmp_path / name}", "--title-label", "caf\udce9")
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
    ran = speakerkit("report", *options, "--out", "r.html")
    assert (ran.code, ran.out) == (2, "")
    (error,) = ran.errors
    assert named in error
    assert fault in error
    assert not Path("r.html").exists()


@pytest.mark.parametrize("out", ["s", "r.pdf", "taken.html"])
def test_a_page_that_cannot_be_written(out: str, scores: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.html").mkdir()
    ran = speakerkit("report", scores, "--out", tmp_path / out)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert scores.read_text() == SCORES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cosine.score", "taken.html"]
