"""Res2Net."""

from tests.embedding.families import Family
from tests.embedding.families.resnet import damp

FAMILY = Family(
    names=("Res2Net34_Base", "Res2Net34_Large"),
    small={"": {"m_channels": 8}},
    published={"Res2Net34_Base": (320, 4.689), "Res2Net34_Large": (320, 13.481)},
    shapes={
        "Res2Net34_Base": {
            "conv1.weight": (32, 1, 3, 3),
            "layer1.0.conv1.weight": (32, 32, 1, 1),
            "layer1.0.shortcut.0.weight": (64, 32, 1, 1),
            "layer1.2.convs.0.weight": (16, 16, 3, 3),
            "layer2.0.bns.0.running_mean": (32,),
            "layer4.2.conv3.weight": (512, 256, 1, 1),
            "seg_1.weight": (256, 10240),
        },
        "Res2Net34_Large": {"layer4.2.convs.0.weight": (256, 256, 3, 3), "seg_1.weight": (256, 20480)},
    },
    pooled_frames=lambda frames: -(-frames // 8),
    export={"Res2Net34_Base": {}},
    slow=("Res2Net34_Large",),
    damp=damp,
    poolings="Res2Net34_Base",
)
