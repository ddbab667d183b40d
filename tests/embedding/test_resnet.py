"""ResNet: what no shape tells."""

import pytest
import torch

from speakerkit.embedding.registry import build_backbone
from tests.embedding.test_backbones import EMBED_DIM, FEAT_DIM, pool_input, small_args, trained_a_little


def test_tensors_that_published_checkpoints_do_not_have():
    with torch.device("meta"):
        resnet, bottleneck = build_backbone("ResNet34").state_dict(), build_backbone("ResNet50").state_dict()
    assert not any(key.startswith("layer1.0.shortcut") for key in resnet)
    assert "layer1.0.shortcut.0.weight" in bottleneck
    assert not any("seg_2" in key or "seg_bn_1" in key or key.startswith("pool") for key in resnet)
    assert "conv1.bias" not in resnet


def test_strides():
    with torch.device("meta"):
        resnets = [build_backbone("ResNet34"), build_backbone("ResNet50")]
    for resnet, convolution in zip(resnets, ("conv1", "conv2"), strict=True):
        layers = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
        assert [getattr(layer[0], convolution).stride for layer in layers] == [(1, 1), (2, 2), (2, 2), (2, 2)]


def test_second_embedding_layer():
    backbone = trained_a_little("ResNet18", two_emb_layer=True)
    state = backbone.state_dict()
    assert "seg_bn_1.running_mean" in state
    assert "seg_bn_1.weight" not in state
    assert state["seg_2.weight"].shape == (EMBED_DIM, EMBED_DIM)
    feats = torch.randn(2, 40, FEAT_DIM)
    with torch.no_grad():
        first = torch.relu(backbone.seg_1(backbone.pool(pool_input(backbone, feats))))
        normal = (first - state["seg_bn_1.running_mean"]) / (state["seg_bn_1.running_var"] + 1e-5).sqrt()
        expected = normal @ state["seg_2.weight"].T + state["seg_2.bias"]
        assert torch.allclose(backbone(feats), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_mel_count_need_not_be_a_multiple_of_eight(name):
    backbone = build_backbone(name, **{**small_args(name), "feat_dim": 21}).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, 21)).shape == (2, EMBED_DIM)
