"""Poolings against float64 NumPy, and the order in which they write their statistics."""

import numpy as np
import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.nn.pooling import ASTP, EPS, MHASTP, MQMHASTP, POOLINGS, TAP, TSDP, TSTP, XI

VARIANTS = [(name, {}) for name in POOLINGS] + [
    ("ASTP", {"global_context_att": True}),
    ("MHASTP", {"d_s": 1}),
    ("MHASTP", {"layer_num": 1}),
    ("MHASTP", {"layer_num": 3, "head_num": 2}),
    ("MQMHASTP", {"query_num": 3}),
]


def build(name: str, in_dim: int, **args: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return POOLINGS[name](in_dim, **args)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def affine(conv: torch.nn.Conv1d, x: np.ndarray) -> np.ndarray:
    """A kernel-1 convolution as a matrix product over (batch, rows, frames)."""
    weight = conv.weight.detach().double().numpy()[..., 0]
    return np.einsum("oi,bit->bot", weight, x) + conv.bias.detach().double().numpy()[:, None]


def weighted_moments(x: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = (alpha * x).sum(-1)
    return mean, np.sqrt((alpha * x**2).sum(-1) - mean**2)


@pytest.mark.parametrize(("name", "args"), VARIANTS)
@pytest.mark.parametrize("shape", [(3, 16, 11), (3, 4, 4, 11)])
def test_output_has_the_declared_size_and_finite_gradients(name, args, shape):
    pool = build(name, 16, **args)
    x = torch.randn(shape, requires_grad=True)
    pooled = pool(x)
    assert pool.in_dim == 16
    assert pooled.shape == (3, pool.out_dim)
    pooled.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pool.parameters())


@pytest.mark.parametrize(("name", "args"), [variant for variant in VARIANTS if variant[0] != "XI"])
def test_one_frame_is_its_own_mean_with_the_smallest_deviation(name, args):
    pool = build(name, 16, **args)
    x = torch.randn(2, 16, 1, requires_grad=True)
    pooled = pool(x)
    pooled.sum().backward()
    assert x.grad.isfinite().all()
    smallest = pooled.detach().isclose(torch.tensor(getattr(pool, "floor", EPS)).sqrt(), rtol=1e-4)
    means = {"TAP": 16, "TSDP": 0}.get(name, pool.out_dim // 2)
    assert (smallest.sum(1) == pool.out_dim - means).all()
    if means:
        rest = pooled.detach()[~smallest].reshape(2, -1, 16 if not name.endswith("MHASTP") else means)
        assert torch.allclose(rest[:, 0].sort().values[:, :1], x.detach()[..., 0].min(1, keepdim=True).values)


@pytest.mark.parametrize(("name", "args"), VARIANTS)
def test_order_of_frames_does_not_matter(name, args):
    pool = build(name, 16, **args).double()
    x = torch.randn(2, 16, 30, dtype=torch.float64)
    assert torch.allclose(pool(x), pool(x.flip(-1)), atol=1e-12)
    assert not torch.allclose(pool(x), pool(x.roll(1, dims=1)), atol=1e-3)


@pytest.mark.parametrize(("name", "args"), VARIANTS)
def test_half_precision_input_is_pooled_in_float32(name, args):
    pool = build(name, 16, **args)
    x = (300 * torch.randn(2, 16, 500)).half()  # sums of squares overflow in float16
    assert pool(x).dtype == torch.float32
    assert torch.allclose(pool(x), pool(x.float()))


def test_statistics_poolings_equal_numpy():
    x = np.random.default_rng(0).normal(2, 3, (2, 5, 40))
    tensor = torch.from_numpy(x)
    mean = x.mean(-1)
    std = np.sqrt(x.var(-1, ddof=1) + 1e-7)
    np.testing.assert_allclose(TAP(5)(tensor), mean, rtol=1e-12)
    np.testing.assert_allclose(TSDP(5)(tensor), std, rtol=1e-12)
    np.testing.assert_allclose(TSTP(5)(tensor), np.concatenate([mean, std], 1), rtol=1e-12)


def test_two_frames_by_hand_channel_major():
    # Channel c, frequency f: frames 10 c + f -+ (c + f + 1): mean 10 c + f, unbiased variance 2 (c + f + 1)^2.
    channel, frequency = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    middle, offset = 10 * channel + frequency, channel + frequency + 1
    x = torch.stack([middle - offset, middle + offset], dim=-1).unsqueeze(0)  # (1, 2, 3, 2)
    means = [0, 1, 2, 10, 11, 12]
    stds = [2**0.5 * n for n in (1, 2, 3, 2, 3, 4)]
    assert TAP(6)(x)[0].tolist() == pytest.approx(means, abs=1e-6)
    assert TSDP(6)(x)[0].tolist() == pytest.approx(stds, rel=1e-6)
    assert TSTP(6)(x)[0].tolist() == pytest.approx(means + stds, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("global_context", [False, True])
def test_attentive_pooling_equals_the_paper(global_context):
    pool = build("ASTP", 6, bottleneck_dim=4, global_context_att=global_context).double()
    assert isinstance(pool, ASTP)
    x = np.random.default_rng(1).normal(size=(2, 6, 20))
    seen = x
    if global_context:
        mean, std = x.mean(-1, keepdims=True), np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-7)
        seen = np.concatenate([x, np.broadcast_to(mean, x.shape), np.broadcast_to(std, x.shape)], 1)
    alpha = softmax(affine(pool.linear2, np.tanh(affine(pool.linear1, seen))))
    expected = np.concatenate(weighted_moments(x, alpha), 1)
    np.testing.assert_allclose(pool(torch.from_numpy(x)).detach(), expected, rtol=1e-9)


@pytest.mark.parametrize("d_s", [1, 2])
def test_heads_see_only_their_own_rows(d_s):
    pool = build("MHASTP", 12, head_num=3, d_s=d_s, bottleneck_dim=5).double()
    assert isinstance(pool, MHASTP)
    x = np.random.default_rng(2).normal(size=(2, 12, 20))
    first, last = pool.attention[0], pool.attention[-1]
    width = 4 if d_s > 1 else 1
    expected = []
    for head in range(3):
        rows = x[:, 4 * head : 4 * head + 4]
        w1 = first.weight.detach().numpy()[5 * head : 5 * head + 5, :, 0]
        b1 = first.bias.detach().numpy()[5 * head : 5 * head + 5]
        w2 = last.weight.detach().numpy()[width * head : width * head + width, :, 0]
        b2 = last.bias.detach().numpy()[width * head : width * head + width]
        hidden = np.tanh(np.einsum("oi,bit->bot", w1, rows) + b1[:, None])
        alpha = softmax(np.einsum("oi,bit->bot", w2, hidden) + b2[:, None])
        expected += weighted_moments(rows, alpha)
    np.testing.assert_allclose(pool(torch.from_numpy(x)).detach(), np.concatenate(expected, 1), rtol=1e-9)


def xi_with_prior(bias: float) -> tuple[XI, np.ndarray, np.ndarray]:
    """In eval mode, its normalisation untrained, its precisions shifted; with the prior's mean and precision."""
    pool = build("XI", 5, hidden_size=7).double().eval()
    assert isinstance(pool, XI)
    rng = np.random.default_rng(4)
    mean, logprec = rng.normal(size=5), rng.normal(size=5)
    with torch.no_grad():
        pool.prior_mean.copy_(torch.from_numpy(mean))
        pool.prior_logprec.copy_(torch.from_numpy(logprec))
        pool.lin2.bias.add_(bias)
    return pool, mean, np.exp(logprec)


def test_xi_is_the_mean_of_the_gaussian_posterior():
    pool, prior_mean, prior_precision = xi_with_prior(0.0)
    x = np.random.default_rng(5).normal(2, 3, (2, 5, 20))
    hidden = np.maximum(affine(pool.lin1_relu_bn[0], x), 0) / np.sqrt(1 + pool.lin1_relu_bn[2].eps)
    precision = np.log1p(np.exp(affine(pool.lin2, hidden))) ** 2
    # Bayes one frame at a time: precisions add, means are weighted by them.
    mean, total = np.tile(prior_mean, (2, 1)), np.tile(prior_precision, (2, 1))
    for frame in range(20):
        mean = (total * mean + precision[..., frame] * x[..., frame]) / (total + precision[..., frame])
        total = total + precision[..., frame]
    np.testing.assert_allclose(pool(torch.from_numpy(x)).detach(), mean, rtol=1e-12)


@pytest.mark.parametrize(("bias", "log_precision"), [(-1e4, -15.0), (1e4, 15.0)])
def test_xi_bounds_the_precision_of_a_frame(bias, log_precision):
    pool, prior_mean, prior_precision = xi_with_prior(bias)
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    pooled = pool(x)
    pooled.sum().backward()
    precision = np.exp(log_precision)
    total = prior_precision + 4 * precision
    expected = (prior_precision * prior_mean + precision * x.detach().numpy().sum(-1)) / total
    np.testing.assert_allclose(pooled.detach(), expected, rtol=1e-9)
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pool.parameters())


def test_queries_stand_side_by_side():
    pool = build("MQMHASTP", 16)
    assert isinstance(pool, MQMHASTP)
    x = torch.randn(2, 16, 9)
    first, second = pool.queries
    assert torch.equal(pool(x), torch.cat([first(x), second(x)], 1))
    assert not torch.allclose(first(x), second(x))


def test_published_layer_names_and_shapes():
    shapes = {
        key: tuple(value.shape) for key, value in build("ASTP", 1536, global_context_att=True).state_dict().items()
    }
    assert shapes == {
        "linear1.weight": (128, 4608, 1),
        "linear1.bias": (128,),
        "linear2.weight": (1536, 128, 1),
        "linear2.bias": (1536,),
    }


def test_heads_must_divide_the_rows():
    with pytest.raises(ConfigError, match="8, which does not divide the 12 rows"):
        MHASTP(12)
