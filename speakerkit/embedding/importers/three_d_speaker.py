"""3D-Speaker's checkpoints: CAM++, ERes2Net and ECAPA-TDNN."""

from __future__ import annotations

import re
from pathlib import Path

from speakerkit.config import NamedConfig
from speakerkit.embedding.importers.layouts import Tensors, Translated, size_of
from speakerkit.embedding.importers.speechbrain import ECAPA_MARK, ecapa_config, ecapa_tensors
from speakerkit.errors import BundleError
from speakerkit.features import FrontEnd

CAMPPLUS_MARK = "xvector.tdnn.linear.weight"  # a tensor that this architecture has and no other
ERES2NET_MARK = "layer1_downsample.weight"


def from_3d_speaker(tensors: Tensors, path: Path, num_mels: int | None) -> Translated:
    """CAM++, ERes2Net or ECAPA-TDNN of 3D-Speaker; all hear povey-windowed samples in [-1, 1]."""
    if CAMPPLUS_MARK in tensors:
        model, mels = _campplus(tensors, path)
    elif ERES2NET_MARK in tensors:
        model, mels = _eres2net(tensors, path)
        tensors = {_eres2net_name(name): tensor for name, tensor in tensors.items()}
    elif ECAPA_MARK in tensors:
        model, mels = ecapa_config(tensors, path)
        tensors = ecapa_tensors(tensors)
    else:
        raise BundleError(path, "is no CAM++, ERes2Net or ECAPA-TDNN of 3D-Speaker", "check --kind")
    frontend = FrontEnd(num_mels=num_mels or mels, window="povey", scale="unit")
    return Translated(model, frontend, tensors, provenance={"toolkit": "3D-Speaker"})


def _campplus(tensors: Tensors, path: Path) -> tuple[NamedConfig, int]:
    growth = size_of(tensors, "xvector.block1.tdnnd1.cam_layer.linear_local.weight", 0, path)
    args = {
        "embed_dim": size_of(tensors, "xvector.dense.linear.weight", 0, path),
        "growth_rate": growth,
        "bn_size": size_of(tensors, "xvector.block1.tdnnd1.linear1.weight", 0, path) // growth,
        "init_channels": size_of(tensors, CAMPPLUS_MARK, 0, path),
    }
    rows = size_of(tensors, CAMPPLUS_MARK, 1, path) // size_of(tensors, "head.conv2.weight", 0, path)
    return NamedConfig("CAMPPlus", args), 8 * rows


def _eres2net(tensors: Tensors, path: Path) -> tuple[NamedConfig, int]:
    channels = size_of(tensors, "conv1.weight", 0, path)
    name = {32: "ERes2Net34_Base", 64: "ERes2Net34_Large"}.get(channels)
    if "layer1.0.convs.2.weight" in tensors:
        name = "ERes2Net34_aug"
    if name is None:
        raise BundleError(path, f"is an ERes2Net of {channels} channels", "those of 32 and 64 are known")
    args = {"embed_dim": size_of(tensors, "seg_1.weight", 0, path), "two_emb_layer": "seg_2.weight" in tensors}
    maps = size_of(tensors, "layer4.0.conv3.weight", 0, path)
    return NamedConfig(name, args), 8 * (size_of(tensors, "seg_1.weight", 1, path) // (2 * maps))


def _eres2net_name(name: str) -> str:
    """Our name of a tensor: the first convolution of a fused block (layers 3 and 4) stands outside the list of them."""
    match = re.fullmatch(r"(layer[34]\.\d+)\.(conv|bn)s\.(\d+)\.(\w+)", name)
    if not match:
        return name
    block, kind, number, rest = match.groups()
    return f"{block}.{kind}2_1.{rest}" if number == "0" else f"{block}.{kind}s.{int(number) - 1}.{rest}"
