"""The bar of a long recording: on a terminal only, and nothing that is read depends on it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from speakerkit.audio import read_blocks
from speakerkit.diarization import progress
from speakerkit.diarization.progress import watched_blocks


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("whole", [True, False], ids=["terminal", "file"])
def test_a_bar_on_a_terminal_only(write_wav: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    path = write_wav("long.wav", 70.0, 8000)
    expected = [block.samples for block in read_blocks(path)]
    err = Terminal() if whole else io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    found = [block.samples for block in watched_blocks(path, "speech")]
    assert len(found) == len(expected) > 1
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    assert ("speech:" in err.getvalue() and "/70" in err.getvalue()) == whole
