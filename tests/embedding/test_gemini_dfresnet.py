"""Gemini DF-ResNet: what no shape tells."""

import numpy as np
import pytest
import torch

from speakerkit.embedding.registry import build_backbone
from tests.embedding import formula
from tests.embedding.test_backbones import EMBED_DIM, small_args

# Outputs of WeSpeaker 0.0.2's Gemini_DF_ResNet with the tensors of formula.fill, by two_emb_layer.
GOLDEN = {
    False: [
        [0.46379118, 1.01698189, -1.31630339, 0.00478547],
        [-0.36121429, 2.61784805, -1.78236077, -1.22021582],
    ],
    True: [
        [-0.94546249, -0.72975417, -0.12413377, 0.47648513],
        [-2.04365035, -1.16194756, 0.22255841, 1.51150513],
    ],
}


@pytest.mark.parametrize("two_emb_layer", [False, True])
def test_equals_wespeaker(two_emb_layer):
    args = {"feat_dim": 16, "embed_dim": 4, "m_channels": 4, "two_emb_layer": two_emb_layer}
    backbone = build_backbone("Gemini_DF_ResNet60", **args).double().eval()
    formula.fill(backbone)
    with torch.no_grad():
        embeddings = backbone(formula.features(40, 16))
    np.testing.assert_allclose(embeddings, GOLDEN[two_emb_layer], atol=2e-8)


def test_tensors_that_published_checkpoints_do_not_have():
    with torch.device("meta"):
        gemini = build_backbone("Gemini_DF_ResNet114").state_dict()
    assert not any("seg_2" in key or "seg_bn_1" in key or key.startswith("pool") for key in gemini)
    assert not any("conv" in key and key.endswith("bias") for key in gemini)


def test_strides_are_the_golden_gemini():
    with torch.device("meta"):
        gemini = build_backbone("Gemini_DF_ResNet60")
    strides = [layer[0].stride for layer in gemini.downsample_layers]
    assert strides == [(1, 1), (2, 1), (2, 2), (2, 1), (2, 1)]


def test_mel_count_need_not_be_a_multiple_of_sixteen():
    args = {**small_args("Gemini_DF_ResNet60"), "feat_dim": 21}
    backbone = build_backbone("Gemini_DF_ResNet60", **args).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, 21)).shape == (2, EMBED_DIM)
