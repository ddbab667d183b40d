"""``speakerkit score extraction`` and ``report extraction``: as from a shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from speakerkit.extraction.scores import read_scores
from tests.command import speakerkit
from tests.extraction.mixture_set import MixtureSet, write_estimates, write_mixture_set

pytest.importorskip("matplotlib")


@pytest.fixture
def made(tmp_path: Path) -> MixtureSet:
    mixtures = write_mixture_set(tmp_path / "set")
    write_estimates(mixtures)
    return mixtures


def test_scores_and_what_is_missing(made: MixtureSet, tmp_path: Path) -> None:
    words = ["score", "extraction", made.folder, made.estimates, "--metrics", "sdr", "--bootstrap", 50]
    ran = speakerkit(*words, "--out", tmp_path / "out")
    assert ran.code == 3
    (line,) = ran.errors
    assert line.endswith("1 of 6 cannot be scored, 'm1-bob' first; there is no estimate")
    assert "SI-SDR dB, target and others speak (SS)" in ran.out
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["scores.json", "scores.tsv", "sdr.svg", "si_sdr.svg", "table.txt"]
    assert (tmp_path / "out" / "table.txt").read_text() == ran.out
    heads, *rows = [line.split("\t") for line in (tmp_path / "out" / "scores.tsv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["m0-ann", "m0-bob", "m1-ann", "m1-bob", "m1-cy", "m2-cy"]
    assert {len(row) for row in rows} == {len(heads)}
    assert rows[3][-1] == "there is no estimate"
    as_json = speakerkit(*words, "--json")
    assert json.loads(as_json.out) == json.loads((tmp_path / "out" / "scores.json").read_text())
    assert json.loads(as_json.out)["figures"]["si_sdr"]["failed"] == 2
    assert len(json.loads(as_json.out)["figures"]["sdr"]["improvement"]["interval"]) == 2


def test_whole_sets_end_well(made: MixtureSet) -> None:
    made.estimate("m1-bob", made.samples["m1-bob"] + 0.1 * made.samples["m1-ann"])
    ran = speakerkit("score", "extraction", made.folder, made.estimates, "--metrics", "si-sdr")
    assert (ran.code, ran.err) == (0, "")


def test_perceptual_metrics(made: MixtureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pystoi", "pesq"):
        pytest.importorskip(name)
    found = json.loads(speakerkit("score", "extraction", made.folder, made.estimates, "--json").out)
    for name in ("stoi", "estoi", "pesq"):
        each = found["figures"][name]
        assert each["estimate"]["count"] + each["failed"] == 5
    monkeypatch.setitem(sys.modules, "pesq", None)
    ran = speakerkit("score", "extraction", made.folder, made.estimates)
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'speakerkit[eval]'" in ran.errors[0]


def test_a_page_of_scores(made: MixtureSet, tmp_path: Path) -> None:
    scored = speakerkit("score", "extraction", made.folder, made.estimates, "--metrics", "sdr", "--json")
    (tmp_path / "scores.json").write_text(scored.out)
    assert len(read_scores(tmp_path / "scores.json").items) == 6
    words = ["report", "extraction", made.folder, made.estimates, "--worst", 1, "--date", "today"]
    ran = speakerkit(*words, "--scores", tmp_path / "scores.json", "--out", tmp_path / "r.html")
    assert (ran.code, ran.out) == (0, "")
    assert "SDR dB" in (tmp_path / "r.html").read_text()
    assert "today" in (tmp_path / "r.html").read_text()
    assert "metric 'sd'" in speakerkit(*words, "--metrics", "sd", "--out", tmp_path / "r.html").errors[0]
    assert speakerkit(*words, "--out", tmp_path / "r.pdf").code == 2
    (tmp_path / "scores.json").write_text("[")
    ran = speakerkit(*words, "--scores", tmp_path / "scores.json", "--out", tmp_path / "r.html")
    assert ran.code == 2
    assert "holds no scores of extraction" in ran.errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "pesk"], "metric 'pesk': is not known; did you mean 'pesq'?"),
        (["--embeddings", "e.npz"], "e.npz: no such file"),
        (["--out", "taken"], ""),
    ],
)
def test_wrong_usage_is_one_line(
    made: MixtureSet, tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    ran = speakerkit("score", "extraction", made.folder, made.estimates, *options)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert message in ran.errors[0]
