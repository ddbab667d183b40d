"""RepVGG: what no shape tells, and its form for inference."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from speakerkit.bundle import BundleConfig, read_bundle, write_bundle
from speakerkit.config import NamedConfig
from speakerkit.embedding.embedder import Embedder
from speakerkit.embedding.registry import build_backbone
from speakerkit.embedding.repvgg import RepVGG, RepVGGBlock, RSBBBlock, SqueezeExcitation
from speakerkit.export.onnx import export_onnx
from speakerkit.features import FrontEnd
from speakerkit.features import features as frontend_features
from tests.conftest import speech_like
from tests.embedding import formula
from tests.embedding.test_backbones import FEAT_DIM, small_args, trained_a_little

FORMS = [("REPVGG_TINY_A0", True), ("REPVGG_TINY_RSBB_A0", False), ("REPVGG_B1g4", False)]

# Outputs of WeSpeaker 0.0.2's classes of these names with the tensors of formula.fill (use_se in the first).
GOLDEN = {
    "REPVGG_TINY_A0": [
        [0.16130902, -0.18518769, -0.01075078, 0.16762052],
        [0.16104023, -0.18528489, -0.01035081, 0.16717792],
    ],
    "REPVGG_TINY_RSBB_A0": [
        [-14.65561046, 194.1933624, -247.52590555, 139.83397369],
        [-229.84709602, 378.99607449, -281.74300323, 1.21044241],
    ],
    "REPVGG_B1g4": [
        [-288296.74182477, -297142.18512189, -268378.21497463, -205645.61195123],
        [-273590.16902427, -282772.15792771, -256163.54449476, -197132.30627939],
    ],
}


@pytest.mark.parametrize(("name", "use_se"), FORMS)
def test_equals_wespeaker(name, use_se):
    backbone = build_backbone(name, feat_dim=16, embed_dim=4, base_width=8, use_se=use_se).double().eval()
    formula.fill(backbone)
    with torch.no_grad():
        embeddings = backbone(formula.features(40, 16))
    np.testing.assert_allclose(embeddings, GOLDEN[name], rtol=1e-9, atol=2e-8)


def test_tensors_that_published_checkpoints_do_not_have():
    with torch.device("meta"):
        tiny = build_backbone("REPVGG_TINY_A0").state_dict()
        plain = build_backbone("REPVGG_TINY_A0", deploy=True).state_dict()
    assert not any(key.startswith(("stage0.rbr_identity", "stage2.0.rbr_identity")) for key in tiny)
    assert not any(".se." in key or "reparam" in key or "conv.bias" in key for key in tiny)
    assert len(plain) == 2 * (1 + 3 + 4 + 23 + 3) + 2
    assert all("rbr_reparam" in key or key.startswith("seg.") for key in plain)


@pytest.mark.parametrize(("name", "millions"), [("REPVGG_TINY_A0", 6.264), ("REPVGG_RSBB_A0", 26.067)])
def test_published_size_of_the_form_for_inference(name, millions):
    with torch.device("meta"):
        backbone = build_backbone(name, deploy=True)
    assert sum(parameter.numel() for parameter in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


def test_strides_and_groups():
    with torch.device("meta"):
        b2g4, d2se = build_backbone("REPVGG_B2g4"), build_backbone("REPVGG_D2SE")
    stages = (b2g4.stage1, b2g4.stage2, b2g4.stage3, b2g4.stage4)
    assert [stage[0].rbr_dense.conv.stride[0] for stage in stages] == [1, 2, 2, 2]
    assert b2g4.stage0.rbr_dense.conv.stride == (1, 1)
    groups = [block.rbr_dense.conv.groups for stage in stages for block in stage]
    assert groups == [1, 4] * 13 + [1]
    assert [block.rbr_1x1.conv.groups for stage in stages for block in stage] == groups
    deep = [block.groups for stage in (d2se.stage1, d2se.stage2, d2se.stage3, d2se.stage4) for block in stage]
    assert deep == [1, 4] * 13 + [1] * 21  # as published: the list of grouped layers ends with the 26th


@pytest.mark.parametrize("kind", [RepVGGBlock, RSBBBlock])
@pytest.mark.parametrize(("in_channels", "stride", "groups"), [(4, 1, 1), (4, 1, 2), (4, 2, 1), (8, 1, 2)])
def test_a_folded_block_equals_its_branches(kind, in_channels, stride, groups):
    block = kind(in_channels, 4, stride, groups, use_se=True).double().eval()
    formula.fill(block)
    x = formula.features(11, in_channels * 9).reshape(2, in_channels, 9, 11)
    with torch.no_grad():
        expected = block(x)
        block.fold()
        block.fold()  # a second time changes nothing
        assert torch.allclose(block(x), expected, rtol=0, atol=1e-13)
    assert block.rbr_reparam.kernel_size == ((5, 5) if kind is RSBBBlock else (3, 3))
    assert [name for name, _ in block.named_children()] == ["se", "rbr_reparam"]


@pytest.mark.parametrize(("name", "use_se"), FORMS)
def test_deployed_copy_equals_the_training_form_and_fits_deploy(name, use_se):
    backbone = trained_a_little(name, use_se=use_se)
    before = set(backbone.state_dict())
    plain = backbone.deployed()
    assert set(backbone.state_dict()) == before
    fresh = build_backbone(name, **small_args(name), use_se=use_se, deploy=True).eval()
    fresh.load_state_dict(plain.state_dict())
    feats = torch.randn(3, 100, FEAT_DIM)
    with torch.no_grad():
        expected = backbone(feats)
        for other in (plain, fresh, fresh.deployed()):
            assert (other(feats) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_squeeze_excitation_equals_the_formula():
    layer = SqueezeExcitation(8).double()
    formula.fill(layer)
    x = formula.features(5, 24).reshape(2, 8, 3, 5)
    state = {key: value.numpy() for key, value in layer.state_dict().items()}
    hidden = np.maximum(x.numpy().mean((2, 3)) @ state["fc_1.weight"].T + state["fc_1.bias"], 0)
    scale = 1 / (1 + np.exp(-(hidden @ state["fc_2.weight"].T + state["fc_2.bias"])))
    with torch.no_grad():
        np.testing.assert_allclose(layer(x), x.numpy() * scale[:, :, None, None], rtol=1e-12)


def test_mel_count_need_not_be_a_multiple_of_eight():
    backbone = build_backbone("REPVGG_TINY_A0", **{**small_args("REPVGG_TINY_A0"), "feat_dim": 21}).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, 21)).isfinite().all()


def test_onnx_file_has_one_convolution_a_block(tmp_path):
    path = tmp_path / "model.onnx"
    backbone = RepVGG(RSBBBlock, (1, 1, 1, 1), (1, 1, 1, 1), feat_dim=16, embed_dim=8, base_width=4)
    export_onnx(backbone, path, min_frames=backbone.min_frames, metadata={}, check=False)
    assert [node.op_type for node in onnx.load(path).graph.node].count("Conv") == 5
    assert hasattr(backbone.stage0, "rbr_dense")  # the model itself is as it was


def test_torch_embedder_runs_the_deployed_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frontend = FrontEnd(num_mels=FEAT_DIM)
    args = {key: value for key, value in small_args("REPVGG_TINY_A0").items() if key != "feat_dim"}
    backbone = trained_a_little("REPVGG_TINY_A0")
    config = BundleConfig(
        model=NamedConfig("REPVGG_TINY_A0", args), embedding_size=backbone.embed_dim, frontend=frontend
    )
    write_bundle(tmp_path / "bundle", config, backbone.state_dict())
    forms = []
    deployed = RepVGG.deployed
    monkeypatch.setattr(RepVGG, "deployed", lambda self: forms.append(deployed(self)) or forms[-1])
    samples = speech_like(1.0, seed=3)
    vector = Embedder(read_bundle(tmp_path / "bundle"), device="cpu").embed(samples, rate=16000)
    with torch.no_grad():
        expected = backbone(torch.from_numpy(frontend_features(samples, frontend))[None])[0].numpy()
    assert len(forms) == 1
    np.testing.assert_allclose(vector, expected, atol=1e-4 * np.abs(expected).max())
