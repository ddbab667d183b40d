"""Folders of extraction models: what is read, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from speakerkit.bundle import CONFIG, GRAPH, WEIGHTS
from speakerkit.config import NamedConfig
from speakerkit.errors import BundleError
from speakerkit.extraction.bundle import (
    ENROL_GRAPH,
    FORMAT,
    PRESENCE,
    VOICE,
    ExtractionBundle,
    ExtractorConfig,
    is_extractor,
    read_extractor,
    write_extractor,
)

CONFIGURED = ExtractorConfig(NamedConfig("bsrnn", {"features": 6}), 8000, "embedding", 16, 2.0, provenance={"seed": 3})


@pytest.fixture
def bundle(tmp_path: Path) -> ExtractionBundle:
    return write_extractor(tmp_path / "model", CONFIGURED, {"weight": torch.arange(3.0)})


def test_a_folder_is_read_as_it_was_written(bundle: ExtractionBundle) -> None:
    found = read_extractor(bundle.path)
    assert found == bundle
    assert found.config == CONFIGURED
    assert is_extractor(bundle.path)
    torch.testing.assert_close(found.tensors()["weight"], torch.arange(3.0))
    assert found.graph is None


def test_new_weights_take_away_what_was_of_the_old(bundle: ExtractionBundle) -> None:
    for name in (GRAPH, ENROL_GRAPH, PRESENCE):
        (bundle.path / name).write_text("old")
    before = bundle.digest()
    write_extractor(bundle.path, CONFIGURED, {"weight": torch.arange(4.0)})
    assert {path.name for path in bundle.path.iterdir()} == {CONFIG, WEIGHTS}
    assert bundle.digest() != before


def test_a_graph_will_do_without_weights(bundle: ExtractionBundle) -> None:
    (bundle.path / WEIGHTS).rename(bundle.path / GRAPH)
    found = read_extractor(bundle.path)
    assert found.graph == bundle.path / GRAPH
    assert found.digest() == bundle.digest()
    with pytest.raises(BundleError, match="ONNX"):
        found.tensors()


def test_the_embedding_model_lies_within(bundle: ExtractionBundle, small_bundle: Path) -> None:
    with pytest.raises(BundleError, match=VOICE):
        bundle.voice()
    shutil.copytree(small_bundle, bundle.path / VOICE)
    assert bundle.voice().config.embedding_size == 16
    text = (bundle.path / CONFIG).read_text()
    (bundle.path / CONFIG).write_text(text.replace("voice_size: 16", "voice_size: 8"))
    with pytest.raises(BundleError, match="16"):
        read_extractor(bundle.path).voice()
    (bundle.path / CONFIG).write_text(text.replace("voices: embedding", "voices: joint"))
    with pytest.raises(BundleError, match="encoder"):
        read_extractor(bundle.path).voice()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (FORMAT, "speakerkit-extraction-0", "format"),
        ("voices: embedding", "voices: ears", "voices"),
        ("sample_rate: 8000", "sample_rates: 8000", "sample_rate"),
        ("sample_rate: 8000", "sample_rate: fast", "sample_rate"),
    ],
    ids=lambda text: text.replace(" ", ""),
)
def test_other_configurations_are_refused(bundle: ExtractionBundle, old: str, new: str, said: str) -> None:
    config = bundle.path / CONFIG
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(BundleError, match=said):
        read_extractor(bundle.path)


def test_other_folders_are_refused(bundle: ExtractionBundle, tmp_path: Path, small_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no such"):
        read_extractor(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=CONFIG):
        read_extractor(tmp_path)
    with pytest.raises(BundleError, match="format"):
        read_extractor(small_bundle)
    assert not is_extractor(small_bundle)
    assert not is_extractor(tmp_path / "nowhere")
    (bundle.path / WEIGHTS).unlink()
    with pytest.raises(BundleError, match="neither"):
        read_extractor(bundle.path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = write_extractor(tmp_path / "model", CONFIGURED, {"weight": torch.tensor([1.0, float("nan")])})
    with pytest.raises(BundleError, match="weight"):
        broken.tensors()
