"""ONNX files compute what the torch model computes, at any batch and length, or are not written."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from speakerkit.embedding import campplus, res2net
from speakerkit.embedding.registry import Backbone, backbone_names
from speakerkit.errors import BundleError
from speakerkit.export.onnx import LENGTHS, check_parity, export_onnx
from tests.embedding.families import FAMILIES, family_of
from tests.embedding.test_backbones import EMBED_DIM, random_feats, trained_a_little


class Mean(Backbone):
    """The smallest backbone: a mean over time and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.feat_dim, self.embed_dim, self.min_frames = 4, 3, 1
        self.linear = torch.nn.Linear(4, 3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        return self.linear(self.drop(feats).mean(1))


class LengthBlind(Mean):
    """Forgets in its ONNX file that T is free: the number of frames of the example is baked in."""

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        baked = 0.0 if torch.compiler.is_exporting() else 1e-3 * feats.shape[1]
        return self.linear(feats.mean(1)) + baked


def export_lively(name: str, path: Path, **args: object) -> Backbone:
    backbone = trained_a_little(name, **args)
    parity = export_onnx(backbone, path, min_frames=backbone.min_frames, metadata={"sample_rate": "16000"})
    assert [(row.batch, row.frames) for row in parity.rows] == [
        (1, backbone.min_frames),
        (3, backbone.min_frames),
        *((batch, frames) for frames in LENGTHS[backbone.hears] for batch in (1, 3)),
    ]
    assert 0 < parity.max_abs_diff < 1e-4
    return backbone


SMALL = {name: args for family in FAMILIES.values() for name, args in family.export.items()}


@pytest.mark.parametrize("name", SMALL)
def test_small_member_of_each_family(name, tmp_path, monkeypatch):
    monkeypatch.setattr(campplus, "BLOCKS", ((2, 1), (2, 2), (2, 2)))  # all 52 layers take half a minute to trace
    monkeypatch.setattr(res2net, "NUM_BLOCKS", (1, 1, 1, 1))
    path = tmp_path / "model.onnx"
    backbone = export_lively(name, path, **SMALL[name])
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # one file, no external data, no leftovers

    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    assert proto.opset_import[0].version >= 17
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {
        "sample_rate": "16000",
        "min_frames": str(backbone.min_frames),
    }
    (feats,), (embs,) = session.get_inputs(), session.get_outputs()
    assert (feats.name, embs.name) == ("feats", "embs")
    assert all(isinstance(size, str) for size in feats.shape[:2])
    assert feats.shape[2] == family_of(name).feat_dim
    assert isinstance(embs.shape[0], str)
    assert embs.shape[1] == EMBED_DIM

    x = random_feats(name, 2, 333).numpy()
    with torch.no_grad():
        expected = backbone(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"feats": x})[0], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", backbone_names())
def test_every_registered_backbone(name, tmp_path):
    export_lively(name, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["TAP", "TSDP", "ASTP", "MHASTP", "MQMHASTP"])
def test_every_pooling(pooling, tmp_path):
    export_lively("ResNet18", tmp_path / "model.onnx", pooling_func=pooling)


def test_every_family_has_a_small_member():
    assert all(family.export for family in FAMILIES.values())


def test_the_model_keeps_its_modes_and_weights(tmp_path):
    backbone = Mean().train()
    backbone.linear.eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    parity = export_onnx(backbone, tmp_path / "model.onnx", min_frames=1, metadata={})
    assert parity.max_abs_diff < 1e-4  # though dropout is on in the model given
    assert [module.training for module in (backbone, backbone.linear, backbone.drop)] == [True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_wrong_file_is_refused_and_the_good_one_stays(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the last good one")
    with pytest.raises(BundleError, match=r"off its torch model at B=1, T=1;") as caught:
        export_onnx(LengthBlind(), path, min_frames=1, metadata={})
    assert caught.value.subject == str(path)
    assert path.read_bytes() == b"the last good one"
    assert list(tmp_path.iterdir()) == [path]


def test_without_the_check_a_file_is_written_and_can_be_checked_later(tmp_path):
    path = tmp_path / "new" / "model.onnx"
    backbone = Mean()
    parity = export_onnx(backbone, path, min_frames=1, metadata={}, check=False)
    assert parity.rows == ()
    assert np.isnan(parity.max_abs_diff)
    assert check_parity(backbone, path, 1).max_abs_diff < 1e-5
    with torch.no_grad():
        backbone.linear.weight[0, 0] += 0.1
    with pytest.raises(BundleError, match="off its torch model"):
        check_parity(backbone, path, 1)


def test_small_embeddings_are_not_excused(tmp_path):
    path = tmp_path / "model.onnx"
    backbone = Mean()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter *= 1e-5
    export_onnx(backbone, path, min_frames=1, metadata={})
    with torch.no_grad():
        backbone.linear.bias[0] += 1e-6
    with pytest.raises(BundleError):
        check_parity(backbone, path, 1)


def test_not_a_number_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    backbone = Mean()
    with torch.no_grad():
        backbone.linear.bias[0] = float("nan")
    with pytest.raises(BundleError, match="nan"):
        export_onnx(backbone, path, min_frames=1, metadata={})


def test_the_exporter_is_quiet_and_logging_is_as_before(tmp_path, capfd):
    logging.getLogger("torch.onnx").setLevel(logging.INFO)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_onnx(Mean(), tmp_path / "model.onnx", min_frames=1, metadata={}, check=False)
    assert caught == []
    assert capfd.readouterr().out == ""
    assert logging.getLogger("torch.onnx").level == logging.INFO
    logging.getLogger("torch.onnx").setLevel(logging.NOTSET)
