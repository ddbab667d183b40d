"""The attention of the published ECAPA-TDNNs, written out literally."""

from __future__ import annotations

import pytest
import torch

from speakerkit.embedding.ecapa_zoo import NormalisedASTP


@pytest.mark.parametrize(("floor", "unbiased"), [(1e-12, False), (1e-4, True)], ids=["SpeechBrain", "TaoRuijie"])
def test_pooling_over_global_context(floor: float, unbiased: bool) -> None:
    torch.manual_seed(0)
    pool = NormalisedASTP(5, 7, floor, unbiased).double().eval()
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.normal_(pool.bn.running_mean)
    torch.nn.init.uniform_(pool.bn.running_var, 0.5, 2.0)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    x[0, 3] = 2.0  # a row without variance

    var = x.var(-1, keepdim=True, unbiased=unbiased).clamp(min=floor)
    context = torch.cat((x, x.mean(-1, keepdim=True).expand_as(x), var.sqrt().expand_as(x)), dim=1)
    alpha = pool.linear2(pool.bn(pool.linear1(context).relu()).tanh()).softmax(-1)
    mean = (alpha * x).sum(-1)
    std = ((alpha * x.square()).sum(-1) - mean.square()).clamp(min=floor).sqrt()

    pooled = pool(x)
    torch.testing.assert_close(pooled[:, :5], mean)
    torch.testing.assert_close(pooled[:, 5:], std, atol=1e-6, rtol=1e-6)
    assert pool(x[..., :1]).isfinite().all()
