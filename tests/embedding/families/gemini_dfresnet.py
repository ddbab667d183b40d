"""Gemini DF-ResNet."""

from __future__ import annotations

from torch import nn

from tests.embedding.families import Family


def damp(module: nn.Module) -> None:
    """Residual branches at 0.3."""
    if hasattr(module, "bn3"):
        nn.init.constant_(module.bn3.weight, 0.3)


NAMES = tuple(f"Gemini_DF_ResNet{depth}" for depth in (60, 114, 183, 237))

FAMILY = Family(
    names=NAMES,
    small={"": {"m_channels": 4}},
    published={
        "Gemini_DF_ResNet60": (356, 4.05),
        "Gemini_DF_ResNet114": (680, 6.53),
        "Gemini_DF_ResNet183": (1094, 9.20),
        "Gemini_DF_ResNet237": (1418, 11.68),
    },
    shapes={
        "Gemini_DF_ResNet114": {
            "downsample_layers.0.0.weight": (32, 1, 3, 3),
            "downsample_layers.0.1.running_mean": (32,),
            "downsample_layers.1.0.weight": (32, 32, 3, 3),
            "downsample_layers.4.0.weight": (256, 128, 3, 3),
            "downsample_layers.4.1.bias": (256,),
            "stages.0.2.conv1.weight": (128, 32, 1, 1),
            "stages.2.26.conv2.weight": (512, 1, 3, 3),
            "stages.3.0.bn2.running_var": (1024,),
            "stages.3.2.conv3.weight": (256, 1024, 1, 1),
            "stages.3.2.bn3.num_batches_tracked": (),
            "seg_1.weight": (256, 2560),
            "seg_1.bias": (256,),
        },
    },
    pooled_frames=lambda frames: -(-frames // 2),
    export={"Gemini_DF_ResNet60": {}},
    slow=NAMES[1:],
    damp=damp,
    poolings="Gemini_DF_ResNet60",
)
