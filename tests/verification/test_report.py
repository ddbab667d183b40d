"""The report page: well-formed whatever the names, the same bytes each time, and it says what is so."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest

from speakerkit.errors import DataError, MissingExtraError
from speakerkit.verification.bootstrap import bootstrap
from speakerkit.verification.report import Recordings, measure, worst_errors, write_report
from speakerkit.verification.trials import Scores, Trials

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = ("<script>alert(1)</script>", '"><img/src=x/onerror=alert(1)>', "a&amp;'b'\"c", "-->", "</style>")


class Page(HTMLParser):
    """A page's elements and text; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.cells: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if "td" in self._open or "th" in self._open:
            self.cells[-1] += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, first: str, width: int) -> list[str]:
        """The cells from the one that reads ``first``."""
        at = self.cells.index(first)
        return self.cells[at : at + width]


def make(distance: float, targets: int = 40, nontargets: int = 300, seed: int = 0) -> Scores:
    """Gaussian scores of trials between recordings of ten speakers."""
    rng = np.random.default_rng(seed)
    labels = np.arange(targets + nontargets) < targets
    enrol = np.arange(len(labels)) % 10
    test = np.where(labels, enrol, (enrol + 1 + np.arange(len(labels)) // 10 % 9) % 10)
    pairs = [f"s{a}-e" for a in enrol], [f"s{b}-t{row}" for row, b in enumerate(test)]
    return Scores(Trials.from_pairs(*pairs, labels), rng.normal(distance * labels, 1))


def page_of(path: Path, named: Mapping[str, Scores], recordings: Recordings = Recordings(), **options: Any) -> Page:
    results = measure(named, recordings, llr=options.pop("llr", False))
    write_report(path, named, results, recordings, **options)
    return Page(path.read_text(encoding="utf-8"))


def test_figures_of_a_set_that_is_counted_by_hand(tmp_path: Path) -> None:
    # One target of four is below one nontarget of four: at best a quarter of either kind is wrong.
    labels = [True, True, True, True, False, False, False, False]
    trials = Trials.from_pairs(list("aabbaabb"), list("ABCDEFGH"), labels)
    scores = Scores(trials, np.array([4.0, 3, 2, 0, 1, -1, -2, -3]))
    page = page_of(tmp_path / "r.html", {"hand": scores}, Recordings(seconds=dict.fromkeys("abABCDEFGH", 360.0)))
    assert page.row("hand", 2) == ["hand", "25.000"]
    assert "8 pairs of recordings" in page.text
    assert "In 4 they are (targets), in 4 they are not" in page.text
    assert "10 recordings or enrolments; who speaks in them is not known, 1.00 hours in all" in page.text
    assert page.row("1", 3) == ["1", "a 360.00 s", "E 360.00 s"]
    assert page.row("0", 3) == ["0", "b 360.00 s", "D 360.00 s"]


def test_what_means_something_for_ratios_only_is_shown_for_ratios_only(tmp_path: Path) -> None:
    scores = {"a": make(2)}
    plain = page_of(tmp_path / "r.html", scores)
    ratios = page_of(tmp_path / "r.html", scores, llr=True)
    labels = [{svg["aria-label"].split(" of ")[0] for svg in page.of("svg")} for page in (plain, ratios)]
    assert labels[1] - labels[0] == {"Reliability plot"}
    assert labels[0] == {"DET plot", "ROC plot", "Score histogram"}
    assert "--llr" in plain.text
    assert "Cllr" not in plain.cells
    assert "--llr" not in ratios.text
    assert {"Cllr", "actDCF 0.01", "actDCF 0.05"} <= set(ratios.cells)


def test_differences_say_which_way_they_go(tmp_path: Path) -> None:
    named = {"weak": make(1), "same": make(1), "strong": make(5, seed=1)}
    drawn = {name: bootstrap(scores, 50) for name, scores in named.items()}
    page = page_of(tmp_path / "r.html", named, drawn=drawn)
    same, strong = page.row("same less weak", 2)[1], page.row("strong less weak", 2)[1]
    assert same == "0.000 0.000 to 0.000 not told apart"
    weak = drawn["weak"].metrics.eer - drawn["strong"].metrics.eer
    assert strong.startswith(f"−{100 * weak:.3f} −")
    assert strong.endswith("better")
    assert "50 draws of the 10 speakers" in page.text
    turned = page_of(tmp_path / "r.html", {"strong": named["strong"], "weak": named["weak"]}, drawn=drawn)
    assert turned.row("weak less strong", 2)[1].endswith("worse")
    bare = page_of(tmp_path / "r.html", named)
    assert bare.row("same less weak", 2)[1] == "0.000"
    assert "no telling" in bare.text


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_worst_errors_are_the_worst_in_any_order(count: int) -> None:
    scores = make(1)
    rounded = Scores(scores.trials, scores.scores.round(1))
    rows = list(zip(rounded.scores.tolist(), rounded.trials.pairs(), rounded.trials.labels, strict=True))
    accepts = sorted((-score, pair) for score, pair, same in rows if not same and score >= 0.5)[:count]
    rejects = sorted((score, pair) for score, pair, same in rows if same and score < 0.5)[:count]
    assert len({score for score, _ in accepts}) < len(accepts) or count < 7  # there are ties
    order = np.random.default_rng(1).permutation(len(rounded))
    pairs = list(rounded.trials.pairs())
    mixed = Trials.from_pairs(*zip(*[pairs[row] for row in order], strict=True), rounded.trials.labels[order])
    for some in (rounded, Scores(mixed, rounded.scores[order])):
        names = list(some.trials.pairs())
        found = worst_errors(some, 0.5, count)
        assert [(-some.scores[row], names[row]) for row in found[0]] == accepts
        assert [(some.scores[row], names[row]) for row in found[1]] == rejects


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    audio = tmp_path / 'a"><script>.wav'
    audio.touch()
    enrol = [HOSTILE[0]] * 2 + [HOSTILE[3]] * 2
    test = [HOSTILE[1], HOSTILE[2], HOSTILE[0], HOSTILE[4]]
    scores = Scores(
        Trials.from_pairs(enrol, test, [True, False, False, True]), np.array([0.0, 2, 3, 1])
    )  # all wrong: all listed
    names = dict.fromkeys({*enrol, *test}, str(audio)) | {HOSTILE[2]: "javascript:alert(1)", HOSTILE[4]: "rm -rf <b> |"}
    speakers = {HOSTILE[0]: "<b>", HOSTILE[1]: "<b>", HOSTILE[2]: "s2", HOSTILE[3]: "s3", HOSTILE[4]: "s3"}
    named = {"</h1><script>x</script> \x1b\n-->": scores, "<svg/onload=1>": scores}
    recordings = Recordings(names, dict.fromkeys(speakers, 1.0), speakers)
    title = "<title>&lt;\x00\u202e"
    page = page_of(tmp_path / "r.html", named, recordings, title=title, notes={"<i>": "<script>"}, llr=True)
    for tag, attributes in page.elements:
        assert tag not in ("script", "img", "b", "i", "iframe", "object")
        assert not [name for name in attributes if name.startswith("on")]
        assert not attributes.get("href", "").startswith("javascript")
    for text in (*HOSTILE, str(audio), "<script>", "<title>&lt;\\x00\\u202e", "javascript:alert(1) (no such file)"):
        assert text in page.text
    assert "speaker <b>, 1.00 s" in page.text
    assert "rm -rf <b> | (a command)" in page.text
    assert "\x1b" not in page.text
    links = {link["href"] for link in page.of("a")}
    assert {Path(unquote(urlsplit(link).path)) for link in links} == {audio}


def test_a_page_stands_alone(tmp_path: Path) -> None:
    page = page_of(tmp_path / "r.html", {"a": make(2), "b": make(1, seed=3)}, llr=True)
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    text = (tmp_path / "r.html").read_text()
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text)) | {
        attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes
    }
    assert len(used) > 50
    assert used == ids.keys()
    assert not re.search(r"https?:|@import|<script|<link|xlink", text)
    assert {cell["scope"] for cell in page.of("th")} == {"col", "row"}
    assert len(page.of("caption")) == len(page.of("table")) == 5
    assert page.of("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))


def test_links_lead_to_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ["wav/a b#1?.flac", str(tmp_path / "wav" / "50%é.flac"), "wav/none.flac", "sox x |"]
    for path in paths[:2]:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    trials = Trials.from_pairs(["e", "f", "e", "f"], ["p", "q", "r", "s"], [True, True, False, False])
    scores = Scores(trials, np.array([0.0, 1, 2, 3]))
    recordings = Recordings(dict(zip("pqrs", paths, strict=True)), {"p": 2.5})
    out = tmp_path / "pages" / "r.html"
    page = page_of(out, {"a": scores}, recordings)
    links = [link["href"] for link in page.of("a")]
    assert sorted(audio["src"] for audio in page.of("audio")) == sorted(links)
    found = {Path(unquote(urlsplit(urljoin(out.as_uri(), link)).path)).resolve() for link in links}
    assert found == {(tmp_path / path).resolve() for path in paths[:2]}
    assert all(audio["preload"] == "none" and "controls" in audio for audio in page.of("audio"))
    assert "wav/none.flac (no such file)" in page.text
    assert "sox x | (a command)" in page.text
    assert "p 2.50 s" in page.text


def test_same_input_same_bytes(tmp_path: Path) -> None:
    named = {"a": make(2), "b": make(1, seed=3)}
    drawn = {name: bootstrap(scores, 5, llr=True) for name, scores in named.items()}
    for name in ("one.html", "other.html"):
        page_of(tmp_path / name, named, Recordings({"s0-e": "x.wav"}), drawn=drawn, llr=True)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "other.html"]


def test_what_cannot_be_reported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = make(2)
    unlabelled = Scores(Trials.from_pairs(["a"], ["b"]), np.zeros(1))
    with pytest.raises(DataError, match="no labels"):
        measure({"a": unlabelled}, Recordings())
    with pytest.raises(DataError, match="nontarget trials"):
        measure({"a": Scores(Trials.from_pairs(["a"], ["b"], [True]), np.zeros(1))}, Recordings())
    with pytest.raises(DataError, match="same list"):
        measure({"a": good, "b": make(2, targets=41, nontargets=299)}, Recordings())
    with pytest.raises(DataError, match=r"wav\.scp: lists none"):
        measure({"a": good}, Recordings({"x": "x.wav"}))
    page = tmp_path / "r.html"
    page.write_text("old")
    with pytest.raises(DataError, match="contradict"):
        page_of(
            page, {"a": good}, Recordings(speakers=dict.fromkeys([*good.trials.enrol_ids, *good.trials.test_ids], "s"))
        )
    assert page.read_text() == "old"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"speakerkit\[train\]"):
        measure({"a": good}, Recordings())
    assert list(tmp_path.iterdir()) == [page]


def test_scores_without_errors_and_without_differences(tmp_path: Path) -> None:
    scores = make(100)
    page = page_of(tmp_path / "r.html", {"perfect": scores, "constant": Scores(scores.trials, np.zeros(len(scores)))})
    assert page.row("perfect", 2)[1] == "0.000"
    assert page.row("constant", 2)[1] == "50.000"
    assert page.cells.count("none") == 3  # both kinds of the perfect, misses of the constant
    assert page_of(tmp_path / "r.html", {"a": scores}, worst=0).text.count("Worst") == 0


@pytest.mark.slow
def test_half_a_million_trials_make_a_small_page(tmp_path: Path) -> None:
    named = {name: make(distance, 50_000, 450_000) for name, distance in (("random", 0), ("good", 3))}
    page_of(tmp_path / "r.html", named, llr=True)
    assert (tmp_path / "r.html").stat().st_size < 500_000
