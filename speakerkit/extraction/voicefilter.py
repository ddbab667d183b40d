"""VoiceFilter (Wang et al. 2019, 1810.04826): dilated convolutions, an LSTM that hears the voice, a magnitude mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speakerkit.extraction.magnitude import MagnitudeExtractor
from speakerkit.extraction.registry import register_extractor
from speakerkit.nn.conditioning import Conditioning, for_each_voice
from speakerkit.nn.lstm import lstm_outputs


def convolution(channels_in: int, channels: int, kernel: tuple[int, int], dilation: int = 1) -> nn.Sequential:
    """A convolution over (frames, bins), dilated along time and padded to keep both, batch normalisation, ReLU."""
    padding = (kernel[0] // 2 * dilation, kernel[1] // 2)
    conv = nn.Conv2d(channels_in, channels, kernel, padding=padding, dilation=(dilation, 1))
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


@register_extractor("voicefilter")
class VoiceFilter(MagnitudeExtractor):
    """Table 1 of the paper; at F = 601, 256-d voices and LSTMs one or both ways it has 9.89 M or 18.88 M parameters.

    The defaults are those of Atss-Net's baseline, 9.453 M: 512 points and 128-d voices, LSTMs both ways, which are the
    better ones in both papers. The convolutions hear the mixture alone, and run once for all voices.

    Args:
        voice_size: D.
        n_fft, window, hop: of the STFT, in samples; the paper's 601 bins are those of 1200 points.
        power: of the magnitudes that the network sees; the masks are for plain magnitudes.
        channels: of the convolutions but the last.
        bottleneck: channels of the last, a 1x1 convolution.
        dilations: of the 5x5 convolutions, along time.
        lstm: units, each way.
        bidirectional: LSTMs both ways; without, no frame hears later ones but through the convolutions.
        hidden: width of the first fully connected layer.
    """

    def __init__(
        self,
        voice_size: int = 128,
        n_fft: int = 512,
        window: int = 400,
        hop: int = 160,
        power: float = 0.3,
        channels: int = 64,
        bottleneck: int = 8,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        lstm: int = 400,
        bidirectional: bool = True,
        hidden: int = 600,
    ) -> None:
        super().__init__(voice_size, 0, n_fft, window, hop, power)
        self.convolutions = nn.Sequential(
            convolution(1, channels, (1, 7)),
            convolution(channels, channels, (7, 1)),
            *(convolution(channels, channels, (5, 5), dilation) for dilation in dilations),
            convolution(channels, bottleneck, (1, 1)),
        )
        self.conditioning = Conditioning("concatenate", bottleneck * self.stft.bins, voice_size)
        self.lstm = nn.LSTM(self.conditioning.out_features, lstm, batch_first=True, bidirectional=bidirectional)
        self.fc1 = nn.Linear((1 + bidirectional) * lstm, hidden)
        self.fc2 = nn.Linear(hidden, self.stft.bins)

    def masks(self, magnitudes: Tensor, voices: Tensor) -> Tensor:
        maps = self.convolutions(magnitudes.unsqueeze(1))  # (batch, bottleneck, frames, F)
        rows = maps.transpose(2, 3).flatten(1, 2)  # (batch, bottleneck * F, frames)
        heard = self.conditioning(*for_each_voice(rows, voices))
        out = lstm_outputs(self.lstm, heard.transpose(1, 2))  # (batch * voices, frames, units)
        masks = torch.sigmoid(self.fc2(torch.relu(self.fc1(out))))
        return masks.unflatten(0, voices.shape[:2])
