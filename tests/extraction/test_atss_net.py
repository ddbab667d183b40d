"""Atss-Net: published sizes, its attention written out, its ablations, and its speaker network."""

import pytest
import torch
import yaml

from speakerkit.embedding.registry import build_backbone
from speakerkit.extraction.atss_net import BINS_AT_ONCE, AtssNet, TemporalAttention
from tests.conftest import REPOSITORY


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts():
    with torch.device("meta"):
        assert count(AtssNet()) / 1e6 == pytest.approx(4.676, abs=5e-4)  # "4.68M" in table 3
        assert count(AtssNet(attention=False)) / 1e6 == pytest.approx(0.516, abs=5e-4)
        assert AtssNet().dense.in_features == 257 + 128


def test_speaker_network_has_the_published_size():
    config = yaml.safe_load((REPOSITORY / "examples/voxceleb/conf/resnet18_atss.yaml").read_text())
    with torch.device("meta"):
        backbone = build_backbone(config["model"]["name"], **config["model"]["args"])
    assert (count(backbone) - count(backbone.seg_1)) / 1e6 == pytest.approx(0.700, abs=5e-4)
    assert (backbone.feat_dim, backbone.embed_dim) == (config["frontend"]["num_mels"], AtssNet().voice_size)
    assert [stage[0].conv1.out_channels for stage in (backbone.layer1, backbone.layer2)] == [16, 32]


def test_attention_of_each_bin_is_over_time_alone():
    """Equations 7 and 8, bin by bin and head by head."""
    torch.manual_seed(0)
    layer = TemporalAttention(channels=3, heads=2, head_channels=4).double()
    bins = BINS_AT_ONCE + 3
    x = 3 * torch.randn(2, 3, 7, bins, dtype=torch.float64)
    weight, bias = layer.queries_keys_values.weight, layer.queries_keys_values.bias
    heads = torch.empty(2, 8, 7, bins, dtype=torch.float64)
    for n in range(2):
        for f in range(bins):
            maps = (weight @ x[n, :, :, f] + bias[:, None]).view(3, 2, 4, 7)  # which, head, channel, frame
            for h, (query, key, value) in enumerate(maps.unbind(1)):
                heads[n, 4 * h : 4 * h + 4, :, f] = value @ (query.T @ key / 4**0.5).softmax(-1).T
    assert torch.allclose(layer(x), layer.join(heads), atol=1e-12)


@pytest.mark.parametrize("attention", [True, False])
def test_blind_ablation_gives_as_many_sources_as_asked_for(attention):
    torch.manual_seed(0)
    small = {"n_fft": 64, "window": 50, "hop": 20, "channels": 4, "blocks": 1, "head_channels": 4}
    model = AtssNet(voice_size=0, sources=3, attention=attention, **small).eval()
    with torch.no_grad():
        extracted = model(torch.randn(2, 300))
    assert extracted.waveform.shape == (2, 3, 300)
    assert extracted.magnitude.shape == (2, 3, 16, 33)
    assert (AtssNet(voice_size=0, **small).sources, AtssNet(**small).sources) == (2, 0)
