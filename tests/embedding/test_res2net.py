"""Res2Net: what no shape tells."""

import numpy as np
import pytest
import torch

from speakerkit.embedding.registry import build_backbone
from speakerkit.embedding.res2net import Res2Block
from tests.embedding import formula
from tests.embedding.test_backbones import EMBED_DIM, small_args

# Outputs of WeSpeaker 0.0.2's Res2Net(8, [3, 4, 6, 3]) with the tensors of formula.fill.
GOLDEN = [
    [-0.050178377967580845, -0.012198636787293021, 0.09013439661985928],
    [-0.025060778105287396, -0.0034539714316252634, 0.06965228748505198],
]


def test_equals_wespeaker():
    backbone = build_backbone("Res2Net34_Base", feat_dim=24, embed_dim=3, m_channels=8).double().eval()
    formula.fill(backbone)
    with torch.no_grad():
        np.testing.assert_allclose(backbone(formula.features(40, 24)), GOLDEN, rtol=1e-9)


@pytest.mark.parametrize("pass_last", [True, False])
def test_each_split_is_convolved_with_the_result_before_it(pass_last):
    block = Res2Block(4, 8, 1, baseWidth=24, scale=3, pass_last=pass_last).double().eval()
    formula.fill(block)
    seen = []
    block.conv3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = formula.features(7, 4 * 5).reshape(2, 4, 5, 7)
    with torch.no_grad():
        block(x)
        first, second, last = block.bn1(block.conv1(x)).clamp(0, 20).split(3, dim=1)
        expected = [block.bns[0](block.convs[0](first)).clamp(0, 20)]
        expected.append(block.bns[1](block.convs[1](second + expected[0])).clamp(0, 20))
        expected.append(last if pass_last else block.bns[2](block.convs[2](last + expected[1])).clamp(0, 20))
    assert torch.allclose(seen[0], torch.cat(expected, dim=1), atol=1e-12)


def test_rectifiers_saturate_at_twenty():
    block = Res2Block(4, 8, 1).eval()
    seen = []
    block.conv3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for bn in (*block.bns, block.bn3):
            bn.weight *= 1e3
        out = block(1e4 * torch.randn(2, 4, 5, 7))
    for activations in (*seen[0].chunk(2, dim=1), out):
        assert (activations.min(), activations.max()) == (0, 20)


def test_second_embedding_layer():
    backbone = build_backbone("Res2Net34_Base", **{**small_args("Res2Net34_Base"), "two_emb_layer": True})
    state = backbone.state_dict()
    assert len(state) == 320 + 5
    assert "seg_bn_1.weight" not in state
    assert state["seg_2.weight"].shape == (EMBED_DIM, EMBED_DIM)


@pytest.mark.parametrize("name", ["Res2Net34_Base", "ERes2Net34_Base"])
def test_mel_count_need_not_be_a_multiple_of_eight(name):
    backbone = build_backbone(name, **{**small_args(name), "feat_dim": 21}).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, 21)).shape == (2, EMBED_DIM)
