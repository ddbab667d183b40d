"""Speaker embeddings from self-supervised models: all layers weighted and summed, then a small speaker model on top.

The sum is that of SUPERB (Yang et al. 2021, 2105.01051). Features are samples: ``frontend.kind`` is "waveform".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speakerkit.embedding.ecapa_tdnn import ECAPA_TDNN
from speakerkit.embedding.registry import Backbone, register_backbone
from speakerkit.errors import ConfigError, MissingExtraError
from speakerkit.nn.ssl.encoder import SSLEncoder
from speakerkit.nn.ssl.layouts import load_published
from speakerkit.nn.ssl.tuning import added_parameters, merge_low_rank
from speakerkit.registry import Registry

if TYPE_CHECKING:
    from torchaudio.models import Wav2Vec2Model

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of every published feature extractor


class LayerSum(nn.Module):
    """States of all layers to their sum under learned weights, softmax(w); equal weights at the start."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))

    def forward(self, states: list[Tensor]) -> Tensor:
        """(B, T', D) each, to (B, T', D)."""
        shares = self.weights.softmax(0).unbind()
        return reduce(torch.add, (share * state for share, state in zip(shares, states, strict=True)))


class SSLHead(nn.Module):
    """From the states of all layers to an embedding.

    Args:
        dim: D of the states.
        num_states: layers and one.
        embed_dim: length of the embedding.
    """

    def __init__(self, dim: int, num_states: int, embed_dim: int) -> None:
        super().__init__()
        self.layers = LayerSum(num_states)

    def forward(self, states: list[Tensor]) -> Tensor:
        """(B, T', D) each, to (B, embed_dim)."""
        raise NotImplementedError


SSL_HEADS: Registry[Callable[..., SSLHead]] = Registry("head of an SSL model")


@SSL_HEADS.register("mean")
class MeanHead(SSLHead):
    """The mean over time, and a linear layer."""

    def __init__(self, dim: int, num_states: int, embed_dim: int) -> None:
        super().__init__(dim, num_states, embed_dim)
        self.linear = nn.Linear(dim, embed_dim)

    def forward(self, states: list[Tensor]) -> Tensor:
        return self.linear(self._pooled(self.layers(states)))

    def _pooled(self, frames: Tensor) -> Tensor:
        return frames.mean(1)


@SSL_HEADS.register("first")
class FirstHead(MeanHead):
    """The first frame, which attention can make a summary of all, and a linear layer."""

    def _pooled(self, frames: Tensor) -> Tensor:
        return frames[:, 0]


@SSL_HEADS.register("mhfa")
class MHFA(SSLHead):
    """Multi-head factorised attentive pooling (Peng et al. 2022, 2210.01273, section 3.2 and figure 1).

    Keys and values are two sums of the layers, each compressed; every head weighs the frames by one linear function of
    the keys, and all see the same values.

    Args:
        heads: H.
        compression: width of compressed keys and values.
    """

    def __init__(self, dim: int, num_states: int, embed_dim: int, heads: int = 64, compression: int = 128) -> None:
        super().__init__(dim, num_states, embed_dim)
        self.key_layers = LayerSum(num_states)
        self.key = nn.Linear(dim, compression)
        self.value = nn.Linear(dim, compression)
        self.attention = nn.Linear(compression, heads)
        self.linear = nn.Linear(heads * compression, embed_dim)

    def forward(self, states: list[Tensor]) -> Tensor:
        keys, values = (
            self.key(self.key_layers(states)),
            self.value(self.layers(states)),
        )  # (batch, frames, compression)
        alpha = self.attention(keys).softmax(dim=1)  # (batch, frames, heads)
        return self.linear((alpha.transpose(1, 2) @ values).flatten(1))


@SSL_HEADS.register("ecapa")
class EcapaHead(SSLHead):
    """An ECAPA-TDNN on the sum of the layers, its mean over time subtracted.

    Args:
        ecapa_args: further arguments of :class:`speakerkit.embedding.ecapa_tdnn.ECAPA_TDNN`.
    """

    def __init__(self, dim: int, num_states: int, embed_dim: int, **ecapa_args: Any) -> None:
        super().__init__(dim, num_states, embed_dim)
        self.ecapa = ECAPA_TDNN(feat_dim=dim, embed_dim=embed_dim, **ecapa_args)

    def forward(self, states: list[Tensor]) -> Tensor:
        frames = self.layers(states)
        return self.ecapa(frames - frames.mean(1, keepdim=True))


class SSLBackbone(Backbone):
    """A self-supervised model and a head.

    Args:
        build: torchaudio's model.
        feat_dim: 1, a sample.
        embed_dim: D.
        head: a name in ``SSL_HEADS``: "mhfa", "mean", "first" or "ecapa".
        head_args: further arguments of the head.
        frozen: do not train the self-supervised model: no gradients, evaluation mode in training too. Low-rank updates
            and adapters are trained nevertheless.
        layer_drop, lora_rank, lora_alpha, adapter_dim: see :class:`speakerkit.nn.ssl.encoder.SSLEncoder`.
    """

    hears = "waveform"

    def __init__(
        self,
        build: Callable[[], Wav2Vec2Model],
        feat_dim: int = 1,
        embed_dim: int = 256,
        head: str = "mhfa",
        head_args: dict[str, Any] | None = None,
        frozen: bool = False,
        layer_drop: float = 0.0,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        adapter_dim: int = 0,
    ) -> None:
        super().__init__()
        if feat_dim != 1:
            raise ConfigError("feat_dim", f"is {feat_dim}", "the model hears samples: set frontend.kind: waveform")
        self.feat_dim, self.embed_dim, self.frozen, self.lora_rank = feat_dim, embed_dim, frozen, lora_rank
        self.ssl = SSLEncoder(
            build(), layer_drop=layer_drop, lora_rank=lora_rank, lora_alpha=lora_alpha, adapter_dim=adapter_dim
        )
        self.min_frames = self.ssl.receptive_field + self.ssl.hop
        self.head = SSL_HEADS[head](self.ssl.dim, self.ssl.num_states, embed_dim, **(head_args or {}))
        if frozen:
            self.ssl.requires_grad_(False)
            for parameter in added_parameters(self.ssl):
                parameter.requires_grad_(True)
            self.ssl.eval()

    def train(self, mode: bool = True) -> SSLBackbone:
        """As any module; a frozen self-supervised model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.ssl.eval()
        return self

    def forward(self, feats: Tensor) -> Tensor:
        return self.head(self.ssl(feats.squeeze(2)))  # (batch, embed_dim)

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, samples, 1) to the sum of the layers (that of the values in "mhfa"), (B, T', D), a frame every 20 ms."""
        return self.head.layers(self.ssl(feats.squeeze(2)))

    def deployed(self) -> SSLBackbone:
        """A copy with the low-rank updates merged into the weights; its state dictionary fits ``lora_rank=0``."""
        plain = copy.deepcopy(self)
        merge_low_rank(plain)
        return plain

    def published(self) -> tuple[Backbone, dict[str, Any]]:
        """The deployed form, which a later training of all weights can start from."""
        return (self.deployed(), {"lora_rank": 0}) if self.lora_rank else (self, {})


def load_pretrained(backbone: Backbone, path: str | Path) -> list[str]:
    """Load published weights into the self-supervised part of a backbone; see :func:`load_published`.

    Raises:
        ConfigError: the backbone has no such part.
        BundleError: the file does not fit.
    """
    if not isinstance(backbone, SSLBackbone):
        fault = f"is set, and a {type(backbone).__name__} has no self-supervised part"
        raise ConfigError("pretrained", fault, "drop it, or start from a bundle with init")
    return load_published(backbone.ssl, path)


def _torchaudio(name: str, **sizes: Any) -> Wav2Vec2Model:
    """A model by the name of its builder in ``torchaudio.models``, which drops no layers by itself."""
    try:
        from torchaudio import models
    except (ImportError, OSError):
        raise MissingExtraError("self-supervised models", "train") from None
    return getattr(models, name)(**sizes, encoder_layer_drop=0.0)


def _sized(
    family: str,
    dim: int,
    layers: int,
    heads: int,
    ff_dim: int,
    conv_dim: int,
    conv_bias: bool,
    norm_first: bool,
    pos_kernel: int,
    pos_groups: int,
    dropout: float,
) -> Wav2Vec2Model:
    """A model of free size; ``norm_first`` is the large models' way with normalisation, also of the convolutions."""
    if family not in ("wav2vec2", "wavlm"):
        raise ConfigError("family", f"is {family!r}", "choose wav2vec2 (also for HuBERT) or wavlm")
    if layers < 1:
        raise ConfigError("layers", f"is {layers}", "a Transformer has one or more")
    wavlm = {"encoder_num_buckets": 320, "encoder_max_distance": 800} if family == "wavlm" else {}
    return _torchaudio(
        f"{family}_model",
        extractor_mode="layer_norm" if norm_first else "group_norm",
        extractor_conv_layer_config=[(conv_dim, *shape) for shape in zip(KERNELS, STRIDES, strict=True)],
        extractor_conv_bias=conv_bias,
        encoder_embed_dim=dim,
        encoder_projection_dropout=dropout,
        encoder_pos_conv_kernel=pos_kernel,
        encoder_pos_conv_groups=pos_groups,
        encoder_num_layers=layers,
        encoder_num_heads=heads,
        **wavlm,
        encoder_attention_dropout=dropout,
        encoder_ff_interm_features=ff_dim,
        encoder_ff_interm_dropout=dropout,
        encoder_dropout=dropout,
        encoder_layer_norm_first=norm_first,
        aux_num_out=None,
    )


@register_backbone("SSL")
def ssl(
    family: str = "wavlm",
    dim: int = 256,
    layers: int = 6,
    heads: int = 4,
    ff_dim: int = 1024,
    conv_dim: int = 256,
    conv_bias: bool = False,
    norm_first: bool = False,
    pos_kernel: int = 128,
    pos_groups: int = 16,
    dropout: float = 0.1,
    feat_dim: int = 1,
    embed_dim: int = 256,
    head: str = "mhfa",
    head_args: dict[str, Any] | None = None,
    frozen: bool = False,
    layer_drop: float = 0.0,
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
    adapter_dim: int = 0,
) -> SSLBackbone:
    """A model of free size, for weights of one's own.

    Args:
        family: "wav2vec2", whose layers HuBERT shares, or "wavlm".
        dim, layers, heads, ff_dim: of the Transformer.
        conv_dim, conv_bias: of the seven convolutions before it.
        norm_first: normalise before each layer and after each convolution, as the large models do.
        pos_kernel, pos_groups: of the convolution that gives positions.
        dropout: everywhere in training.
    """
    build = partial(
        _sized,
        family=family,
        dim=dim,
        layers=layers,
        heads=heads,
        ff_dim=ff_dim,
        conv_dim=conv_dim,
        conv_bias=conv_bias,
        norm_first=norm_first,
        pos_kernel=pos_kernel,
        pos_groups=pos_groups,
        dropout=dropout,
    )
    return SSLBackbone(
        build, feat_dim, embed_dim, head, head_args, frozen, layer_drop, lora_rank, lora_alpha, adapter_dim
    )


for _name, _builder in (
    ("WAV2VEC2_BASE", "wav2vec2_base"),
    ("WAV2VEC2_LARGE", "wav2vec2_large"),
    ("WAV2VEC2_LARGE_LV60K", "wav2vec2_large_lv60k"),
    ("HUBERT_BASE", "hubert_base"),
    ("HUBERT_LARGE", "hubert_large"),
    ("WAVLM_BASE", "wavlm_base"),
    ("WAVLM_LARGE", "wavlm_large"),
):
    register_backbone(_name)(partial(SSLBackbone, partial(_torchaudio, _builder)))
