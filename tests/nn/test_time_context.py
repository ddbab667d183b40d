"""Layers along time against torch's own and against formulas."""

import pytest
import torch

from speakerkit.nn.time_context import HEADS, ChannelNorm, SelfAttention, TimeContext


def test_self_attention_is_that_of_torch_also_where_it_is_exported(monkeypatch):
    torch.manual_seed(0)
    layer = SelfAttention(8).double()
    reference = torch.nn.MultiheadAttention(8, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([each.weight for each in (layer.q_proj, layer.k_proj, layer.v_proj)]))
        reference.in_proj_bias.copy_(torch.cat([each.bias for each in (layer.q_proj, layer.k_proj, layer.v_proj)]))
        reference.out_proj.load_state_dict(layer.out_proj.state_dict())
        x = 3 * torch.randn(2, 7, 8, dtype=torch.float64)
        expected = reference(x, x, x)[0]
        assert torch.allclose(layer(x), expected, atol=1e-12)
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)  # one head after another
        assert torch.allclose(layer(x), expected, atol=1e-12)


def test_convolutions_see_as_many_frames_as_their_kernels():
    torch.manual_seed(0)
    layer = TimeContext(rows=8, hidden=4).eval()
    for block, kernel in zip(layer.tcm, (7, 19, 31, 59), strict=False):
        impulse = torch.zeros(1, 4, 99)
        impulse[:, 1, 49] = 1.0
        with torch.no_grad():
            changed = (block(impulse) - block(torch.zeros_like(impulse))).abs().sum(1)[0] > 1e-7
        assert changed.nonzero().flatten().tolist() == list(range(49 - kernel // 2, 50 + kernel // 2))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5)])
def test_norm_over_channels_leaves_bands_and_frames_apart(shape):
    layer = ChannelNorm(3).double()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        layer.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
        out = layer(x)
    column = x[1, :, ..., 2].reshape(3, -1)[:, 0]
    expected = (column - column.mean()) / (column.var(correction=0) + 1e-6).sqrt() * layer.weight + layer.bias
    assert torch.allclose(out[1, :, ..., 2].reshape(3, -1)[:, 0], expected)
