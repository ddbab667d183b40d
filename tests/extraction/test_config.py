"""Configurations of extraction that are refused before anything is read."""

from typing import Any

import pytest

from speakerkit.config import parse
from speakerkit.errors import ConfigError
from speakerkit.extraction.config import ExtractionConfig

LEAST: dict[str, Any] = {"data": {"train": "voices"}, "model": {"name": "bsrnn"}}


def test_the_least_configuration() -> None:
    config = parse(ExtractionConfig, LEAST)
    assert config.data.mixing.sample_rate == 8000
    assert (config.embedder, config.loss.kind) == (None, "si_sdr")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tune": True}, "tune"),
        ({"tune": True, "embedder": "joint"}, "tune"),
        ({"loss": {"kind": "scenario"}, "data": {"train": "v", "mixing": {"targets": 1}}}, "loss.kind"),
        ({"loss": {"kind": "scenario"}, "data": {"train": "v", "mixing": {"absent_share": 0.1}}}, "loss.kind"),
        ({"loss": {"kind": "sisdr"}}, "loss.kind"),
        ({"loss": {"power": 0}}, "loss.power"),
        ({"loss": {"absent": -1}}, "loss.absent"),
        ({"loss": {"separation": -1}}, "loss.separation"),
        ({"loss": {"speaker": -0.1}}, "loss.speaker"),
        ({"loss": {"scale_weights": []}}, "loss.scale_weights"),
        ({"data": {"train": "v", "batch_size": 0}}, "data.batch_size"),
        ({"data": {"train": "v", "valid_mixtures": 0}}, "data.valid_mixtures"),
        ({"data": {"train": "v", "workers": -1}}, "data.workers"),
        ({"data": {"train": "v", "mixing": {"overlap": [0.5, 2]}}}, "overlap"),
        ({"embeder": "joint"}, "embedder"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_bad_values_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(ExtractionConfig, {**LEAST, **changes})
