"""The page of extracted voices: its figures, its text whatever the names, and that all of it is in one file."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.audio import Audio
from speakerkit.extraction.report import COLUMNS, ROWS, spectrogram_png, write_report
from speakerkit.extraction.scoring import read_estimates, read_items, score_extraction
from tests.extraction.mixture_set import RATE, MixtureSet, write_estimates, write_mixture_set
from tests.verification.test_report import Page

pytest.importorskip("matplotlib")


@pytest.fixture
def made(tmp_path: Path) -> MixtureSet:
    mixtures = write_mixture_set(tmp_path / "set")
    write_estimates(mixtures)
    return mixtures


def page_of(made: MixtureSet, path: Path, **options: object) -> Page:
    items, estimates = read_items(made.folder), read_estimates(made.estimates)
    write_report(path, score_extraction(items, estimates, ()), items, estimates, **options)
    return Page(path.read_text(encoding="utf-8"))


def test_figures_and_the_worst_first(made: MixtureSet, tmp_path: Path) -> None:
    page = page_of(made, tmp_path / "r.html", title="Test set", notes={"Command": "typed"})
    assert "From 3 mixtures 6 voices were to be extracted." in page.text
    assert "For 3 of 5 it rises by less than 1 dB" in page.text
    assert "1 of 2 are nearer to another voice" in page.text
    assert page.row("SI-SDR dB", 7)[-2:] == ["3", "2"]
    headings = re.findall(r"<h3>(.*?)</h3>", (tmp_path / "r.html").read_text())
    assert headings == ["m1-ann", "m1-bob", "m0-bob", "m0-ann", "m2-cy"]
    assert "nearer to speaker ann, by SI-SDR" in page.text
    assert page.row("there is no estimate", 3) == ["there is no estimate", "1", "m1-bob"]
    assert "turned down by" in page.text
    assert "typed" in page.text


def test_a_page_stands_alone_and_is_the_same_again(made: MixtureSet, tmp_path: Path) -> None:
    page = page_of(made, tmp_path / "a.html", worst=2)
    page_of(made, tmp_path / "b.html", worst=2)
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    assert not re.search(r"https?:|@import|<link|file:/", text.replace("file: data:", ""))
    # Of the worst two, one has no estimate: 3 + 2 pictures, and as many sounds and two enrolments.
    assert len(page.of("img")) == 5
    sounds = [each["src"] for each in page.of("audio")]
    assert len(sounds) == 7
    assert all(src.startswith("data:audio/flac;base64,") for src in sounds)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0].partition(",")[2])))
    assert rate == RATE
    assert np.allclose(samples, made.samples["m1"], atol=2 / 32768) or np.abs(made.samples["m1"]).max() > 1


def test_hostile_names_stay_text(made: MixtureSet, tmp_path: Path) -> None:
    name = "<script>alert(1)&"
    for table in ("utt2spk", "ref.scp", "enroll.scp", "rttm", "spk2gender"):
        path = made.folder / table
        lines = [line.replace("m0-ann ", f"m0-{name} ") for line in path.read_text().splitlines()]
        if table in ("utt2spk", "rttm"):
            lines = [re.sub(r"\bann\b(?!-)", name, line) if "m0" in line else line for line in lines]
            lines = [line.replace(f"m0-{name}-{name}", f"m0-{name}") for line in lines]
        path.write_text("\n".join(lines) + "\n")
    (made.estimates / "m0-ann.wav").rename(made.estimates / f"m0-{name}.wav")
    page = page_of(made, tmp_path / "r.html")
    assert f"m0-{name}" in page.text
    assert len(page.of("script")) == 1  # our own


def test_a_tone_is_where_it_belongs_in_the_spectrogram() -> None:
    image = pytest.importorskip("PIL.Image")
    time = np.arange(2 * RATE) / RATE
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32) * (time >= 1)
    opened = image.open(io.BytesIO(spectrogram_png(tone, Audio(tone, RATE))))
    shades = np.array(opened)  # (rows, columns), high frequencies first
    assert shades.shape[0] == ROWS
    assert shades.shape[1] <= COLUMNS + 1
    late = shades[:, 3 * shades.shape[1] // 4]
    assert abs((ROWS - 1 - int(late.argmax())) / ROWS * RATE / 2 - 1000) < 50
    assert not shades[:, : shades.shape[1] // 3].any()
