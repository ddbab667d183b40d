"""Training a model of which each rank holds a share: one gradient norm, and checkpoints of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from speakerkit.nn.sharding import Sharded, Share, sharded_modules
from speakerkit.training.distributed import World


class Shards:
    """The parameters of a model that are split over the ranks (:class:`speakerkit.nn.sharding.Sharded`), if any.

    Whole tensors stand on the main rank's CPU. What gathers them has to be called on all ranks.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
        self._modules = sharded_modules(model)
        self._parameters = {name: model.get_parameter(name) for name in self._modules}
        self._world = world
        listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = {parameter: name for name, parameter in self._parameters.items()}
        self._places = {index: names[parameter] for index, parameter in enumerate(listed) if parameter in names}

    def __len__(self) -> int:
        return len(self._parameters)

    def described(self) -> list[str]:
        """One line for each parameter."""
        return [
            f"{name}: {len(self._parameters[name])} of {module.whole_shape(self._parameters[name])[0]} rows here, "
            f"split over {module.share.size} ranks"
            for name, module in self._modules.items()
        ]

    def clip_gradients(self, model: nn.Module, largest: float) -> Tensor:
        """As ``clip_grad_norm_``, by the norm of the gradients of all ranks: replicated ones count once."""
        if not self:
            return nn.utils.clip_grad_norm_(model.parameters(), largest)
        own = set(self._parameters.values())
        split = [p.grad for p in self._parameters.values() if p.grad is not None]
        replicated = [p.grad for p in model.parameters() if p.grad is not None and p not in own]
        squares = nn.utils.get_total_norm(split).double().square().to(self._world.device)
        dist.all_reduce(squares)
        norm = (squares + nn.utils.get_total_norm(replicated).double().square().to(squares.device)).sqrt().float()
        nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
        return norm

    def data_parallel(self, model: nn.Module, devices: list[torch.device] | None) -> nn.Module:
        """``model`` with the gradients of all but the split parameters averaged over the ranks."""
        split = set(self._parameters.values())
        if self:
            if not any(p.requires_grad for p in model.parameters() if p not in split):
                return model  # nothing to average, which DistributedDataParallel refuses
            ignored = [name for name, parameter in model.named_parameters() if parameter in split]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        return DistributedDataParallel(model, device_ids=devices)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dictionary of the model with the rows of all ranks; on ranks other than the main one it has gaps."""
        return {
            name: self._gathered(tensor, self._modules[name]) if name in self._modules else tensor
            for name, tensor in tensors.items()
        }

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A whole state dictionary with this rank's rows."""
        return {
            name: self._modules[name].own(tensor) if name in self._modules else tensor
            for name, tensor in tensors.items()
        }

    def whole_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        """As :meth:`whole`, of an optimiser's state dictionary."""
        return self._changed(state, self._gathered, lambda name: self._parameters[name].shape)

    def own_optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        """As :meth:`own`, of an optimiser's state dictionary."""
        return self._changed(
            state,
            lambda tensor, module: module.own(tensor),
            lambda name: self._modules[name].whole_shape(self._parameters[name]),
        )

    @contextmanager
    def assembled(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """On the main rank: the split modules as whole ones on the CPU, which need no other rank.

        Args:
            tensors: what :meth:`whole` gave.
        """
        shares = {module: module.share for module in self._modules.values()}
        for name, module in self._modules.items():
            setattr(module, _last(name), nn.Parameter(tensors[name], requires_grad=False))
            module.share = Share(module.share.total)
        try:
            yield
        finally:
            for name, module in self._modules.items():
                setattr(module, _last(name), self._parameters[name])
                module.share = shares[module]

    def _changed(
        self,
        state: dict[str, Any],
        change: Callable[[Tensor, Sharded], Tensor],
        shape: Callable[[str], torch.Size],
    ) -> dict[str, Any]:
        """An optimiser's state with those tensors changed that go row by row with a split parameter."""
        changed = dict(state["state"])
        for index, name in self._places.items():
            kept = changed.get(index, {})
            changed[index] = {
                key: change(value, self._modules[name])
                if isinstance(value, Tensor) and value.shape == shape(name)
                else value
                for key, value in kept.items()
            }
        return {**state, "state": changed}

    def _gathered(self, tensor: Tensor, module: Sharded) -> Tensor:
        """The rows of all ranks; on others than the main one, which send theirs, nothing."""
        rows = tensor.detach().cpu().contiguous()
        if not self._world.is_main:
            dist.send(rows, dst=0)
            return rows.new_empty(0)
        share, shape = module.share, module.whole_shape(tensor)
        whole = rows.new_empty(shape)
        module.own(whole).copy_(rows)
        for rank in range(1, share.size):
            dist.recv(whole[share.of_rank(rank).rows(shape[0] // share.total)], src=rank)
        return whole


def _last(name: str) -> str:
    return name.rpartition(".")[2]
