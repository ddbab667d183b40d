"""TaoRuijie's ECAPA-TDNN: the whole of a training model, encoder, classifier and front-end in one file."""

from __future__ import annotations

from pathlib import Path

from speakerkit.config import NamedConfig
from speakerkit.embedding.importers.layouts import Rules, Tensors, Translated, renamed, size_of
from speakerkit.errors import BundleError
from speakerkit.features import FrontEnd, mel_filters, window_function

PREFIX = "speaker_encoder."
TAORUIJIE_MARK = f"{PREFIX}conv1.weight"  # a tensor that this checkpoint has and no other
NAMES: Rules = (
    (r"conv1\.(\w+)", r"layer1.conv.\1"),
    (r"bn1\.(\w+)", r"layer1.bn.\1"),
    (r"layer([123])\.conv1\.(\w+)", r"layer(\1).0.conv.\2"),
    (r"layer([123])\.bn1\.(\w+)", r"layer(\1).0.bn.\2"),
    (r"layer([123])\.(convs|bns)\.(\d)\.(\w+)", r"layer(\1).1.\2.\3.\4"),
    (r"layer([123])\.conv3\.(\w+)", r"layer(\1).2.conv.\2"),
    (r"layer([123])\.bn3\.(\w+)", r"layer(\1).2.bn.\2"),
    (r"layer([123])\.se\.se\.1\.(\w+)", r"layer(\1).3.linear1.\2"),
    (r"layer([123])\.se\.se\.3\.(\w+)", r"layer(\1).3.linear2.\2"),
    (r"layer4\.(\w+)", r"conv.\1"),
    (r"attention\.0\.(\w+)", r"pool.linear1.\1"),
    (r"attention\.2\.(\w+)", r"pool.bn.\1"),
    (r"attention\.4\.(\w+)", r"pool.linear2.\1"),
    (r"bn5\.(\w+)", r"bn.\1"),
    (r"fc6\.(\w+)", r"linear.\1"),
    (r"bn6\.(\w+)", r"bn2.\1"),
)


def from_taoruijie(tensors: Tensors, path: Path, num_mels: int | None) -> Translated:
    """TaoRuijie's ECAPA-TDNN; the classifier and the stored front-end are no part of the backbone.

    Raises:
        BundleError: the front-end that the checkpoint stores is another than that of the published training.
    """
    if TAORUIJIE_MARK not in tensors:
        raise BundleError(path, "is no ECAPA-TDNN of TaoRuijie", "check --kind")
    encoder = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    stored = {name: tensor for name, tensor in encoder.items() if name.startswith("torchfbank.")}
    kept = {name: tensor for name, tensor in encoder.items() if name not in stored}
    args = {
        "channels": size_of(kept, "conv1.weight", 0, path),
        "embed_dim": size_of(kept, "fc6.weight", 0, path),
        "joined": size_of(kept, "layer4.weight", 0, path),
        "attention": size_of(kept, "attention.0.weight", 0, path),
    }
    mels = num_mels or size_of(kept, "conv1.weight", 1, path)
    frontend = FrontEnd(filterbank="torchaudio", num_mels=mels, high_freq=7600.0, scale="unit")
    _require_stored_frontend(stored, frontend, path)
    dropped = tuple(name for name in tensors if name.removeprefix(PREFIX) not in kept or not name.startswith(PREFIX))
    model = NamedConfig("ECAPA_TDNN_TaoRuijie", args)
    return Translated(model, frontend, renamed(kept, NAMES), dropped, {"toolkit": "TaoRuijie/ECAPA-TDNN"})


def _require_stored_frontend(stored: Tensors, frontend: FrontEnd, path: Path) -> None:
    import torch

    ours = {
        "torchfbank.0.flipped_filter": torch.tensor([[[-frontend.preemphasis, 1.0]]]),
        "torchfbank.1.spectrogram.window": torch.from_numpy(window_function(frontend)).float(),
        "torchfbank.1.mel_scale.fb": torch.from_numpy(mel_filters(frontend)).float(),
    }
    for name, tensor in stored.items():
        expected = ours.get(name, torch.empty(0))
        if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, atol=1e-3):
            raise BundleError(path, f"was trained on another front-end ({name})", "only the published one is read")
