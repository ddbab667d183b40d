"""Published layouts, their tensors from a formula, imported and compared with what their own code makes of them.

The golden embeddings are of SpeechBrain 1.1.2 (its Fbank, sentence norm and ECAPA_TDNN), of modelscope 1.40.2 (3D-Speaker's
models on torchaudio's Kaldi filterbank), and of a module typed after TaoRuijie's ``model.py``, each given the tensors of
:func:`formula` and ``speech_like(1.3, seed=5)``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speakerkit.bundle import read_bundle
from speakerkit.embedding.importers import Imported, Wishes, import_model
from speakerkit.errors import BundleError, ConfigError
from speakerkit.features import FrontEnd, features
from tests.command import speakerkit
from tests.conftest import speech_like
from tests.graphs import write_mean_graph
from tests.hostile.inputs import trap_pickle

torch = pytest.importorskip("torch")

from speakerkit.embedding.embedder import load  # noqa: E402
from speakerkit.embedding.ecapa_zoo import ReflectConv1d  # noqa: E402
from speakerkit.embedding.registry import build_backbone  # noqa: E402

Tensors = dict[str, "torch.Tensor"]
Shapes = dict[str, tuple[int, ...]]
HYPERPARAMS = """
n_mels: 80
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [16, 16, 16, 16, 24]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: 6
modules:
    compute_features: !ref <compute_features>
"""


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor from its name and shape: waves, scaled to keep activations near one."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    count = int(np.prod(shape))
    wave = np.sin(1.7 * np.arange(1, count + 1) + zlib.crc32(name.encode()) % 1000).reshape(shape)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        wave = 1 + 0.5 * wave
    elif len(shape) > 1:
        wave = wave * (2 / wave[0].size) ** 0.5
    else:
        wave = 0.1 * wave
    return torch.from_numpy(wave).float()


def filled(shapes: Shapes) -> Tensors:
    return {name: formula(name, shape) for name, shape in shapes.items()}


def convolution(name: str, out_channels: int, in_channels: int, kernel: int = 1) -> Shapes:
    return {f"{name}.weight": (out_channels, in_channels, kernel), f"{name}.bias": (out_channels,)}


def norm(name: str, channels: int) -> Shapes:
    entries = {f"{name}.{entry}": (channels,) for entry in ("weight", "bias", "running_mean", "running_var")}
    return {**entries, f"{name}.num_batches_tracked": ()}


def speechbrain_ecapa() -> Shapes:
    """C = 16, 24 joined channels, 8 in the attention, D = 6, names and shapes as SpeechBrain saves them."""

    def block(name: str, out_channels: int, in_channels: int, kernel: int = 1) -> Shapes:
        return {
            **convolution(f"{name}.conv.conv", out_channels, in_channels, kernel),
            **norm(f"{name}.norm.norm", out_channels),
        }

    shapes = block("blocks.0", 16, 80, 5)
    for number in (1, 2, 3):
        here = f"blocks.{number}"
        shapes |= block(f"{here}.tdnn1", 16, 16) | block(f"{here}.tdnn2", 16, 16)
        for split in range(7):
            shapes |= block(f"{here}.res2net_block.blocks.{split}", 2, 2, 3)
        shapes |= convolution(f"{here}.se_block.conv1.conv", 128, 16)
        shapes |= convolution(f"{here}.se_block.conv2.conv", 16, 128)
    shapes |= block("mfa", 24, 48) | block("asp.tdnn", 8, 72) | convolution("asp.conv.conv", 24, 8)
    return shapes | norm("asp_bn.norm", 48) | convolution("fc.conv", 6, 48)


def taoruijie_ecapa() -> Shapes:
    """C = 16, 24 joined channels, 8 in the attention, D = 6, with the classifier; without the stored front-end."""
    encoder = convolution("conv1", 16, 80, 5) | norm("bn1", 16)
    for number in (1, 2, 3):
        here = f"layer{number}"
        encoder |= convolution(f"{here}.conv1", 16, 16) | norm(f"{here}.bn1", 16)
        for split in range(7):
            encoder |= convolution(f"{here}.convs.{split}", 2, 2, 3) | norm(f"{here}.bns.{split}", 2)
        encoder |= convolution(f"{here}.conv3", 16, 16) | norm(f"{here}.bn3", 16)
        encoder |= convolution(f"{here}.se.se.1", 128, 16) | convolution(f"{here}.se.se.3", 16, 128)
    encoder |= convolution("layer4", 24, 48) | convolution("attention.0", 8, 72) | norm("attention.2", 8)
    encoder |= convolution("attention.4", 24, 8) | norm("bn5", 48) | norm("bn6", 6)
    encoder |= {"fc6.weight": (6, 48), "fc6.bias": (6,)}
    return {**{f"speaker_encoder.{name}": shape for name, shape in encoder.items()}, "speaker_loss.weight": (9, 6)}


def stored_frontend() -> Tensors:
    import torchaudio

    mels = torchaudio.transforms.MelSpectrogram(
        sample_rate=16000, n_fft=512, win_length=400, hop_length=160, f_min=20, f_max=7600, n_mels=80,
        window_fn=torch.hamming_window,
    )  # fmt: skip
    state = {f"speaker_encoder.torchfbank.1.{name}": tensor for name, tensor in mels.state_dict().items()}
    return {"speaker_encoder.torchfbank.0.flipped_filter": torch.tensor([[[-0.97, 1.0]]]), **state}


def ours(name: str, **args: Any) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build_backbone(name, **args).state_dict().items()}


def campplus() -> Shapes:
    """The layout is ours too; D = 6, growth of 4."""
    return ours("CAMPPlus", embed_dim=6, growth_rate=4, init_channels=16)


def eres2net() -> Shapes:
    """The first convolution of a fused block is one of the list."""

    def theirs(name: str) -> str:
        name = re.sub(r"\.(conv|bn)s\.(\d)(?=\.)", lambda m: f".{m[1]}s.{int(m[2]) + 1}" if "layer3" in name or "layer4" in name else m[0], name)
        return re.sub(r"\.(conv|bn)2_1\.", r".\1s.0.", name)

    return {theirs(name): shape for name, shape in ours("ERes2Net34_Base", embed_dim=6).items()}


GOLDEN: dict[str, list[float]] = {}


def place_speechbrain(path: Path, state: Tensors) -> Path:
    (path / "hyperparams.yaml").write_text(HYPERPARAMS)
    torch.save({"weights": torch.zeros(2)}, path / "classifier.ckpt")
    torch.save(state, path / "embedding_model.ckpt")
    return path


def place(name: str) -> Callable[[Path, Tensors], Path]:
    def write(path: Path, state: Tensors) -> Path:
        torch.save(state, path / name)
        return path / name

    return write


LAYOUTS: dict[str, tuple[Callable[[], Shapes], Callable[[Path, Tensors], Path], str]] = {
    "speechbrain": (speechbrain_ecapa, place_speechbrain, "ECAPA_TDNN_SpeechBrain"),
    "taoruijie": (taoruijie_ecapa, place("pretrain.model"), "ECAPA_TDNN_TaoRuijie"),
    "3dspeaker": (campplus, place("campplus_cn_common.bin"), "CAMPPlus"),
}
