"""Every registered backbone: shapes, gradients, published sizes, batch invariance, shortest input."""

import pytest
import torch

from speakerkit.embedding.registry import BACKBONES, Backbone, backbone_names, build_backbone, register_backbone
from speakerkit.errors import ConfigError
from speakerkit.nn.pooling import POOLINGS, Pooling, frame_rows
from tests.embedding.families import FAMILIES, FEAT_DIM, family_of

EMBED_DIM = 16
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in family_of(name).slow else name for name in backbone_names()
]
PUBLISHED = {name: facts for family in FAMILIES.values() for name, facts in family.published.items()}
SHAPES = {name: shapes for family in FAMILIES.values() for name, shapes in family.shapes.items()}


def small_args(name: str) -> dict[str, object]:
    """Arguments that make a member of the same family small."""
    family = family_of(name)
    small = family.small
    return {"feat_dim": family.feat_dim, "embed_dim": EMBED_DIM, **small.get(name, small.get("", {}))}


def random_feats(name: str, batch: int, frames: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Features of so many frames of 10 ms, as this backbone hears them."""
    family = family_of(name)
    return torch.randn(batch, frames * family.rows, family.feat_dim, generator=generator)


def trained_a_little(name: str, **args: object) -> Backbone:
    """In eval mode, normalisations holding the statistics of random features: activations of order one, none dead.

    Residual blocks change their input a little, as after training: with full branches, hundreds of random layers make
    noise of float rounding (float32 and float64 then differ by 5e-3 in ResNet293).
    """
    torch.manual_seed(1)
    backbone = build_backbone(name, **{**small_args(name), **args})
    damp = family_of(name).damp
    for module in backbone.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = None
        if damp is not None:
            damp(module)
    with torch.no_grad():
        for _ in range(2):
            backbone.train()(random_feats(name, 4, 64))
    for key, buffer in backbone.named_buffers():
        if key.endswith("running_var"):
            buffer.clamp_(min=0.01)
    return backbone.eval()


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Every backbone; the tests of one run together, so that only one large model is held."""
    return request.param


@pytest.fixture(scope="module")
def lively(name: str) -> Backbone:
    return trained_a_little(name)


def pool_input(backbone: Backbone, feats: torch.Tensor) -> torch.Tensor:
    seen = []
    handle = backbone.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(feats)
    handle.remove()
    return frame_rows(seen[0])


def test_forward(name, lively):
    backbone = lively
    assert (backbone.feat_dim, backbone.embed_dim) == (family_of(name).feat_dim, EMBED_DIM)
    with torch.no_grad():
        embedding = backbone(random_feats(name, 3, 70))
    assert isinstance(embedding, torch.Tensor)
    assert embedding.shape == (3, EMBED_DIM)
    assert embedding.isfinite().all()
    assert embedding.std(0).max() > 1e-4  # the embeddings differ


def test_every_name_belongs_to_one_family():
    named = sorted(name for family in FAMILIES.values() for name in family.names)
    assert named == sorted(backbone_names())


def test_every_parameter_gets_a_finite_gradient(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, **small_args(name)).train()
    embedding = backbone(random_feats(name, 4, 40))
    (embedding * torch.randn_like(embedding)).sum().backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or key.endswith(family_of(name).blind), key


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


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_published_names_and_shapes(name):
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    expected = SHAPES[name]
    assert {key: tuple(state[key].shape) if key in state else None for key in expected} == expected


def test_embedding_does_not_depend_on_its_batch_or_on_calls_before(name, lively):
    backbone = lively
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    feats = random_feats(name, 4, 50, torch.Generator().manual_seed(3))
    with torch.no_grad():
        alone = torch.cat([backbone(row.unsqueeze(0)) for row in feats])
        together = backbone(feats)
        backwards = backbone(feats.flip(0)).flip(0)
        backbone(100 * random_feats(name, 2, 90))
        again = backbone(feats)
    for other in (together, backwards, again):
        assert torch.nn.functional.cosine_similarity(alone, other).min() > 0.99999
        assert (alone - other).abs().max() < 1e-4 * alone.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_shortest_input_brings_two_frames_to_the_pooling(name, lively):
    backbone = lively
    shortest = backbone.min_frames
    feats = torch.randn(2, shortest, backbone.feat_dim)
    with torch.no_grad():
        assert backbone.frame_features(feats).shape[1] == 2
        assert backbone.frame_features(feats[:, 1:]).shape[1] == 1
        for rows in range(1, shortest + 1, family_of(name).rows):
            assert backbone(feats[:, :rows]).isfinite().all()
        first, second = backbone(feats)
    assert (first - second).abs().max() > 1e-4


def test_frame_features_are_what_the_pooling_sees(name, lively):
    backbone, family = lively, family_of(name)
    for frames in (40, 41):
        feats = random_feats(name, 2, frames)
        with torch.no_grad():
            features = backbone.frame_features(feats)
            assert features.shape[:2] == (2, family.pooled_frames(frames))
            assert family.pooled == isinstance(getattr(backbone, "pool", None), Pooling)
            if family.pooled:
                assert features.shape[2] == backbone.pool.in_dim
                assert torch.equal(features.transpose(1, 2), pool_input(backbone, feats))


@pytest.mark.parametrize("name", [family.poolings for family in FAMILIES.values() if family.poolings])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_fits_every_family(name, pooling):
    backbone = build_backbone(name, **small_args(name), pooling_func=pooling).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 30, FEAT_DIM)).isfinite().all()


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


def test_a_name_is_registered_once():
    assert "ResNet34" in BACKBONES
    with pytest.raises(ValueError, match="registered twice"):
        register_backbone("ResNet34")(Backbone)
