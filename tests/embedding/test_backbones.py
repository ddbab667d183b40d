"""Every registered backbone: shapes, gradients, published sizes, batch invariance, shortest input."""

from functools import cache

import pytest
import torch

from speakerkit.embedding.campplus import SEGMENT, ContextAwareMask, segment_means
from speakerkit.embedding.ecapa_tdnn import ConvReluBn, Res2ConvReluBn
from speakerkit.embedding.registry import BACKBONES, Backbone, backbone_names, build_backbone, register_backbone
from speakerkit.errors import ConfigError
from speakerkit.nn.pooling import POOLINGS, frame_rows

FEAT_DIM, EMBED_DIM = 24, 16
DEEP = ("ResNet101", "ResNet152", "ResNet221", "ResNet293")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in backbone_names()]

PUBLISHED = {  # tensors (None: not published), millions of parameters
    "ResNet34": (218, 6.634),
    "ResNet221": (None, 23.8),
    "ResNet293": (None, 28.6),
    "ECAPA_TDNN_GLOB_c512": (221, 6.191),
    "ECAPA_TDNN_GLOB_c1024": (None, 14.65),
    "CAMPPlus": (937, 7.176),
}

PUBLISHED_SHAPES = {
    "ResNet34": {
        "conv1.weight": (32, 1, 3, 3),
        "bn1.running_var": (32,),
        "layer1.2.conv2.weight": (32, 32, 3, 3),
        "layer2.0.shortcut.0.weight": (64, 32, 1, 1),
        "layer2.0.shortcut.1.bias": (64,),
        "layer3.5.bn2.num_batches_tracked": (),
        "layer4.2.conv1.weight": (256, 256, 3, 3),
        "seg_1.weight": (256, 5120),
        "seg_1.bias": (256,),
    },
    "ResNet293": {
        "layer1.0.shortcut.0.weight": (128, 32, 1, 1),
        "layer1.9.conv3.weight": (128, 32, 1, 1),
        "layer2.19.bn3.weight": (256,),
        "layer3.63.conv2.weight": (128, 128, 3, 3),
        "layer4.2.conv1.weight": (256, 1024, 1, 1),
        "seg_1.weight": (256, 20480),
    },
    "ECAPA_TDNN_GLOB_c512": {
        "layer1.conv.weight": (512, 80, 5),
        "layer2.se_res2block.0.conv.weight": (512, 512, 1),
        "layer3.se_res2block.1.convs.6.weight": (64, 64, 3),
        "layer4.se_res2block.1.bns.0.running_mean": (64,),
        "layer4.se_res2block.3.linear1.weight": (128, 512),
        "conv.weight": (1536, 1536, 1),
        "pool.linear1.weight": (128, 4608, 1),
        "pool.linear2.weight": (1536, 128, 1),
        "bn.weight": (3072,),
        "linear.weight": (192, 3072),
    },
    "ECAPA_TDNN_c1024": {"conv.weight": (1536, 3072, 1), "pool.linear1.weight": (128, 1536, 1)},
    "CAMPPlus": {
        "head.conv1.weight": (32, 1, 3, 3),
        "head.layer1.0.shortcut.1.weight": (32,),
        "head.layer2.1.bn2.weight": (32,),
        "head.conv2.weight": (32, 32, 3, 3),
        "xvector.tdnn.linear.weight": (128, 320, 5),
        "xvector.tdnn.nonlinear.batchnorm.weight": (128,),
        "xvector.block1.tdnnd12.linear1.weight": (128, 480, 1),
        "xvector.block2.tdnnd24.cam_layer.linear_local.weight": (32, 128, 3),
        "xvector.block3.tdnnd16.cam_layer.linear1.weight": (64, 128, 1),
        "xvector.block3.tdnnd16.cam_layer.linear2.bias": (32,),
        "xvector.block3.tdnnd1.nonlinear2.batchnorm.running_var": (128,),
        "xvector.transit3.linear.weight": (512, 1024, 1),
        "xvector.out_nonlinear.batchnorm.weight": (512,),
        "xvector.dense.linear.weight": (512, 1024, 1),
        "xvector.dense.nonlinear.batchnorm.running_mean": (512,),
    },
}


def small_args(name: str) -> dict[str, int]:
    """Arguments that make a member of the same family small; a new backbone without an entry is built as it is."""
    small = {"feat_dim": FEAT_DIM, "embed_dim": EMBED_DIM}
    if name.startswith("ResNet"):
        small |= {"m_channels": 8}
    if name == "ECAPA_TDNN":
        small |= {"channels": 16}
    if name == "CAMPPlus":
        small |= {"growth_rate": 4, "init_channels": 16}
    return small


def trained_a_little(name: str, **args: object) -> Backbone:
    """In eval mode, normalisations holding the statistics of random features: activations of order one, none dead.

    Residual blocks change their input a little, as after training: with full branches, hundreds of random layers make
    noise of float rounding (float32 and float64 then differ by 5e-3 in ResNet293).
    """
    torch.manual_seed(1)
    backbone = build_backbone(name, **{**small_args(name), **args})
    for module in backbone.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = None
        if hasattr(module, "shortcut"):
            last = module.bn3 if hasattr(module, "bn3") else module.bn2
            torch.nn.init.constant_(last.weight, 0.3)
    with torch.no_grad():
        for _ in range(2):
            backbone.train()(torch.randn(4, 64, backbone.feat_dim))
    for key, buffer in backbone.named_buffers():
        if key.endswith("running_var"):
            buffer.clamp_(min=0.01)
    return backbone.eval()


@cache
def lively(name: str) -> Backbone:
    return trained_a_little(name)


def pool_input(backbone: Backbone, feats: torch.Tensor) -> torch.Tensor:
    seen = []
    handle = backbone.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(feats)
    handle.remove()
    return frame_rows(seen[0])


@pytest.mark.parametrize("name", NAMES)
def test_forward(name):
    backbone = lively(name)
    assert (backbone.feat_dim, backbone.embed_dim) == (FEAT_DIM, EMBED_DIM)
    with torch.no_grad():
        embedding = backbone(torch.randn(3, 70, FEAT_DIM))
    assert isinstance(embedding, torch.Tensor)
    assert embedding.shape == (3, EMBED_DIM)
    assert embedding.isfinite().all()
    assert embedding.std(0).max() > 1e-4  # the embeddings differ


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, **small_args(name)).train()
    embedding = backbone(torch.randn(4, 40, FEAT_DIM))
    (embedding * torch.randn_like(embedding)).sum().backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or key == "pool.linear2.bias", key  # softmax over time does not see that bias


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_number_of_parameters(name):
    tensors, millions = PUBLISHED[name]
    with torch.device("meta"):
        backbone = build_backbone(name)
    count = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    decimals = len(str(millions).split(".")[1])
    assert abs(count - millions) < 10**-decimals
    if tensors is not None:
        assert len(backbone.state_dict()) == tensors


@pytest.mark.parametrize("name", sorted(PUBLISHED_SHAPES))
def test_published_names_and_shapes(name):
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    expected = PUBLISHED_SHAPES[name]
    assert {key: tuple(state[key].shape) if key in state else None for key in expected} == expected


def test_tensors_that_published_checkpoints_do_not_have():
    with torch.device("meta"):
        resnet, bottleneck = build_backbone("ResNet34").state_dict(), build_backbone("ResNet50").state_dict()
        campplus, ecapa = build_backbone("CAMPPlus").state_dict(), build_backbone("ECAPA_TDNN_c512").state_dict()
    assert not any(key.startswith("layer1.0.shortcut") for key in resnet)
    assert "layer1.0.shortcut.0.weight" in bottleneck
    assert not any("seg_2" in key or "seg_bn_1" in key or key.startswith("pool") for key in resnet)
    assert "conv1.bias" not in resnet
    assert "xvector.dense.nonlinear.batchnorm.weight" not in campplus
    assert "xvector.dense.linear.bias" not in campplus
    assert not any(key.startswith("bn2") for key in ecapa)


def test_strides_and_dilations_that_no_shape_tells():
    with torch.device("meta"):
        resnets = [build_backbone("ResNet34"), build_backbone("ResNet50")]
        ecapa, campplus = build_backbone("ECAPA_TDNN_c512"), build_backbone("CAMPPlus")
    for resnet, convolution in zip(resnets, ("conv1", "conv2"), strict=True):
        layers = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
        assert [getattr(layer[0], convolution).stride for layer in layers] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    blocks = (ecapa.layer2, ecapa.layer3, ecapa.layer4)
    assert [block.se_res2block[1].convs[6].dilation for block in blocks] == [(2,), (3,), (4,)]
    dense = (campplus.xvector.block1, campplus.xvector.block2, campplus.xvector.block3)
    assert [block.tdnnd12.cam_layer.linear_local.dilation for block in dense] == [(1,), (2,), (2,)]
    assert campplus.xvector.tdnn.linear.stride == (2,)


def test_second_embedding_layer():
    backbone = trained_a_little("ResNet18", two_emb_layer=True)
    state = backbone.state_dict()
    assert "seg_bn_1.running_mean" in state
    assert "seg_bn_1.weight" not in state
    assert state["seg_2.weight"].shape == (EMBED_DIM, EMBED_DIM)
    feats = torch.randn(2, 40, FEAT_DIM)
    with torch.no_grad():
        first = torch.relu(backbone.seg_1(backbone.pool(pool_input(backbone, feats))))
        normal = (first - state["seg_bn_1.running_mean"]) / (state["seg_bn_1.running_var"] + 1e-5).sqrt()
        expected = normal @ state["seg_2.weight"].T + state["seg_2.bias"]
        assert torch.allclose(backbone(feats), expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_embedding_does_not_depend_on_its_batch_or_on_calls_before(name):
    backbone = lively(name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    feats = torch.randn(4, 50, FEAT_DIM, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        alone = torch.cat([backbone(row.unsqueeze(0)) for row in feats])
        together = backbone(feats)
        backwards = backbone(feats.flip(0)).flip(0)
        backbone(100 * torch.randn(2, 90, FEAT_DIM))
        again = backbone(feats)
    for other in (together, backwards, again):
        assert torch.nn.functional.cosine_similarity(alone, other).min() > 0.99999
        assert (alone - other).abs().max() < 1e-4 * alone.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_shortest_input_brings_two_frames_to_the_pooling(name):
    backbone = lively(name)
    shortest = backbone.min_frames
    feats = torch.randn(2, shortest, FEAT_DIM)
    with torch.no_grad():
        assert backbone.frame_features(feats).shape[1] == 2
        assert backbone.frame_features(feats[:, 1:]).shape[1] == 1
        for frames in range(1, shortest + 1):
            assert backbone(feats[:, :frames]).isfinite().all()
        first, second = backbone(feats)
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_frame_features_are_what_the_pooling_sees(name):
    backbone = lively(name)
    for frames in (40, 41):
        feats = torch.randn(2, frames, FEAT_DIM)
        with torch.no_grad():
            features = backbone.frame_features(feats)
            seen = pool_input(backbone, feats)
        stride = {"R": 8, "E": 1, "C": 2}[name[0]]
        assert features.shape == (2, -(-frames // stride), backbone.pool.in_dim)
        assert torch.equal(features.transpose(1, 2), seen)


@pytest.mark.parametrize("name", ["ResNet18", "ECAPA_TDNN", "CAMPPlus"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_fits_every_family(name, pooling):
    backbone = build_backbone(name, **small_args(name), pooling_func=pooling).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, FEAT_DIM)).isfinite().all()


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "CAMPPlus"])
def test_mel_count_need_not_be_a_multiple_of_eight(name):
    backbone = build_backbone(name, **{**small_args(name), "feat_dim": 21}).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, 21)).shape == (2, EMBED_DIM)


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


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'ResNet43': is not known; did you mean 'ResNet34'"):
        build_backbone("ResNet43")
    with pytest.raises(ConfigError, match="'ResNet34': has no argument 'embed_dims'; did you mean 'embed_dim'"):
        build_backbone("ResNet34", embed_dims=128)
    with pytest.raises(ConfigError, match="no argument 'pooling_fun'; did you mean 'pooling_func'"):
        build_backbone("CAMPPlus", pooling_fun="TAP")
    with pytest.raises(ConfigError, match="'TSTB': is not known"):
        build_backbone("ResNet18", pooling_func="TSTB")
    with pytest.raises(ConfigError, match="'tanh'"):
        build_backbone("CAMPPlus", config_str="batchnorm-tanh")


def test_arguments_of_variants_that_are_fixed_cannot_be_given():
    for name, arg in (("ResNet34", "num_blocks"), ("ECAPA_TDNN_c512", "channels"), ("ECAPA_TDNN_c512", "scale")):
        with pytest.raises(ConfigError, match=f"no argument '{arg}'"):
            build_backbone(name, **{arg: 1})


def test_values_that_an_ecapa_cannot_have():
    with pytest.raises(ConfigError, match="multiple of 8"):
        build_backbone("ECAPA_TDNN", channels=12)
    with pytest.raises(ConfigError, match="no global context"):
        build_backbone("ECAPA_TDNN_GLOB_c512", pooling_func="TSTP")


def test_a_name_is_registered_once():
    assert "ResNet34" in BACKBONES
    with pytest.raises(ValueError, match="registered twice"):
        register_backbone("ResNet34")(Backbone)
