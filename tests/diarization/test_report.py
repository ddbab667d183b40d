"""The page of a recording: its figures, its text whatever the names, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import soundfile

from speakerkit.audio import Samples
from speakerkit.diarization import report
from speakerkit.diarization.formats import read_turns
from speakerkit.diarization.report import speaker_cosines, write_report
from speakerkit.diarization.turns import Diarization, Speaker, Turn
from speakerkit.errors import AudioError, DataError
from tests.browser import Browser, find_browser, open_browser
from tests.verification.test_report import HOSTILE, Page

BROWSER = find_browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt install chromium)")
TALK = Diarization(
    "talk",
    (Turn(0.0, 4.0, "A", 0.9), Turn(3.0, 5.0, "B", 0.5), Turn(6.0, 7.0, "A", 0.4), Turn(7.5, 8.0, "C")),
    10.0,
)


def page_of(path: Path, diarization: Diarization, **options: Any) -> Page:
    write_report(path, diarization, **options)
    return Page(path.read_text(encoding="utf-8"))


def write_tone(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> Samples:
    """A file of noise, mono or alike in all channels, that gets louder."""
    rng = np.random.default_rng(0)
    samples = (np.linspace(0, 0.5, round(seconds * rate)) * rng.uniform(-1, 1, round(seconds * rate))).astype(
        np.float32
    )
    soundfile.write(path, np.repeat(samples[:, None], channels, axis=1), rate)
    return samples


def data_of(page: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(text)


def test_figures_that_are_counted_by_hand(tmp_path: Path) -> None:
    page = page_of(tmp_path / "r.html", TALK)
    # Speech: 0 to 5, 6 to 7 and 7.5 to 8, 6.5 s of 10; 1 s of it is of two. A has 5, B 2 and C 0.5 s of 7.5.
    assert "lasts 0:10.000. Speech fills 65.0 % of it, of 3 speakers in 4 turns; in 15.4 % of the speech" in page.text
    assert page.row("A", 7) == ["A", "0:05.0", "66.7 %", "2", "2.50 s", "20.0 %", "0.800"]
    assert page.row("B", 7) == ["B", "0:02.0", "26.7 %", "1", "2.00 s", "50.0 %", "0.500"]
    assert page.row("C", 7) == ["C", "0:00.5", "6.7 %", "1", "0.50 s", "0.0 %", ""]
    assert page.row("0:00.000", 5) == ["0:00.000", "0:04.000", "4.000", "A", "0.900"]
    bars = [bar for bar in page.of("rect") if "data-turn" in bar]
    assert [(bar["x"], bar["y"], bar["width"]) for bar in sorted(bars, key=lambda bar: int(bar["data-turn"]))] == [
        ("0.000", "0.15", "4.000"),
        ("3.000", "1.15", "2.000"),
        ("6.000", "0.15", "1.000"),
        ("7.500", "2.15", "0.500"),
    ]
    (overlap,) = [bar for bar in page.of("rect") if "data-turn" not in bar]
    assert (overlap["x"], overlap["width"]) == ("3", "1.000")


def test_what_is_not_known_is_not_shown(tmp_path: Path) -> None:
    bare = Diarization("talk", (Turn(3599.5, 3600.5, "A"),))
    page = page_of(tmp_path / "r.html", bare)
    assert "is known up to 1:00:00.500." in page.text
    assert not {"Confidence", "Similarity of the speakers", "Cosine with the known voice"} & set(page.cells)
    assert not [*page.of("audio"), *page.of("path")]
    assert "data-play" not in (tmp_path / "r.html").read_text().split("<script>")[0]
    silent = page_of(tmp_path / "r.html", Diarization("talk", (), 0.0))
    assert "Nobody speaks" in silent.text
    assert "nan" not in (tmp_path / "r.html").read_text().split("<script>")[0]


def test_similarity_is_the_cosine(tmp_path: Path) -> None:
    turned = [np.array([2 * np.cos(angle), 2 * np.sin(angle)], np.float32) for angle in np.radians([0, 60, 90, 180])]
    assert speaker_cosines("a", turned)[0] == pytest.approx([1, 0.5, 0, -1], abs=1e-6)
    speakers = {label: Speaker(label, voice, 0.25) for label, voice in zip("ABC", turned, strict=False)}
    page = page_of(tmp_path / "r.html", replace(TALK, speakers=speakers))
    at = len(page.cells) - 1 - page.cells[::-1].index("0.87")  # of B and C, for the second time
    assert page.cells[at - 10 : at + 2] == [
        "A",
        "1.00",
        "0.50",
        "0.00",
        "B",
        "0.50",
        "1.00",
        "0.87",
        "C",
        "0.00",
        "0.87",
        "1.00",
    ]
    assert page.row("A", 8)[-1] == "0.25"
    with pytest.raises(DataError, match="of 2 and of 3 values"):
        speaker_cosines("a", [turned[0], np.ones(3, np.float32)])
    for bad in (0.0, np.nan):
        with pytest.raises(DataError, match="zero or not finite"):
            speaker_cosines("a", [turned[0], np.full(2, bad, np.float32)])


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    audio = tmp_path / 'a"><script>.wav'
    write_tone(audio, 8.0)
    names = (*HOSTILE, "</script><script>alert(1)</script>", "<!--<script>", "\u2028 \x1b", "  ", "\u202e")
    turns = tuple(Turn(index / 2, index / 2 + 1, name, 0.5) for index, name in enumerate(names))
    voices = {name: Speaker(name, np.ones(4, np.float32)) for name in names}
    hostile = Diarization("</title><script>", turns, 8.0, 1, voices, {"<b>": "</script>"})
    page = page_of(tmp_path / "r.html", hostile, audio=audio, notes={"<i>": "<script>"})
    assert len(page.of("script")) == 2  # the page's own, and the data
    for tag, attributes in page.elements:
        assert tag not in ("img", "b", "i", "iframe", "object")
        assert not [name for name in attributes if name.startswith("on")]
    for text in (*HOSTILE, "</script><script>alert(1)</script>", "%20%20", "\\u202e"):
        assert text in page.cells
    assert Path(unquote(urlsplit(page.of("audio")[0]["src"]).path)) == audio
    data = data_of(tmp_path / "r.html")
    assert data["speakers"] == list(names)
    assert data["recording"] == "</title><script>"
    assert data["turns"][1] == [500, 1500, 1, 500]


def test_a_page_stands_alone_and_runs_nothing_but_its_script(tmp_path: Path) -> None:
    page = page_of(tmp_path / "r.html", TALK)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|<link|url\(|eval\(|innerHTML", text)
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    described = {
        value for _, each in page.elements for name, value in each.items() if name.startswith("aria-") and "by" in name
    }
    assert described <= ids.keys()
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in policy
    write_report(tmp_path / "other.html", TALK)
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "r.html").read_bytes()


def test_sound_is_linked_or_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_tone(Path("a.flac"), 8.0)
    assert page_of(Path("pages/r.html"), TALK, audio="a.flac").of("audio")[0]["src"] == "../a.flac"
    assert page_of(Path("r.html"), TALK, audio=tmp_path / "a.flac").of("audio")[0]["src"].startswith("file:///")
    kind, content = page_of(Path("r.html"), TALK, audio="a.flac", embed_audio=True).of("audio")[0]["src"].split(",")
    assert kind == "data:audio/flac;base64"
    assert base64.b64decode(content) == Path("a.flac").read_bytes()
    monkeypatch.setattr(report, "LARGEST_EMBEDDED", 1000)
    assert page_of(Path("r.html"), TALK, audio="a.flac", embed_audio=True).of("audio")[0]["src"] == "a.flac"
    assert "a.flac: is linked, not embedded" in caplog.text


def test_what_browsers_do_not_play_is_embedded_as_flac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.aiff"
    samples = write_tone(path, 8.0, rate=8000, channels=2)
    with pytest.raises(AudioError, match=r"browsers do not play.*--embed-audio"):
        write_report(tmp_path / "r.html", TALK, audio=path)
    kind, content = page_of(tmp_path / "r.html", TALK, audio=path, embed_audio=True).of("audio")[0]["src"].split(",")
    assert kind == "data:audio/flac;base64"
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(content)), dtype="float32")
    assert rate == 8000
    np.testing.assert_allclose(heard, samples, atol=1.01 / 32768)
    monkeypatch.setattr(report, "LARGEST_EMBEDDED", 1000)
    with pytest.raises(AudioError, match="at most 0 MB are embedded"):
        write_report(tmp_path / "r.html", TALK, audio=path, embed_audio=True)


@pytest.mark.parametrize("seconds", [8.0, 300.0])
def test_the_outline_is_that_of_the_sound(seconds: float, tmp_path: Path) -> None:
    samples = np.zeros(round(seconds * 8000), np.float32)
    samples[round(0.75 * len(samples))] = -0.5  # full height there, and nowhere else
    samples[round(0.25 * len(samples))] = 0.25
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    (path,) = page_of(tmp_path / "r.html", TALK, audio=tmp_path / "a.wav").of("path")
    points = [(float(time), -float(level)) for time, level in re.findall(r"L([\d.]+) (-[\d.]+)", path["d"])]
    assert len(points) <= 2000
    step = seconds / len(points)
    high = {round(level, 2): time for time, level in points if level > 0}
    assert high.keys() == {1.0, 0.5}
    assert 0 <= 0.75 * seconds - high[1.0] <= step + 1e-3
    assert 0 <= 0.25 * seconds - high[0.5] <= step + 1e-3


def test_sound_of_another_recording_is_refused(tmp_path: Path) -> None:
    write_tone(tmp_path / "short.wav", 6.0)
    (tmp_path / "r.html").write_text("old")
    with pytest.raises(DataError, match=r"short\.wav: lasts 6\.00 s, but turns of 'talk' go to 8\.00 s"):
        write_report(tmp_path / "r.html", TALK, audio=tmp_path / "short.wav")
    with pytest.raises(AudioError, match="no such file"):
        write_report(tmp_path / "r.html", TALK, audio=tmp_path / "none.wav")
    assert (tmp_path / "r.html").read_text() == "old"
    page = page_of(tmp_path / "r.html", replace(TALK, turns=TALK.turns[:3]), audio=tmp_path / "short.wav")
    assert "lasts 0:10.000" in page.text  # 7 s of turns: within the slack


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Browser]:
    assert BROWSER is not None
    with open_browser(BROWSER, downloads) as opened:
        yield opened


def problems(browser: Browser) -> list[Any]:
    """What the page complained of, and addresses beyond this machine that it asked for."""
    asked = [each["request"]["url"] for name, each in browser.events if name == "Network.requestWillBeSent"]
    complaints = [each for name, each in browser.events if name in ("Log.entryAdded", "Runtime.exceptionThrown")]
    return complaints + [url[:100] for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def saved(browser: Browser, downloads: Path, name: str) -> str:
    browser.events.clear()
    browser.click("#save")
    browser.wait_for("Browser.downloadProgress", state="completed")
    text = (downloads / name).read_text(encoding="utf-8")
    (downloads / name).unlink()
    return text


@needs_browser
def test_a_page_saves_the_rttm_that_we_write(browser: Browser, downloads: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 90, 60)
    turns = tuple(
        Turn(
            float(start),
            float(start + rng.uniform(0.1, 3)),
            "ABCDE"[row % 5],
            round(float(rng.random()), 3) if row % 3 else None,
        )
        for row, start in enumerate(starts)
    )
    turns += tuple(Turn(95.0, 96.0, speaker) for speaker in "ACD")
    made = Diarization("räum 1", turns, channel=2).to_rttm()
    (tmp_path / "a.rttm").write_text(made)
    read = read_turns(tmp_path / "a.rttm")["räum 1"]
    write_report(tmp_path / "r.html", read)
    browser.open(tmp_path / "r.html")
    assert saved(browser, downloads, "r%C3%A4um%201.rttm") == made
    # Two become one, one has a name that says nothing, and two need escapes and a sort by code point.
    new = {"A": "Zoë %41 日本", "B": "<NA>", "C": "\U0001f600", "D": "\ufb01", "E": "<NA>"}
    for row, label in enumerate(read.labels):
        browser.type_into(f'input[data-name="{row}"]', f" {new[label]} ")
    assert browser.evaluate("document.getElementById('status').textContent") == "Speakers of one name are saved as one."
    named = tuple(replace(turn, speaker=new[turn.speaker]) for turn in read.turns)
    assert saved(browser, downloads, "r%C3%A4um%201.rttm") == Diarization("räum 1", named, channel=2).to_rttm()
    where = f"document.querySelectorAll('[data-speaker=\"{read.labels.index('A')}\"]')"
    assert browser.evaluate(f"[...new Set([...{where}].map((e) => e.textContent))]") == ["Zoë %41 日本"]
    for row in range(5):
        browser.type_into(f'input[data-name="{row}"]', "  ")
    assert saved(browser, downloads, "r%C3%A4um%201.rttm") == made
    assert problems(browser) == []


@needs_browser
def test_names_that_are_shown_otherwise_are_saved_as_they_are(
    browser: Browser, downloads: Path, tmp_path: Path
) -> None:
    names = (
        *HOSTILE,
        "</script><script>document.title = 1</script>",
        " lead",
        "  ",
        "tab\tnew\nline",
        "\u202e",
        "100%",
        "%41",
    )
    turns = tuple(Turn(index / 2, index / 2 + 0.25, name) for index, name in enumerate(names))
    hostile = Diarization("a", turns)
    write_report(tmp_path / "r.html", hostile)
    browser.open(tmp_path / "r.html")
    assert browser.evaluate("document.title") == "a"
    for row in range(len(names)):
        field = f'input[data-name="{row}"]'
        shown = browser.evaluate(f"document.querySelector('{field}').value")
        browser.type_into(field, "x")
        browser.type_into(field, shown)
    assert saved(browser, downloads, "a.rttm") == hostile.to_rttm()
    assert problems(browser) == []


@needs_browser
@pytest.mark.parametrize("embed", [True, False])
def test_turns_are_played_to_their_end(embed: bool, browser: Browser, tmp_path: Path) -> None:
    write_tone(tmp_path / "a.flac", 10.0)
    write_report(tmp_path / "r.html", TALK, audio=tmp_path / "a.flac", embed_audio=embed)
    browser.open(tmp_path / "r.html")
    browser.wait_until("audio.readyState >= 1")
    browser.click('button[data-play="2"]')
    browser.wait_until("!audio.paused")
    browser.wait_until("audio.paused")
    assert 7.0 <= browser.evaluate("audio.currentTime") < 10.0
    browser.click('rect[data-turn="3"]')
    browser.wait_until("audio.paused && audio.currentTime >= 8")
    browser.click("#track .wave")
    browser.wait_until("!audio.seeking")
    assert browser.evaluate("[audio.paused, audio.currentTime]") == [True, pytest.approx(5.0, abs=0.05)]
    browser.wait_until("Math.abs(parseFloat(document.getElementById('head').style.left) - 50) < 1")
    browser.evaluate("audio.currentTime = 3.5")
    browser.wait_until("document.querySelectorAll('tr.on').length == 2")
    assert browser.evaluate("[...document.querySelectorAll('rect.on')].map((e) => e.dataset.turn)") == ["0", "1"]
    assert problems(browser) == []


@needs_browser
def test_keys_and_zoom(browser: Browser, tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 10.0)
    write_report(tmp_path / "r.html", TALK, audio=tmp_path / "a.wav")
    browser.open(tmp_path / "r.html")
    browser.wait_until("audio.readyState >= 1")
    width = "document.getElementById('track').clientWidth / document.getElementById('scroll').clientWidth"
    browser.evaluate("document.getElementById('scroll').focus()")
    browser.press("+")
    assert browser.evaluate(width) == pytest.approx(2, abs=0.01)
    ticks = browser.evaluate("[...document.querySelectorAll('#axis span')].map((e) => e.textContent)")
    assert {"0:05.0", "0:05.5"} <= set(ticks)
    for _ in range(9):
        browser.press("+")
    assert browser.evaluate("document.getElementById('track').clientWidth") == 3000  # 300 pixels a second
    browser.press("0")
    assert browser.evaluate(width) == 1
    for keys, time in ((["End"], 10), (["ArrowLeft", "ArrowLeft"], 8), (["Home"], 0), (["ArrowRight"], 1)):
        for key in keys:
            browser.press(key)
        assert browser.evaluate("audio.currentTime") == pytest.approx(time, abs=0.01)
    browser.press("ArrowRight", shift=True)
    browser.wait_until("!audio.paused && audio.currentTime >= 3")
    browser.press(" ")
    assert browser.evaluate("audio.paused")
    browser.click("#doubtful")
    order = "[...document.querySelectorAll('#turns tbody tr')].map((e) => Number(e.dataset.turn))"
    assert browser.evaluate(order) == [2, 1, 0, 3]
    browser.click("#doubtful")
    assert browser.evaluate(order) == [0, 1, 2, 3]
    assert problems(browser) == []


@needs_browser
def test_a_recording_that_has_gone_is_told(browser: Browser, tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 10.0)
    write_report(tmp_path / "r.html", TALK, audio=tmp_path / "a.wav")
    (tmp_path / "a.wav").unlink()
    browser.open(tmp_path / "r.html")
    browser.wait_until("document.getElementById('status').textContent.includes('cannot be played')")
