"""SimAM-ResNet."""

from __future__ import annotations

from torch import nn

from tests.embedding.families import Family


def damp(module: nn.Module) -> None:
    """Residual branches at 0.3."""
    if hasattr(module, "downsample"):
        nn.init.constant_(module.bn2.weight, 0.3)


FAMILY = Family(
    names=("SimAM_ResNet34_ASP", "SimAM_ResNet100_ASP"),
    small={"": {"in_planes": 8}},
    published={"SimAM_ResNet34_ASP": (227, 25.214), "SimAM_ResNet100_ASP": (623, 50.233)},
    shapes={
        "SimAM_ResNet34_ASP": {
            "front.conv1.weight": (64, 1, 3, 3),
            "front.bn1.running_var": (64,),
            "front.layer1.2.conv2.weight": (64, 64, 3, 3),
            "front.layer2.0.downsample.0.weight": (128, 64, 1, 1),
            "front.layer2.0.downsample.1.bias": (128,),
            "front.layer4.2.bn2.num_batches_tracked": (),
            "pooling.attention.0.weight": (128, 5120, 1),
            "pooling.attention.2.running_mean": (128,),
            "pooling.attention.3.bias": (5120,),
            "bottleneck.weight": (256, 10240),
            "bottleneck.bias": (256,),
        },
        "SimAM_ResNet100_ASP": {
            "front.layer2.15.conv1.weight": (128, 128, 3, 3),
            "front.layer3.23.bn1.weight": (256,),
        },
    },
    pooled_frames=lambda frames: -(-frames // 8),
    export={"SimAM_ResNet34_ASP": {"in_planes": 4}},
    slow=("SimAM_ResNet100_ASP",),
    blind=("pooling.attention.3.bias",),
    damp=damp,
    pooled=False,
)
