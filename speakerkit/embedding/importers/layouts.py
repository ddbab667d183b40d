"""What the importers of checkpoints share: a model in our terms, tensors renamed by rules, sizes read off shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speakerkit.config import NamedConfig
from speakerkit.errors import BundleError
from speakerkit.features import FrontEnd

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
Rules = tuple[tuple[str, str], ...]

LINEAR = re.compile(r"(?:layer\d\.se_res2block\.3\.linear\d|linear)\.weight")  # published as convolutions of one tap


@dataclass(frozen=True)
class Translated:
    """A published model in our terms.

    Attributes:
        model: registered backbone and its arguments.
        frontend: what it hears.
        tensors: the backbone's, under its names.
        dropped: names of tensors that are no part of it.
        provenance: what its files say of its origin.
    """

    model: NamedConfig
    frontend: FrontEnd
    tensors: Tensors
    dropped: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


def renamed(tensors: Tensors, rules: Rules) -> dict[str, Tensor]:
    """Tensors under our names; a name that no rule knows stays, and is found to be unknown when it is loaded.

    ``layer(k)`` in a rule stands for the SE-Res2 block of their number k, the first of which has 1 there and 2 here.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, template in rules:
            match = re.fullmatch(pattern, name)
            if match:
                name = re.sub(r"layer\((\d)\)", _block_name, match.expand(template))
                break
        squeezed = LINEAR.fullmatch(name) and tensor.ndim == 3 and tensor.shape[-1] == 1
        ours[name] = tensor.squeeze(-1) if squeezed else tensor
    return ours


def _block_name(match: re.Match[str]) -> str:
    return f"layer{int(match[1]) + 1}.se_res2block"


def size_of(tensors: Tensors, name: str, axis: int, path: Path) -> int:
    """One of the sizes of a tensor.

    Raises:
        BundleError: it is not there, or has no such axis.
    """
    if name not in tensors or tensors[name].ndim <= axis or not tensors[name].numel():
        raise BundleError(path, f"lacks the tensor {name}", "check that the file is whole")
    return int(tensors[name].shape[axis])
