"""ReDimNet: what no shape tells."""

import pytest
import torch

from speakerkit.embedding.redimnet import FrequencyGate, InputWeights, to_1d, to_2d
from speakerkit.embedding.registry import build_backbone
from speakerkit.errors import ConfigError
from tests.embedding.formula import features, fill

TINY = {"channels": 4, "group_divisor": 2, "stages": [[1, 1, 2, 12], [3, 2], [2, 1, 1, 6]], "feat_dim": 12}

# Of WeSpeaker's ReDimNet with the same arguments, tensors and features, run in float64.
WESPEAKER = {
    "convnext_like": [[-0.0076247026, -0.1476878377, -0.1523621078], [-0.0146836869, -0.1457186177, -0.1414167717]],
    "basic_resnet": [[0.0266711612, -0.1284649399, -0.1487206445], [-0.0585553928, -0.1941877021, -0.1932011699]],
    "basic_resnet_fwse": [[0.0206074093, -0.1341690838, -0.153914299], [-0.0618781501, -0.1996489938, -0.2006565383]],
}


@pytest.mark.parametrize("block", WESPEAKER)
def test_every_kind_of_block_gives_wespeakers_embedding(block):
    backbone = build_backbone("ReDimNet", **TINY, block=block, embed_dim=3).double().eval()
    fill(backbone)
    with torch.no_grad():
        embedding = backbone(features(9, 12))
    assert torch.allclose(embedding, torch.tensor(WESPEAKER[block], dtype=torch.float64), atol=1e-9)


def test_bands_are_the_outer_rows_of_a_sequence():
    maps = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # (batch, channels, bands, frames)
    rows = to_1d(maps)
    assert rows.shape == (2, 12, 5)
    assert torch.equal(rows[:, 2 * 3 + 1], maps[:, 1, 2])  # band 2, channel 1
    assert torch.equal(to_2d(rows, 3), maps)


def test_every_stage_keeps_rows_and_frames():
    backbone = build_backbone("ReDimNet", **TINY).eval()
    shapes = []
    for module in backbone.backbone.children():
        module.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))
    with torch.no_grad():
        backbone(torch.randn(2, 31, 12))
    stem, *others = shapes
    assert stem == (2, 4, 12, 31)
    assert others == [(2, 48, 31)] * 7  # three stages, each after the weighting of its input, and the last weighting


def test_a_new_network_averages_its_maps_and_a_trained_one_weights_them_by_row():
    torch.manual_seed(0)
    layer = InputWeights(rows=3, stages=2).double()
    maps = [torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        assert layer(maps[:1]) is maps[0]
        assert torch.allclose(layer(maps), sum(maps) / 3)
        weights = layer.get_parameter("2").normal_().exp()[0, ..., 0]  # (maps, rows)
        share = weights / weights.sum(0)
        expected = torch.einsum("nr,nbrt->brt", share, torch.stack(maps))
        assert torch.allclose(layer(maps), expected)


def test_gate_is_one_factor_per_band():
    torch.manual_seed(0)
    layer = FrequencyGate(bands=4, hidden=6)
    x = torch.randn(2, 3, 4, 5)
    with torch.no_grad():
        factor = layer(x) / x  # (batch, channels, bands, frames)
        assert torch.allclose(factor, factor[:, :1, :, :1].expand_as(x), atol=1e-5)
        assert factor.min() > 0
        assert factor.max() < 1
        assert factor[0, 0, :, 0].unique().numel() == 4
        shuffled = x[:, [2, 0, 1]][..., torch.randperm(5)]
        assert torch.allclose(layer(shuffled) / shuffled, factor, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("ReDimNetB2", {"feat_dim": 78}, r"feat_dim: is 78, .* \(8 in all\).*use 72 or 80 mel bands"),
        ("ReDimNetB6", {"feat_dim": 80}, "use 72 or 84 mel bands"),
        ("ReDimNetB1", {"feat_dim": 20}, "use 24 mel bands"),
        (
            "ReDimNetB0",
            {"feat_dim": 64},
            "feat_dim: and a reduction by 30 leave 21 of 640 rows .* use 60 mel bands for B0",
        ),
        ("ReDimNet", {"block": "basic_resnets"}, "did you mean 'basic_resnet'"),
        ("ReDimNet", {"channels": 14}, "group_divisor: is 4, which does not group .* 14 channels"),
        ("ReDimNet", {"group_divisor": 17}, "group_divisor: is 17, .* 16 channels"),
    ],
)
def test_values_that_a_redimnet_cannot_have(name, args, said):
    with pytest.raises(ConfigError, match=said), torch.device("meta"):
        build_backbone(name, **args)


def test_the_second_embedding_layer_is_wespeakers():
    with torch.device("meta"):
        state = build_backbone("ReDimNetB0", two_emb_layer=True).state_dict()
    assert state["seg_2.weight"].shape == (192, 192)
    assert "seg_bn_1.running_mean" in state
    assert "seg_bn_1.weight" not in state
