"""x-vector and xi-vectors: what no shape tells."""

import numpy as np
import pytest
import torch

from speakerkit.embedding.ecapa_tdnn import ECAPA_TDNN
from speakerkit.embedding.registry import Backbone, build_backbone
from speakerkit.embedding.tdnn import XVEC
from speakerkit.nn.pooling import XI
from tests.embedding import formula
from tests.embedding.test_backbones import FEAT_DIM, trained_a_little

# Outputs of WeSpeaker 0.0.2's XVEC and ECAPA_TDNN of these sizes with the tensors of formula.fill.
GOLDEN = [
    (
        XVEC(24, 16, 20, 3),
        [
            [-0.2464983302349929, -0.44740953736634026, 0.009462486357569425],
            [-0.24716188018515267, -0.4480251207120239, 0.009660682700822973],
        ],
    ),
    (
        XVEC(24, 16, 20, 3, pooling_func="XI"),
        [
            [0.046230963935548694, -0.23934517188981314, -0.12597940940936153],
            [0.04641258451092348, -0.2394629771802243, -0.1262500855402348],
        ],
    ),
    (
        ECAPA_TDNN(16, 24, 3, "XI"),
        [
            [1.8576805841183477, -3.0045359771239477, 3.2842088978621757],
            [1.8659554031370962, -3.015194368325559, 3.2942558621138054],
        ],
    ),
]


@pytest.mark.parametrize(("backbone", "expected"), GOLDEN, ids=["XVEC", "XI_VEC_XVEC", "XI_VEC_ECAPA_TDNN"])
def test_equals_wespeaker(backbone: Backbone, expected: list[list[float]]) -> None:
    backbone.double().eval()
    formula.fill(backbone)
    with torch.no_grad():
        np.testing.assert_allclose(backbone(formula.features(40, 24)), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["XI_VEC_XVEC", "XI_VEC_ECAPA_TDNN_c512", "XI_VEC_ECAPA_TDNN_c1024"])
def test_xi_vectors_pool_by_posterior(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert isinstance(backbone.pool, XI)
    assert backbone.embed_dim == (512 if name == "XI_VEC_XVEC" else 192)


def test_normalisations_have_no_affine_part():
    with torch.device("meta"):
        state = build_backbone("XVEC").state_dict()
    assert not [key for key in state if ".bn." in key and key.endswith(("weight", "bias"))]
    assert "seg_bn_1.weight" not in state


@pytest.mark.parametrize("frames", [1, 4, 14])
def test_input_below_the_context_has_its_last_frame_repeated(frames):
    backbone = trained_a_little("XVEC")
    feats = torch.randn(2, frames, FEAT_DIM)
    repeated = torch.cat([feats, feats[:, -1:].expand(-1, 15 - frames, -1)], dim=1)
    with torch.no_grad():
        assert torch.equal(backbone(feats), backbone(repeated))
