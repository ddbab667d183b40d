"""r-vectors."""

from __future__ import annotations

from torch import nn

from tests.embedding.families import Family


def damp(module: nn.Module) -> None:
    """Residual branches at 0.3."""
    if hasattr(module, "shortcut"):
        nn.init.constant_((module.bn3 if hasattr(module, "bn3") else module.bn2).weight, 0.3)


NAMES = tuple(f"ResNet{depth}" for depth in (18, 34, 50, 101, 152, 221, 293))

FAMILY = Family(
    names=NAMES,
    small={"": {"m_channels": 8}},
    published={"ResNet34": (218, 6.634), "ResNet221": (None, 23.8), "ResNet293": (None, 28.6)},
    shapes={
        "ResNet34": {
            "conv1.weight": (32, 1, 3, 3),
            "bn1.running_var": (32,),
            "layer1.2.conv2.weight": (32, 32, 3, 3),
            "layer2.0.shortcut.0.weight": (64, 32, 1, 1),
            "layer2.0.shortcut.1.bias": (64,),
            "layer3.5.bn2.num_batches_tracked": (),
            "layer4.2.conv1.weight": (256, 256, 3, 3),
            "seg_1.weight": (256, 5120),
            "seg_1.bias": (256,),
        },
        "ResNet293": {
            "layer1.0.shortcut.0.weight": (128, 32, 1, 1),
            "layer1.9.conv3.weight": (128, 32, 1, 1),
            "layer2.19.bn3.weight": (256,),
            "layer3.63.conv2.weight": (128, 128, 3, 3),
            "layer4.2.conv1.weight": (256, 1024, 1, 1),
            "seg_1.weight": (256, 20480),
        },
    },
    pooled_frames=lambda frames: -(-frames // 8),
    export={"ResNet18": {}, "ResNet50": {"two_emb_layer": True}},
    slow=NAMES[3:],
    damp=damp,
    poolings="ResNet18",
)
