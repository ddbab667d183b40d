"""SimAM-ResNet: what no shape tells, and its pooling."""

import numpy as np
import pytest
import torch

from speakerkit.embedding.registry import build_backbone
from speakerkit.embedding.simam_resnet import simam
from speakerkit.nn.pooling import ASP
from tests.embedding import formula
from tests.embedding.test_backbones import EMBED_DIM, FEAT_DIM, small_args, trained_a_little

# Outputs of WeSpeaker 0.0.2's SimAM_ResNet34_ASP with the tensors of formula.fill.
GOLDEN = [
    [-0.17604083, -0.02627143, 0.10317747, -0.11267214],
    [-0.16017863, -0.05951928, 0.13218637, -0.11857452],
]


def test_equals_wespeaker():
    backbone = build_backbone("SimAM_ResNet34_ASP", feat_dim=16, embed_dim=4, in_planes=4).double().eval()
    formula.fill(backbone)
    with torch.no_grad():
        embeddings = backbone(formula.features(40, 16))
    np.testing.assert_allclose(embeddings, GOLDEN, atol=2e-8)


def test_tensors_that_published_checkpoints_do_not_have():
    with torch.device("meta"):
        state = build_backbone("SimAM_ResNet34_ASP").state_dict()
    assert not any(key.startswith("front.layer1.0.downsample") for key in state)
    assert "front.conv1.bias" not in state


def test_strides():
    with torch.device("meta"):
        front = build_backbone("SimAM_ResNet34_ASP").front
    layers = (front.layer1, front.layer2, front.layer3, front.layer4)
    assert [layer[0].conv1.stride for layer in layers] == [(1, 1), (2, 2), (2, 2), (2, 2)]


def test_attention_equals_the_formula_of_each_neuron():
    x = np.random.default_rng(0).normal(1, 2, (2, 3, 4, 5))
    expected = np.empty_like(x)
    for b, c in np.ndindex(2, 3):
        mean, variance = x[b, c].mean(), x[b, c].var(ddof=1)
        energy = 4 * (variance + 1e-4) / ((x[b, c] - mean) ** 2 + 2 * variance + 2e-4)  # eq. 5 of the SimAM paper
        expected[b, c] = x[b, c] / (1 + np.exp(-1 / energy))
    np.testing.assert_allclose(simam(torch.from_numpy(x)), expected, rtol=1e-12)


def test_a_map_of_one_value_is_only_scaled():
    x = torch.tensor([2.0, -3.0]).reshape(1, 2, 1, 1)
    assert torch.allclose(simam(x), x * torch.tensor(0.5).sigmoid())


def test_attentive_pooling_equals_numpy():
    pool = ASP(6, bottleneck_dim=4).double().eval()
    formula.fill(pool)
    x = np.random.default_rng(1).normal(size=(2, 6, 20))
    x[:, 5] = 1e-3 * x[:, 5]  # a row whose deviation is below the least
    state = {key: value.numpy() for key, value in pool.state_dict().items()}
    hidden = np.maximum(
        np.einsum("oi,bit->bot", state["attention.0.weight"][..., 0], x) + state["attention.0.bias"][:, None], 0
    )
    scale = state["attention.2.weight"] / np.sqrt(state["attention.2.running_var"] + 1e-5)
    hidden = (hidden - state["attention.2.running_mean"][:, None]) * scale[:, None] + state["attention.2.bias"][:, None]
    scores = np.einsum("oi,bit->bot", state["attention.3.weight"][..., 0], hidden) + state["attention.3.bias"][:, None]
    alpha = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mean = (alpha * x).sum(-1)
    std = np.sqrt(np.maximum((alpha * x**2).sum(-1) - mean**2, 1e-5))
    assert (std[:, 5] == np.sqrt(1e-5)).all()
    with torch.no_grad():
        np.testing.assert_allclose(pool(torch.from_numpy(x)), np.concatenate([mean, std], 1), rtol=1e-9)


@pytest.mark.parametrize("frames", [9, 40])
def test_frame_features_are_what_the_pooling_sees(frames):
    backbone = trained_a_little("SimAM_ResNet34_ASP")
    feats = torch.randn(2, frames, FEAT_DIM)
    with torch.no_grad():
        features = backbone.frame_features(feats)
        assert features.shape[2] == backbone.pooling.in_dim
        expected = backbone.bottleneck(backbone.pooling(features.transpose(1, 2)))
        assert torch.equal(backbone(feats), expected)


def test_dropout_is_of_training_only():
    backbone = trained_a_little("SimAM_ResNet34_ASP", dropout=0.5)
    feats = torch.randn(4, 40, FEAT_DIM)
    with torch.no_grad():
        assert torch.equal(backbone(feats), backbone(feats))
        backbone.drop.train()
        assert not torch.allclose(backbone(feats), backbone(feats))


def test_mel_count_need_not_be_a_multiple_of_eight():
    args = {**small_args("SimAM_ResNet34_ASP"), "feat_dim": 21}
    backbone = build_backbone("SimAM_ResNet34_ASP", **args).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, 21)).shape == (2, EMBED_DIM)
