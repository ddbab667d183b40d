"""ONNX files of extraction models compute what torch computes, for any batch, voices and length, or are not written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from speakerkit.audio import Samples
from speakerkit.errors import BundleError
from speakerkit.export.extraction import export_extractor
from speakerkit.extraction.bundle import read_extractor
from speakerkit.extraction.registry import EXTRACTORS, Extracted, Extractor
from speakerkit.extraction.runner import ExtractionRunner
from tests.command import speakerkit
from tests.conftest import speech_like
from tests.extraction.bundles import RATE, gain_extractor, random_extractor
from tests.extraction.test_registry import CASES, HEARING


class Scaled(Extractor):
    """The smallest model: mixtures times a linear map of the voices; of enrolments it hears the mean."""

    min_samples, min_enrolment, voice_size, sources = 3, 10, 4, 0

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(4, 1)
        self.spread = torch.nn.Linear(1, 4)

    def forward(self, mixture: torch.Tensor, voices: torch.Tensor) -> Extracted:
        return Extracted(mixture.unsqueeze(1) * self.map(voices))

    def enrol(self, enrolment: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        real = torch.arange(enrolment.shape[1]) < lengths.unsqueeze(1)
        return self.spread((enrolment * real).sum(1, keepdim=True) / lengths.unsqueeze(1))


class LengthBlind(Scaled):
    """Forgets in its ONNX file that S is free: the length of the example is baked in."""

    def forward(self, mixture: torch.Tensor, voices: torch.Tensor) -> Extracted:
        baked = 0.0 if torch.compiler.is_exporting() else 1e-2 * mixture.shape[1]
        return Extracted(mixture.unsqueeze(1) * (self.map(voices) + baked))


def enrolled(runner: ExtractionRunner, samples: Samples) -> np.ndarray:
    return np.stack([runner.voice(samples), runner.voice(samples[: len(samples) // 2])])


def test_a_model_with_its_own_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setitem(EXTRACTORS._entries, "scaled", Scaled)
    bundle = random_extractor(tmp_path / "model", "scaled", {})
    on_torch = ExtractionRunner(bundle, "cpu", 1)
    rows = export_extractor(bundle.path)
    assert [(row.graph, row.shape, row.voices) for row in rows] == [
        *[
            ("model.onnx", shape, voices)
            for shape, voices in (((1, 3), 1), ((2, 10), 3), ((1, 4003), 2), ((3, 13604), 1))
        ],
        *[("enrol.onnx", shape, 0) for shape in ((1, 10), (2, 17), (1, 4010), (3, 13611))],
    ]
    assert min(row.decibels for row in rows) > 100
    assert sorted(file.name for file in bundle.path.iterdir()) == [
        *("config.yaml", "enrol.onnx", "model.onnx", "model.safetensors")
    ]
    told = onnxruntime.InferenceSession(bundle.path / "enrol.onnx").get_modelmeta().custom_metadata_map
    assert told == {
        **{"framework": "speakerkit", "model": "scaled", "sample_rate": "8000", "voice_size": "4", "sources": "0"},
        **{"min_samples": "3", "min_enrolment": "10", "weights_sha256": bundle.digest()},
    }
    on_onnx = ExtractionRunner(read_extractor(bundle.path), "cpu", 1)
    assert (on_torch.device, on_onnx.device) == ("cpu (torch)", "cpu (onnxruntime)")
    mixture, enrolment = speech_like(0.3, RATE), 0.1 + speech_like(0.5, RATE)
    voices = enrolled(on_torch, enrolment)
    np.testing.assert_allclose(enrolled(on_onnx, enrolment), voices, rtol=1e-5)
    np.testing.assert_allclose(on_onnx.run(mixture, voices), on_torch.run(mixture, voices), rtol=1e-4, atol=1e-7)
    (bundle.path / "enrol.onnx").unlink()
    with pytest.raises(BundleError, match=r"enrol\.onnx: no such file"):
        ExtractionRunner(read_extractor(bundle.path), "cpu", 1)


def test_a_wrong_file_is_refused_and_the_good_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS._entries, "blind to length", LengthBlind)
    bundle = random_extractor(tmp_path / "model", "blind to length", {})
    for name in ("model.onnx", "enrol.onnx"):
        (bundle.path / name).write_bytes(b"the last good one")
    ran = speakerkit("export", bundle.path)
    assert ran.code == 2
    assert re.search(r"model\.onnx: is only .* dB near its torch model at B=1, K=1, S=3;", ran.errors[0])
    assert {(bundle.path / name).read_bytes() for name in ("model.onnx", "enrol.onnx")} == {b"the last good one"}
    assert len(list(bundle.path.iterdir())) == 4


def test_without_weights_there_is_nothing_to_export(tmp_path: Path, onnx_bundle: Path) -> None:
    bundle = gain_extractor(tmp_path / "model", onnx_bundle)
    with pytest.raises(BundleError, match="has no weights to export"):
        export_extractor(bundle.path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_every_registered_model(case: str, tmp_path: Path, torch_bundle: Path) -> None:
    """Also its embedding model gets its file, and both then run without torch."""
    name, args = CASES[case]
    bundle = random_extractor(tmp_path / case, name, args, embedder=torch_bundle if "voice_size" in args else None)
    rows = export_extractor(bundle.path)
    assert min(row.decibels for row in rows) > 60
    if case in HEARING:
        mixture, enrolment = speech_like(1.1, RATE), speech_like(1.0, RATE, seed=4)
        found = []
        for graph in (True, False):
            if not graph:
                (bundle.path / "model.onnx").unlink()
            runner = ExtractionRunner(read_extractor(bundle.path), "cpu", 1)
            assert runner.device == f"cpu ({'onnxruntime' if graph else 'torch'})"
            found.append(runner.run(mixture, enrolled(runner, enrolment)))
        assert np.abs(found[0] - found[1]).max() < 1e-3 * np.abs(found[1]).max()
