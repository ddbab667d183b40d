"""Decisions on cosines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speakerkit.bundle import Bundle, BundleConfig
from speakerkit.config import NamedConfig
from speakerkit.features import FrontEnd
from speakerkit.verification.voiceprints.decision import identify, verify
from speakerkit.verification.voiceprints.search import Candidate


def bundle(folder: Path, **calibration: object) -> Bundle:
    """A bundle of which only the calibration is looked at."""
    (folder / "model.safetensors").write_bytes(b"weights")
    if calibration:
        (folder / "calibration.json").write_text(json.dumps(calibration))
    return Bundle(folder, BundleConfig(NamedConfig("ECAPA_TDNN"), FrontEnd(), 16))


def test_an_uncalibrated_model_decides_nothing(tmp_path: Path) -> None:
    result = verify(bundle(tmp_path), 0.999)
    assert (result.decision, result.threshold, result.threshold_source) == ("undecided", None, "uncalibrated")
    assert (result.llr, result.calibrated) == (None, False)
    asked = verify(bundle(tmp_path), 0.3, 0.2)
    assert (asked.decision, asked.threshold_source, asked.calibrated) == ("same", "--threshold", False)


def test_a_calibrated_model(tmp_path: Path) -> None:
    model = bundle(tmp_path, threshold=0.4, source="dev trials", llr={"scale": 20.0, "offset": -8.0})
    for cosine, decision in ((0.4, "same"), (0.3999, "different"), (-1.0, "different")):
        result = verify(model, cosine)
        assert result.decision == decision
        assert result.llr == pytest.approx(20 * cosine - 8)
        assert (result.threshold, result.threshold_source, result.calibrated) == (0.4, "dev trials", True)
    assert verify(model, 0.5, 0.6).decision == "different"
    assert verify(model, 0.3, 0.2).decision == "same"


CANDIDATES = (Candidate("a", 0.5), Candidate("b", 0.45), Candidate("c", -0.9))


@pytest.mark.parametrize(
    ("asked", "margin", "name", "reason"),
    [
        (0.5, 0.0, "a", ""),
        (0.5001, 0.0, "unknown", "below the threshold"),
        (None, 0.0, "a", ""),
        (None, 0.04, "a", ""),
        (None, 0.06, "unknown", "leads by 0.0500, less than 0.06"),
        (-1.0, 0.06, "unknown", "leads by"),
    ],
)
def test_open_set(tmp_path: Path, asked: float | None, margin: float, name: str, reason: str) -> None:
    result = identify(bundle(tmp_path, threshold=0.4, source="x"), CANDIDATES, asked, margin)
    assert result.name == name
    assert reason in result.reason
    assert bool(reason) == bool(result.reason)
    assert result.candidates == CANDIDATES


def test_identify_without_a_threshold(tmp_path: Path) -> None:
    result = identify(bundle(tmp_path), CANDIDATES)
    assert (result.name, result.calibrated, result.threshold_source) == ("unknown", False, "uncalibrated")
    assert result.llrs == (None, None, None)
    alone = identify(bundle(tmp_path), CANDIDATES[:1], 0.3, margin=0.5)
    assert alone.name == "a"  # nobody else to be told from
