"""CAM++: what no shape tells."""

import pytest
import torch

from speakerkit.embedding.campplus import SEGMENT, ContextAwareMask, segment_means
from speakerkit.embedding.registry import build_backbone
from tests.embedding.test_backbones import EMBED_DIM, small_args


def test_tensors_that_published_checkpoints_do_not_have():
    with torch.device("meta"):
        campplus = build_backbone("CAMPPlus").state_dict()
    assert "xvector.dense.nonlinear.batchnorm.weight" not in campplus
    assert "xvector.dense.linear.bias" not in campplus


def test_stride_and_dilations():
    with torch.device("meta"):
        campplus = build_backbone("CAMPPlus")
    dense = (campplus.xvector.block1, campplus.xvector.block2, campplus.xvector.block3)
    assert [block.tdnnd12.cam_layer.linear_local.dilation for block in dense] == [(1,), (2,), (2,)]
    assert campplus.xvector.tdnn.linear.stride == (2,)


def test_mel_count_need_not_be_a_multiple_of_eight():
    backbone = build_backbone("CAMPPlus", **{**small_args("CAMPPlus"), "feat_dim": 21}).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, 21)).shape == (2, EMBED_DIM)


@pytest.mark.parametrize("frames", [1, 99, 100, 101, 250])
def test_segment_means_divide_by_the_segments_own_length(frames):
    x = torch.randn(2, 3, frames, dtype=torch.float64)
    expected = torch.stack([part.mean(-1) for part in x.split(SEGMENT, dim=-1)], dim=-1)
    assert torch.allclose(segment_means(x), expected, atol=1e-12)


@pytest.mark.parametrize("frames", [5, 100, 230])
def test_context_aware_mask_equals_the_formula_per_frame(frames):
    torch.manual_seed(0)
    layer = ContextAwareMask(8, 4, kernel=3, dilation=2).double()
    x = torch.randn(2, 8, frames, dtype=torch.float64)
    w1, w2 = layer.linear1.weight[..., 0], layer.linear2.weight[..., 0]
    with torch.no_grad():
        local = layer.linear_local(x)
        for frame in range(frames):
            start = SEGMENT * (frame // SEGMENT)
            context = x.mean(-1) + x[..., start : start + SEGMENT].mean(-1)
            hidden = torch.relu(context @ w1.T + layer.linear1.bias)
            mask = 1 / (1 + torch.exp(-(hidden @ w2.T + layer.linear2.bias)))
            local[..., frame] *= mask
        assert torch.allclose(layer(x), local, atol=1e-12)
