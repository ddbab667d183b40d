"""ERes2Net: what no shape tells."""

import numpy as np
import pytest
import torch

from speakerkit.embedding.eres2net import AttentionalFusion, ERes2Net
from speakerkit.embedding.registry import build_backbone
from tests.embedding import formula

# Outputs of WeSpeaker 0.0.2's ERes2Net(8, [3, 4, 6, 3]) with the tensors of formula.fill, and with the widths of "aug".
GOLDEN = {
    "ERes2Net34_Base": [
        [0.06663033339432789, 0.03326951806789094, -0.0025719389902963408],
        [0.05465270475767803, -0.04264891962673942, -0.030838184723346818],
    ],
    "ERes2Net34_aug": [
        [-0.3305862093276397, -0.4073694524701903, 0.9447424730595857],
        [0.7244748106607852, -1.3293356341827378, 1.474542080198774],
    ],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_wespeaker(name):
    backbone = build_backbone(name, feat_dim=24, embed_dim=3, m_channels=8).double().eval()
    formula.fill(backbone)
    with torch.no_grad():
        np.testing.assert_allclose(backbone(formula.features(40, 24)), GOLDEN[name], rtol=1e-8)


def test_fusion_equals_the_formula():
    fusion = AttentionalFusion(8).double().eval()
    formula.fill(fusion)
    x, y = formula.features(6, 2 * 8 * 3).reshape(2, 2, 8, 3, 6).numpy()
    state = {key.removeprefix("local_att."): value.numpy() for key, value in fusion.state_dict().items()}

    def convolved(number: int, maps: np.ndarray) -> np.ndarray:
        weight, bias = state[f"{number}.weight"][..., 0, 0], state[f"{number}.bias"]
        return np.einsum("oi,bift->boft", weight, maps) + bias[:, None, None]

    def normalised(number: int, maps: np.ndarray) -> np.ndarray:
        mean, var, weight, bias = (
            state[f"{number}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (maps - mean) / np.sqrt(var + 1e-5) * weight + bias

    hidden = normalised(1, convolved(0, np.concatenate([x, y], 1)))
    hidden = hidden / (1 + np.exp(-hidden))
    attention = 1 + np.tanh(normalised(4, convolved(3, hidden)))
    with torch.no_grad():
        fused = fusion(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(fused, x * attention + y * (2 - attention), rtol=1e-12)


def test_only_the_last_two_stages_fuse_within_their_blocks():
    backbone = build_backbone("ERes2Net34_Base", feat_dim=24, m_channels=8)
    assert isinstance(backbone, ERes2Net)
    layers = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    assert [hasattr(layer[0], "fuse_models") for layer in layers] == [False, False, True, True]
    assert [layer[0].conv1.stride for layer in layers] == [(1, 1), (2, 2), (2, 2), (2, 2)]
