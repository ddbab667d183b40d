"""Bundles: loaded strictly, told apart by their digest, refused in one line that names what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from speakerkit.bundle import Bundle, read_bundle, write_bundle
from speakerkit.config import read_yaml, write_yaml
from speakerkit.errors import BundleError, ConfigError

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from speakerkit.embedding.embedder import load  # noqa: E402
from speakerkit.embedding.model import open_backbone  # noqa: E402
from speakerkit.export.bundle import export_bundle  # noqa: E402

Tensors = dict[str, "torch.Tensor"]


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "copy"))


def change_tensors(path: Path, change: Callable[[Tensors], None]) -> Bundle:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return read_bundle(path)


def test_reads_what_was_written(small_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(small_bundle)
    assert bundle.config.embedding_size == 16
    assert bundle.graph == small_bundle / "model.onnx"
    assert bundle.threshold() is None
    again = write_bundle(tmp_path / "again", bundle.config, bundle.tensors())
    assert read_bundle(again.path).config == bundle.config
    assert again.digest() == bundle.digest()
    assert again.graph is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("linear.bias"), r"Missing key.*linear\.bias"),
        (lambda t: t.update(surprise=torch.zeros(1)), "Unexpected key.*surprise"),
        (lambda t: t.update({"linear.bias": torch.zeros(17)}), r"size mismatch for linear\.bias"),
    ],
)
def test_strict_loading_names_the_tensor(copy: Path, change: Callable[[Tensors], None], message: str) -> None:
    bundle = change_tensors(copy, change)
    with pytest.raises(BundleError, match=message):
        open_backbone(bundle)
    (copy / "model.onnx").unlink()
    with pytest.raises(BundleError, match=message):
        load(copy, "cpu")


def test_weights_that_are_not_finite_give_no_embedding(copy: Path) -> None:
    from tests.conftest import speech_like

    (copy / "model.onnx").unlink()
    change_tensors(copy, lambda t: t["linear.bias"].fill_(float("nan")))
    with pytest.raises(BundleError, match=r"holds NaN or infinity in linear\.bias"):
        load(copy, device="cpu")
    change_tensors(copy, lambda t: t["linear.bias"].zero_())
    change_tensors(copy, lambda t: t["linear.weight"].fill_(3e38))
    with pytest.raises(BundleError, match="zero or not finite"):
        load(copy, "cpu").embed(speech_like(1.0), rate=16000)


def test_digest_is_of_the_weights(copy: Path) -> None:
    expected = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    assert read_bundle(copy).digest() == expected
    (copy / "model.safetensors").unlink()
    assert read_bundle(copy).digest() == expected, "the ONNX file was exported from these weights"
    graph = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(untold := graph.replace(b"weights_sha256", b"weights_sha255"))
    assert read_bundle(copy).digest() == hashlib.sha256(untold).hexdigest()


def test_onnx_of_other_weights_is_refused(copy: Path) -> None:
    change_tensors(copy, lambda t: t["linear.bias"].add_(1.0))
    with pytest.raises(BundleError, match=r"model\.onnx: was exported from other weights"):
        load(copy, "cpu")


def test_new_weights_drop_the_old_onnx_and_calibration(copy: Path) -> None:
    bundle = read_bundle(copy)
    (copy / "calibration.json").write_text(json.dumps({"threshold": 0.35, "source": "dev trials"}))
    again = write_bundle(copy, bundle.config, bundle.tensors())
    assert again.graph is None
    assert again.calibration() is None


def test_failed_export_keeps_the_good_onnx(copy: Path) -> None:
    before = (copy / "model.onnx").read_bytes()
    (copy / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(BundleError, match="damaged"):
        export_bundle(copy)
    assert (copy / "model.onnx").read_bytes() == before
    assert not [path.name for path in copy.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other-1"}, "is of format 'other-1'"),
        ({"format": None}, "is of format None"),
        ({"embedding_size": 0}, "embedding_size is 0"),
        ({"embedding_sise": 16}, "did you mean 'embedding_size'"),
        ({"frontend": {"num_mels": 0}}, "must be positive"),
        ({"frontend": {"window": "hann"}}, "'hann' is not known"),
        ({"frontend": {"sample_rate": 10**9}}, "sample_rate"),
        ({"frontend": {"high_freq": 9000.0}}, "leave no band"),
        ({"model": {"nam": "x"}}, "model.nam is an unknown key"),
    ],
)
def test_configurations_that_are_refused(copy: Path, change: dict[str, object], message: str) -> None:
    write_yaml(copy / "config.yaml", {**read_yaml(copy / "config.yaml"), **change})
    with pytest.raises((BundleError, ConfigError), match=message) as caught:
        read_bundle(copy)
    assert str(copy / "config.yaml") in str(caught.value)


def test_sizes_that_contradict_the_architecture(copy: Path) -> None:
    values = read_yaml(copy / "config.yaml")
    write_yaml(copy / "config.yaml", {**values, "embedding_size": 17})
    with pytest.raises(BundleError, match="embedding_size is 17, that of its model 16"):
        open_backbone(read_bundle(copy))


def test_threshold(copy: Path) -> None:
    path = copy / "calibration.json"
    path.write_text(json.dumps({"threshold": 0.35, "source": "dev trials"}))
    assert read_bundle(copy).threshold() == (0.35, "dev trials")
    for text in ("", "[]", "{}", '{"threshold": "x", "source": ""}', '{"threshold": 2, "source": ""}', "[" * 10**5):
        path.write_text(text)
        with pytest.raises(BundleError, match=r"calibration\.json"):
            read_bundle(copy).threshold()
