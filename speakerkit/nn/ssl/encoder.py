"""wav2vec 2.0, HuBERT and WavLM as torchaudio defines them, heard layer by layer.

Baevski et al. 2020 (2006.11477), Hsu et al. 2021 (2106.07447), Chen et al. 2022 (2110.13900).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.errors import ConfigError
from speakerkit.nn.ssl.tuning import Adapter, add_low_rank

if TYPE_CHECKING:
    from torchaudio.models import Wav2Vec2Model


class SSLEncoder(nn.Module):
    """Waveforms (B, samples) at 16 kHz to the states of all layers, a frame every 20 ms.

    Its tensors are named as in torchaudio.

    Args:
        model: torchaudio's model, of which feature extractor and encoder are used.
        layer_drop: probability of passing over a layer in training. The first, which gives WavLM its position bias,
            stays.
        lora_rank, lora_alpha: low-rank updates of the query and value projections; rank 0 for none.
        adapter_dim: bottleneck of the adapters behind attention and feed-forward network; 0 for none.

    Attributes:
        dim: D.
        num_states: layers and one.
        receptive_field: samples that a frame sees.
        hop: samples between frames.
    """

    feature_extractor: Any
    encoder: Any

    def __init__(
        self,
        model: Wav2Vec2Model,
        *,
        layer_drop: float = 0.0,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        adapter_dim: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= layer_drop < 1:
            raise ConfigError("layer_drop", f"is {layer_drop}", "it is from 0 to below 1")
        self.feature_extractor = model.feature_extractor
        self.encoder = model.encoder
        self.layer_drop = layer_drop
        transformer = model.encoder.transformer
        self.dim = int(transformer.pos_conv_embed.embed_dim)
        self.num_states = len(transformer.layers) + 1
        self.receptive_field, self.hop = 1, 1
        for convolution in model.feature_extractor.conv_layers:
            self.receptive_field += (convolution.kernel_size - 1) * self.hop
            self.hop *= convolution.stride
        if lora_rank:
            for layer in transformer.layers:
                add_low_rank(layer.attention, lora_rank, lora_alpha)
        self.adapters = nn.ModuleList(
            nn.ModuleList(Adapter(self.dim, adapter_dim) for _ in range(2))
            for _ in (transformer.layers if adapter_dim else ())
        )

    def forward(self, samples: Tensor) -> list[Tensor]:
        """States as their authors count them: what enters the first layer, then the output of each layer.

        Models that normalise before each layer normalise the last output as well. Input that is shorter than the
        receptive field is filled up with zeros.

        Returns:
            ``num_states`` tensors (B, T', D), T' = 1 + floor((samples - receptive_field) / hop).
        """
        missing = self.receptive_field - samples.shape[1]
        if missing > 0:
            samples = F.pad(samples, (0, missing))
        features, _ = self.feature_extractor(samples, None)
        x = self.encoder.feature_projection(features)
        transformer = self.encoder.transformer
        x = x + transformer.pos_conv_embed(x)
        # torchaudio's flag says that the one normalisation outside the layers comes before them.
        if transformer.layer_norm_first:
            x = transformer.layer_norm(x)
        states = self._through_layers(transformer.dropout(x))
        if not transformer.layer_norm_first:
            states[-1] = transformer.layer_norm(states[-1])
        return states

    def _through_layers(self, x: Tensor) -> list[Tensor]:
        states, position_bias = [x], None
        for index, layer in enumerate(self.encoder.transformer.layers):
            adapters: Any = self.adapters[index] if len(self.adapters) else (nn.Identity(), nn.Identity())
            if self.training and index > 0 and torch.rand(()).item() < self.layer_drop:
                x = x + _nothing(layer, *adapters)
            else:
                x, position_bias = _through_layer(layer, adapters, x, position_bias)
            states.append(x)
        return states


def _through_layer(layer: Any, adapters: Any, x: Tensor, position_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """torchaudio's ``EncoderLayer``, with the adapters before its two additions (Houlsby et al., figure 2)."""
    after_attention, after_network = adapters
    heard = layer.layer_norm(x) if layer.layer_norm_first else x
    attended, position_bias = layer.attention(heard, position_bias=position_bias)
    x = x + after_attention(layer.dropout(attended))
    if layer.layer_norm_first:
        return x + after_network(layer.feed_forward(layer.final_layer_norm(x))), position_bias
    x = layer.layer_norm(x)
    return layer.final_layer_norm(x + after_network(layer.feed_forward(x))), position_bias


def _nothing(*skipped: nn.Module) -> Tensor | float:
    """0, with a gradient of 0 for each parameter of a layer that is passed over: several ranks wait for all of them."""
    parameters = (parameter for module in skipped for parameter in module.parameters() if parameter.requires_grad)
    return sum(0.0 * parameter.sum() for parameter in parameters)
