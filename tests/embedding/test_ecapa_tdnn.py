"""ECAPA-TDNN: what no shape tells."""

import pytest
import torch

from speakerkit.embedding.ecapa_tdnn import ConvReluBn, Res2ConvReluBn
from speakerkit.embedding.registry import build_backbone
from speakerkit.errors import ConfigError


def test_tensors_that_published_checkpoints_do_not_have():
    with torch.device("meta"):
        ecapa = build_backbone("ECAPA_TDNN_c512").state_dict()
    assert not any(key.startswith("bn2") for key in ecapa)


def test_dilations():
    with torch.device("meta"):
        ecapa = build_backbone("ECAPA_TDNN_c512")
    blocks = (ecapa.layer2, ecapa.layer3, ecapa.layer4)
    assert [block.se_res2block[1].convs[6].dilation for block in blocks] == [(2,), (3,), (4,)]


def test_values_that_an_ecapa_cannot_have():
    with pytest.raises(ConfigError, match="multiple of 8"):
        build_backbone("ECAPA_TDNN", channels=12)
    with pytest.raises(ConfigError, match="no global context"):
        build_backbone("ECAPA_TDNN_GLOB_c512", pooling_func="TSTP")


def test_ecapa_normalises_after_the_relu():
    layer = ConvReluBn(3, 4).train()
    with torch.no_grad():
        out = layer(torch.randn(5, 3, 50))
    assert torch.allclose(out.mean((0, 2)), torch.zeros(4), atol=1e-5)


def test_res2_convolution_passes_its_last_split_through():
    layer = Res2ConvReluBn(16, kernel=3, dilation=2).eval()
    x = torch.randn(2, 16, 12)
    with torch.no_grad():
        out = layer(x)
        first = layer.bns[0](torch.relu(layer.convs[0](x[:, :2])))
        second = layer.bns[1](torch.relu(layer.convs[1](x[:, 2:4] + first)))
    assert torch.equal(out[:, 14:], x[:, 14:])
    assert torch.equal(out[:, :4], torch.cat([first, second], 1))
