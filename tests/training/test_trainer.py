"""The loop with a task that knows nothing of speech: exact resumption, NaN guard, what is kept and refused."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from speakerkit.errors import ConfigError, TrainingError
from speakerkit.training.checkpoint import checkpoint_path, list_checkpoints, load_checkpoint, save_checkpoint
from speakerkit.training.config import OptimConfig
from speakerkit.training.distributed import World
from tests.training.states import identical, last_state, log_of
from tests.training.toy import ToyTask, toy_trainer


def test_same_seed_same_weights_and_it_learns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        toy_trainer(tmp_path / name, valid_every=6).fit()
    assert identical(last_state(tmp_path / "a"), last_state(tmp_path / "b"))
    losses = [float(value) for value in re.findall(r"valid_loss (\S+)", log_of(tmp_path / "a"))]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("stop", [1, 7, 11])
def test_stop_and_resume_is_bit_identical(tmp_path: Path, stop: int, accumulate: int) -> None:
    whole = ToyTask()
    toy_trainer(tmp_path / "whole", whole, accumulate=accumulate, valid_every=4).fit()
    drawn = []
    for stop_after in (stop, None):
        task = ToyTask()
        trainer = toy_trainer(tmp_path / "parts", task, accumulate=accumulate, valid_every=4)
        trainer.resume()
        result = trainer.fit(stop_after)
        drawn += task.drawn
    assert result.step == 12
    assert drawn == whole.drawn
    assert identical(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))  # optimiser, best, metrics as well
    names = [[path.name for path in list_checkpoints(tmp_path / run / "checkpoints")] for run in ("whole", "parts")]
    assert names[0] == names[1]  # the same ones to average, wherever it was stopped


def test_accumulation_is_the_larger_batch(tmp_path: Path) -> None:
    def gradients(batch_size: int, accumulate: int) -> list[torch.Tensor]:
        task = ToyTask(batch_size, norm=False)
        task.loss = lambda model, batch: ((model(batch["inputs"]) - batch["labels"]).square().mean(), {})  # type: ignore[method-assign]
        trainer = toy_trainer(tmp_path / f"{accumulate}", task, accumulate=accumulate, steps=1)
        trainer.fit()
        return [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]

    for one, other in zip(gradients(12, 1), gradients(4, 3), strict=True):
        torch.testing.assert_close(one, other)


def test_a_nan_batch_is_skipped_and_named_and_leaves_no_trace(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, ToyTask(poison=(3 * 8 + 2,)))
    before: dict[str, torch.Tensor] = {}
    step = trainer._train_step

    def watched(model: Any, drawn: Any) -> Any:
        if trainer.step == 3:
            before.update({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        result = step(model, drawn)
        if trainer.step == 3:
            assert result[0] is None
            assert identical(before, dict(trainer.model.state_dict()))  # batch-norm statistics too
        return result

    trainer._train_step = watched  # type: ignore[method-assign]
    trainer.fit()
    assert before
    assert trainer.skipped == 1
    line = next(line for line in log_of(tmp_path).splitlines() if "not finite" in line)
    assert "step 3" in line
    assert "utt26" in line
    assert last_state(tmp_path)["skipped"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in last_state(tmp_path)["model"].values())


def test_nan_steps_in_a_row_stop_the_run_and_keep_the_last_finite_checkpoint(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, ToyTask(poison=tuple(range(40, 4000))), max_bad_steps=3, save_every=5)
    with pytest.raises(TrainingError, match=r"3 steps in a row.*last finite checkpoint is .*step_00000005"):
        trainer.fit()
    assert trainer.step == 7
    assert all(torch.isfinite(tensor).all() for tensor in last_state(tmp_path)["model"].values())


def test_a_run_of_nothing_else_is_no_success(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, ToyTask(poison=tuple(range(4000))), max_bad_steps=100)
    with pytest.raises(TrainingError, match=r"12 steps in a row.*no checkpoint was due"):
        trainer.fit()


def test_single_nan_steps_never_stop_it(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, ToyTask(poison=tuple(range(0, 96, 16))), max_bad_steps=2)
    assert trainer.fit().step == 12
    assert trainer.skipped == 6


def test_last_two_best_and_those_to_average_are_kept(tmp_path: Path) -> None:
    toy_trainer(tmp_path / "two", save_every=2, valid_every=4).fit()
    folder = tmp_path / "two" / "checkpoints"
    assert list_checkpoints(folder) == [checkpoint_path(folder, 10), checkpoint_path(folder, 12)]
    assert load_checkpoint(folder / "best.pt")["step"] in (4, 8, 12)
    assert load_checkpoint(folder / "best.pt")["metrics"]["valid_loss"] == last_state(tmp_path / "two")["best"]
    toy_trainer(tmp_path / "four", save_every=2, average=4).fit()
    folder = tmp_path / "four" / "checkpoints"
    assert [load_checkpoint(path)["step"] for path in list_checkpoints(folder)] == [6, 8, 10, 12]


def test_a_complete_run_says_so_and_changes_nothing(tmp_path: Path) -> None:
    toy_trainer(tmp_path).fit()
    content = list_checkpoints(tmp_path / "checkpoints")[-1].read_bytes()
    trainer = toy_trainer(tmp_path)
    trainer.resume()
    assert trainer.fit().step == 12
    assert "training is complete" in log_of(tmp_path)
    assert list_checkpoints(tmp_path / "checkpoints")[-1].read_bytes() == content


def test_resuming_refuses_what_does_not_belong(tmp_path: Path) -> None:
    toy_trainer(tmp_path / "a", save_every=6).fit()
    newest = list_checkpoints(tmp_path / "a" / "checkpoints")[-1]
    with pytest.raises(TrainingError, match="holds checkpoints of an earlier run"):
        toy_trainer(tmp_path / "a").resume("none")
    task = ToyTask()
    task.speakers = "abd"
    with pytest.raises(TrainingError, match="another speaker list"):
        toy_trainer(tmp_path / "a", task).resume()
    with pytest.raises(TrainingError, match=r"another optim \({'name': 'sgd'} there, {'name': 'adam'} here\)"):
        toy_trainer(tmp_path / "a", optim=OptimConfig("adam", lr=0.02)).resume()
    part = {"fingerprint": last_state(tmp_path / "a")["fingerprint"], "model": {"0.weight": torch.zeros(4, 5)}}
    save_checkpoint(tmp_path / "part.pt", part)
    with pytest.raises(TrainingError, match="does not fit this run"):
        toy_trainer(tmp_path / "a").resume(str(tmp_path / "part.pt"))
    with pytest.raises(TrainingError, match="is older than"):
        toy_trainer(tmp_path / "a").resume(str(checkpoint_path(newest.parent, 6)))
    save_checkpoint(tmp_path / "other.pt", {"model": {}})
    with pytest.raises(TrainingError, match="no checkpoint to go on from"):
        toy_trainer(tmp_path / "a").resume(str(tmp_path / "other.pt"))
    trainer = toy_trainer(tmp_path / "b")
    trainer.resume(str(newest))
    assert trainer.step == 12


@pytest.mark.parametrize(
    "changed", [{"steps": 13}, {"precision": "bf16"}, {"accumulate": 2}, {"grad_clip": 1.0}], ids=str
)
def test_resuming_refuses_another_training(tmp_path: Path, changed: dict[str, Any]) -> None:
    toy_trainer(tmp_path).fit(stop_after=2)
    with pytest.raises(TrainingError, match=f"another trainer .*{next(iter(changed))}"):
        toy_trainer(tmp_path, **changed).resume()


def test_what_does_not_shape_the_weights_may_change(tmp_path: Path) -> None:
    toy_trainer(tmp_path).fit(stop_after=2)
    free = {"valid_every": 5, "save_every": 3, "log_every": 2, "keep_last": 5, "average": 3, "max_bad_steps": 2}
    trainer = toy_trainer(tmp_path, **free, best_metric="other", threads=1)
    trainer.resume()
    assert trainer.step == 2


def test_norms_and_biases_are_decayed_only_where_asked(tmp_path: Path) -> None:
    for decay, shares in ((True, [(6, 0.1)]), (False, [(2, 0.1), (4, 0.0)])):
        trainer = toy_trainer(tmp_path, optim=OptimConfig(weight_decay=0.1, decay_norms=decay))
        groups = trainer.optimizer.param_groups
        assert [(len(group["params"]), group["weight_decay"]) for group in groups] == shares
        if not decay:
            assert all(parameter.ndim > 1 for parameter in groups[0]["params"])
            assert all(parameter.ndim == 1 for parameter in groups[1]["params"])


def test_ranks_draw_their_own_chance_and_share_where_they_must(tmp_path: Path) -> None:
    def seeds(rank: int, shared: bool) -> list[int]:
        trainer = toy_trainer(tmp_path, world=World(rank, 2, torch.device("cpu")))
        found = []
        for step in range(2):
            trainer._seed_step(step, shared)
            found.append(torch.initial_seed())
        return found

    assert len({*seeds(0, False), *seeds(1, False)}) == 4
    assert seeds(0, True) == seeds(1, True)


def test_waiting_for_data_is_logged_and_warned_about(tmp_path: Path) -> None:
    class Slow(ToyTask):
        def train_batches(self, rank: int, world: int) -> Iterator[dict[str, Any]]:
            for batch in super().train_batches(rank, world):
                time.sleep(0.02)
                yield batch

    toy_trainer(tmp_path, Slow(), log_every=3).fit()
    shares = [float(value) for value in re.findall(r"waiting (\d\S*)", log_of(tmp_path))]
    assert len(shares) == 4
    assert max(shares) > 0.5
    assert "spent waiting for data" in log_of(tmp_path)


def test_scale_rule_is_applied_and_printed(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, optim=OptimConfig(lr=0.02, reference_batch=4), accumulate=2)
    assert trainer.peak_lr == pytest.approx(0.02 * 8 * 2 / 4)
    trainer.fit()
    assert "scale rule: x 4" in log_of(tmp_path)


def test_bf16_trains_on_the_cpu(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, precision="bf16", steps=30, valid_every=5)
    trainer.fit()
    losses = [float(value) for value in re.findall(r"valid_loss (\S+)", log_of(tmp_path))]
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    with pytest.raises(ConfigError, match="fp16 needs CUDA"):
        toy_trainer(tmp_path / "half", precision="fp16")
