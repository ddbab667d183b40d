"""Shares of a head in one process: which classes they hold, what they begin with, and what cannot be split.

Two of them at work are in ``tests/training/test_sharded_training.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from speakerkit.config import NamedConfig
from speakerkit.embedding.joint import build_head
from speakerkit.embedding.sharded import BLOCK, SHARDED, build_sharded_head
from speakerkit.errors import ConfigError
from speakerkit.nn.sharding import Share, sharded_modules, whole_shapes

TOPK = "arc_margin_intertopk_subcenter"
DIM = 4


@pytest.mark.parametrize(("total", "size"), [(7, 2), (9, 8), (8, 8), (200_000, 8), (200_001, 8), (5, 1)])
def test_every_class_is_held_once_and_no_rank_holds_more_than_its_part(total: int, size: int) -> None:
    shares = [Share(total, rank, size) for rank in range(size)]
    held = [number for share in shares for number in range(share.first, share.last)]
    assert held == list(range(total))
    assert max(share.count for share in shares) == -(-total // size)
    assert min(share.count for share in shares) == total // size
    assert shares[0].of_rank(size - 1) == shares[-1]


@pytest.mark.parametrize(("name", "args"), [("softmax", {}), ("arc_margin", {}), (TOPK, {"K": 3})])
@pytest.mark.parametrize("total", [11, 2 * BLOCK + 3])
def test_shares_begin_as_the_whole_head_does(name: str, args: dict[str, Any], total: int) -> None:
    torch.manual_seed(1)
    whole = build_head(NamedConfig(name, args), DIM, total).state_dict()
    following = torch.rand(5)
    parts = []
    for rank in range(3):
        torch.manual_seed(1)
        parts.append(SHARDED[name](DIM, Share(total, rank, 3), **args).state_dict())
        assert torch.equal(torch.rand(5), following)
    assert all(torch.equal(torch.cat([part[key] for part in parts]), whole[key]) for key in whole)


def test_a_share_takes_its_rows_of_a_whole_state() -> None:
    head = SHARDED[TOPK](DIM, Share(7, 1, 2), K=2)
    whole = torch.randn(14, DIM)
    head.load_state_dict({"weight": whole})
    assert torch.equal(head.weight, whole[8:])
    head.load_state_dict(head.state_dict())
    assert torch.equal(head.weight, whole[8:])
    with pytest.raises(RuntimeError, match="size mismatch"):
        head.load_state_dict({"weight": torch.randn(16, DIM)})
    with pytest.raises(ValueError, match="does not hold 7 classes"):
        head.own(torch.randn(16, DIM))
    model = torch.nn.ModuleDict({"head": head, "other": torch.nn.Linear(2, 3)})
    assert sharded_modules(model) == {"head.weight": head}
    assert whole_shapes(model) == {"head.weight": (14, DIM), "other.weight": (3, 2), "other.bias": (3,)}


@pytest.mark.parametrize("name", SHARDED)
def test_the_only_share_is_the_whole_head(name: str) -> None:
    torch.manual_seed(2)
    whole = build_head(NamedConfig(name), DIM, 7)
    share = SHARDED[name](DIM, Share(7))
    share.load_state_dict(whole.state_dict())
    embedding, label = torch.randn(9, DIM), torch.randint(0, 7, (9,))
    for training in (True, False):
        (loss, scores), (expected, theirs) = (
            head.train(training).loss_and_scores(embedding, label) for head in (share, whole)
        )
        assert scores is not None
        assert theirs is not None
        torch.testing.assert_close(loss, expected)
        assert torch.equal(scores, theirs)
        assert torch.equal(share.correct(scores, label), whole.correct(theirs, label))
    assert not sharded_modules(share)


def test_one_rank_has_the_plain_head() -> None:
    assert type(build_sharded_head(NamedConfig("arc_margin"), DIM, 7)) is type(
        build_head(NamedConfig("arc_margin"), DIM, 7)
    )


@pytest.mark.parametrize("name", ["sphereface2", "joint", "triplet", "angular_prototypical", "centre"])
def test_heads_that_cannot_be_split_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^head_shards: {name} cannot be split.*arc_margin"):
        build_sharded_head(NamedConfig(name), DIM, 7)


def test_wrong_settings_are_refused_on_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    monkeypatch.setattr(dist, "get_rank", lambda: 7)
    assert len(build_sharded_head(NamedConfig("arc_margin"), DIM, 9).weight) == 1
    with pytest.raises(ConfigError, match="7 classes leave one of 8 ranks none"):
        build_sharded_head(NamedConfig("arc_margin"), DIM, 7)
    with pytest.raises(ConfigError, match="arc_margin has no argument 'scales'"):
        build_sharded_head(NamedConfig("arc_margin", {"scales": 30}), DIM, 9)
    with pytest.raises(ConfigError, match="arc_margine"):
        build_sharded_head(NamedConfig("arc_margine"), DIM, 9)
