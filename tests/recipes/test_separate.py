"""What a blind separator makes of a directory, told by references or enrolments."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from speakerkit.data.lists import read_scp
from speakerkit.data.mixing.lists import ListedMixture, Target, write_mixture_dir
from speakerkit.errors import PartialFailure
from tests.conftest import REPOSITORY, speech_like
from tests.extraction.bundles import random_extractor
from tests.extraction.test_registry import SMALL

RATE = 8000


class Halves(nn.Module):
    """Gives the second half of the mixture, and silence before it, then nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor, self.unused = SimpleNamespace(min_samples=16), nn.Parameter(torch.zeros(1))

    def forward(self, mixture: Tensor) -> SimpleNamespace:
        later = torch.where(torch.arange(mixture.shape[1]) >= mixture.shape[1] // 2, mixture, 0.0)
        return SimpleNamespace(waveform=torch.stack([later, torch.zeros_like(later)], dim=1))


@pytest.fixture
def separate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, with a model that is known."""
    spec = importlib.util.spec_from_file_location("separate", REPOSITORY / "tools" / "separate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "open_conditioned", lambda bundle: Halves())
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Mixtures of ann then bob, of nobody who is wanted, of one with a bad enrolment, and of no sound."""

    def save(name: str, samples: np.ndarray) -> str:
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="FLOAT")
        return str(tmp_path / f"{name}.wav")

    (tmp_path / "broken.wav").write_bytes(b"no sound")
    first, later = speech_like(2.0, RATE, 1), speech_like(2.0, RATE, 2)
    voices = np.concatenate([first, 0 * first]), np.concatenate([0 * later, later])
    ann = Target("ann", save("short", first[:400]), save("ann", voices[0]))  # 50 ms, which are repeated
    bob = Target("bob", save("bob-enrol", later), save("bob", voices[1]))
    mixture = save("mixture", voices[0] + voices[1])
    silent = Target("cy", save("silent", 0 * first), save("cy", voices[0]))
    listed = [
        ListedMixture("m0", mixture, 4.0, (ann, bob)),
        ListedMixture("m1", mixture, 4.0, (Target("cy", bob.enrolment),)),
        ListedMixture("m2", mixture, 4.0, (silent, bob)),
        ListedMixture("m3", str(tmp_path / "broken.wav"), 4.0, (bob,)),
    ]
    write_mixture_dir(tmp_path / "set", listed)
    return tmp_path / "set"


@pytest.mark.parametrize("told_by", ["references", "enrolments"])
def test_a_failure_leaves_the_others(
    told_by: str, separate: ModuleType, folder: Path, onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = folder.parent / "model", folder.parent / "out"
    random_extractor(model, "conv_tasnet", SMALL["conv_tasnet"][0])
    arguments = [str(folder), str(out), "--model", str(model)]
    if told_by == "enrolments":
        arguments += ["--embedder", str(onnx_bundle)]
    monkeypatch.setattr(sys, "argv", ["separate.py", *arguments])
    failed = {"m3-bob": "cannot be decoded"} | ({"m2-cy": "is silent"} if told_by == "enrolments" else {})
    done = {"m0-ann", "m0-bob", "m2-bob"} | ({"m2-cy"} - failed.keys())
    with pytest.raises(PartialFailure, match=f"{len(failed)} of 5 voices failed"):
        separate.main()
    assert read_scp(out / "wav.scp").keys() == done
    rows = dict(line.split("\t") for line in (out / "failed.tsv").read_text().splitlines())
    assert rows.keys() == failed.keys()
    assert all(fault in rows[key] for key, fault in failed.items())
    if told_by == "references":
        bob, _ = soundfile.read(out / "m0-bob.wav", dtype="float32")
        np.testing.assert_allclose(bob, soundfile.read(folder.parent / "bob.wav", dtype="float32")[0], atol=1e-6)
        assert not soundfile.read(out / "m0-ann.wav")[0].any()
    else:
        assert soundfile.read(out / "m2-bob.wav")[0].any()  # the one that is heard, and not the silent one
