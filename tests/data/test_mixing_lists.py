"""Directories of mixtures: what cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from speakerkit.data.mixing.lists import ListedMixture, Target, write_mixture_dir
from speakerkit.errors import DataError


def test_two_targets_of_one_key_are_refused(tmp_path: Path) -> None:
    """Of one mixture, and of two whose names lend the key to each other."""
    for mixtures in (
        [ListedMixture("m", "m.wav", 1.0, (Target("c", "e.wav"), Target("c", "f.wav")))],
        [ListedMixture(key, "m.wav", 1.0, (Target(who, "e.wav"),)) for key, who in (("m", "b-c"), ("m-b", "c"))],
    ):
        with pytest.raises(DataError, match=r"the target 'm(-b)?-c' comes twice"):
            write_mixture_dir(tmp_path / "x", mixtures)
    assert not (tmp_path / "x").exists()
