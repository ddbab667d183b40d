"""ERes2Net."""

from tests.embedding.families import Family
from tests.embedding.families.resnet import damp

FAMILY = Family(
    names=("ERes2Net34_Base", "ERes2Net34_Large", "ERes2Net34_aug"),
    small={"": {"m_channels": 8}},
    published={
        "ERes2Net34_Base": (587, 9.888),
        "ERes2Net34_Large": (587, 29.017),
        "ERes2Net34_aug": (809, 68.273),
    },
    shapes={
        "ERes2Net34_Base": {
            "layer1.0.conv1.weight": (32, 32, 1, 1),
            "layer2.3.convs.1.weight": (32, 32, 3, 3),
            "layer3.0.conv2_1.weight": (64, 64, 3, 3),
            "layer3.5.bn2_1.bias": (64,),
            "layer4.2.convs.0.weight": (128, 128, 3, 3),
            "layer4.2.fuse_models.0.local_att.0.weight": (32, 256, 1, 1),
            "layer4.2.fuse_models.0.local_att.4.running_var": (128,),
            "layer1_downsample.weight": (128, 64, 3, 3),
            "layer3_downsample.weight": (512, 256, 3, 3),
            "fuse_mode12.local_att.0.weight": (32, 256, 1, 1),
            "fuse_mode123.local_att.1.weight": (64,),
            "fuse_mode1234.local_att.3.bias": (512,),
            "seg_1.weight": (512, 10240),
        },
        "ERes2Net34_aug": {
            "layer1.0.conv1.weight": (72, 64, 1, 1),
            "layer1.0.convs.2.weight": (24, 24, 3, 3),
            "layer4.2.fuse_models.1.local_att.3.weight": (192, 48, 1, 1),
            "layer4.2.conv3.weight": (2048, 576, 1, 1),
            "layer1_downsample.weight": (512, 256, 3, 3),
            "seg_1.weight": (512, 40960),
        },
    },
    pooled_frames=lambda frames: -(-frames // 8),
    export={"ERes2Net34_Base": {}},
    slow=("ERes2Net34_Large",),
    blind=("local_att.0.bias", "local_att.3.bias"),
    damp=damp,
    poolings="ERes2Net34_Base",
)
