"""When a target counts as present, and what of a signal is looked at for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speakerkit.bundle import Calibration
from speakerkit.errors import BundleError, DataError
from speakerkit.extraction.bundle import ExtractionBundle
from speakerkit.extraction.presence import (
    PresenceRule,
    calibrate_presence,
    judged,
    loudest,
    presence_rule,
    require_both,
    similarity_to,
)
from tests.extraction.bundles import gain_extractor

RATE = 100


@pytest.fixture
def bundle(tmp_path: Path, onnx_bundle: Path) -> ExtractionBundle:
    """A model whose embedding model is not calibrated."""
    return gain_extractor(tmp_path / "model", onnx_bundle)


@pytest.mark.parametrize("cut", [37, 100, 5000])
def test_the_loudest_windows_in_their_order(cut: int) -> None:
    """50 s of levels that rise and fall: the 30 loudest seconds, but none more than 20 dB under the loudest."""
    rng = np.random.default_rng(0)
    for quiet, kept in ((0.2, 30), (0.05, 12)):
        levels = np.where(np.arange(50) % 4 == 1, 1.0, quiet) * rng.uniform(0.9, 1.0, 50)
        levels[-1] = 0.95
        signal = np.repeat(levels, RATE).astype(np.float32)
        reference = np.full_like(signal, 2.0)
        blocks = [(signal[i : i + cut], reference[i : i + cut]) for i in range(0, len(signal), cut)]
        found = loudest(blocks, RATE)
        numbers = sorted(np.argsort(-levels)[: kept + (kept == 12) * 1])
        np.testing.assert_array_equal(found.samples, np.repeat(levels[numbers], RATE).astype(np.float32))
        assert found.level_db == pytest.approx(10 * np.log10(np.mean(levels[numbers] ** 2) / 4), abs=1e-4)


def test_a_short_or_silent_signal() -> None:
    some = np.full(30, 0.5, np.float32)
    found = loudest([(some, 10 * some)], RATE)
    assert len(found.samples) == 30
    assert found.level_db == pytest.approx(-20)
    nothing = loudest([(0 * some, some)], RATE)
    assert (len(nothing.samples), nothing.level_db) == (0, -100.0)


def test_similarity_does_not_depend_on_level() -> None:
    heard: list[np.ndarray] = []

    def embed(samples: np.ndarray) -> np.ndarray:
        heard.append(samples)
        return np.array([3.0, 4.0], np.float32)

    samples = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    voice = np.array([2.0, 0.0], np.float32)
    assert [similarity_to(voice, gain * samples, embed) for gain in (1.0, 1e-4)] == pytest.approx([0.6, 0.6])
    np.testing.assert_allclose(heard[0], heard[1], rtol=1e-5)
    assert similarity_to(voice, 0 * samples, embed) is None
    assert similarity_to(voice, samples[:0], embed) is None


@pytest.mark.parametrize(
    ("level", "similarity", "rest", "present", "swap"),
    [
        (-3.0, 0.6, 0.1, True, False),
        (-3.0, 0.5, None, True, False),
        (-3.0, 0.49, 0.2, False, False),
        (-20.0, 0.9, 0.1, False, False),
        (-3.0, 0.2, 0.7, True, True),
        (-3.0, 0.6, 0.69, True, False),
        (-100.0, None, 0.9, False, False),
        (-3.0, 0.1, 0.4, False, False),
    ],
)
def test_the_rule(level: float, similarity: float | None, rest: float | None, present: bool, swap: bool) -> None:
    found = judged(PresenceRule(0.5, "test"), level, similarity, rest)
    assert (found.target_present, found.likely_swap) == (present, swap)
    assert found.score == max(value for value in (similarity, rest) if value is not None)
    by_level = judged(PresenceRule(None, "level alone"), level, similarity, rest)
    assert by_level.target_present == (level > -20)


def test_where_the_threshold_is_from(bundle: ExtractionBundle) -> None:
    assert presence_rule(bundle) == PresenceRule(0.25, "uncalibrated", -20.0)
    bundle.voice().write_calibration(Calibration(0.6, "trials", bundle.voice().digest()))
    assert presence_rule(bundle).threshold == pytest.approx(0.4)
    assert presence_rule(bundle).source == "2/3 of the embedding model's 0.600"


def test_calibration(bundle: ExtractionBundle) -> None:
    """Between 0.3 and 0.4, one of four absent ones is let in and none lost; above 0.7, three would be lost."""
    scores, present = [0.1, 0.2, 0.3, 0.7, 0.4, 0.5, 0.6, 0.9], [False] * 4 + [True] * 4
    assert calibrate_presence(bundle, scores, present, "dev") == pytest.approx(0.35)
    rule = presence_rule(bundle)
    assert (rule.threshold, rule.source) == (pytest.approx(0.35), "0.0 % missed, 25.0 % let in, of 8 in dev")
    calibrate_presence(bundle, [0.3, 0.1], [True, False], "dev")
    assert presence_rule(bundle).threshold == pytest.approx(0.2)
    for all_of_them, lacking in ((True, "absent"), (False, "present")):
        with pytest.raises(DataError, match=f"dev: has no {lacking} targets"):
            calibrate_presence(bundle, scores, [all_of_them] * 8, "dev")
        with pytest.raises(DataError, match=f"dev: has no {lacking} targets"):
            require_both([all_of_them], "dev")


def test_a_bad_calibration_is_refused(bundle: ExtractionBundle) -> None:
    calibrate_presence(bundle, [0.3, 0.1], [True, False], "dev")
    path = bundle.path / "presence.json"
    good = json.loads(path.read_text())
    for bad in ("", "[]", json.dumps(good | {"threshold": 2}), json.dumps(good | {"format": "x"}), '{"threshold": 1}'):
        path.write_text(bad)
        with pytest.raises(BundleError, match=r"presence\.json: holds no threshold"):
            presence_rule(bundle)
    path.write_text(json.dumps(good | {"model_sha256": "0" * 64}))
    with pytest.raises(BundleError, match="calibration of other weights"):
        presence_rule(bundle)
