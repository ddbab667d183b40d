"""CAM++."""

from tests.embedding.families import Family

FAMILY = Family(
    names=("CAMPPlus",),
    small={"": {"growth_rate": 4, "init_channels": 16}},
    published={"CAMPPlus": (937, 7.176)},
    shapes={
        "CAMPPlus": {
            "head.conv1.weight": (32, 1, 3, 3),
            "head.layer1.0.shortcut.1.weight": (32,),
            "head.layer2.1.bn2.weight": (32,),
            "head.conv2.weight": (32, 32, 3, 3),
            "xvector.tdnn.linear.weight": (128, 320, 5),
            "xvector.tdnn.nonlinear.batchnorm.weight": (128,),
            "xvector.block1.tdnnd12.linear1.weight": (128, 480, 1),
            "xvector.block2.tdnnd24.cam_layer.linear_local.weight": (32, 128, 3),
            "xvector.block3.tdnnd16.cam_layer.linear1.weight": (64, 128, 1),
            "xvector.block3.tdnnd16.cam_layer.linear2.bias": (32,),
            "xvector.block3.tdnnd1.nonlinear2.batchnorm.running_var": (128,),
            "xvector.transit3.linear.weight": (512, 1024, 1),
            "xvector.out_nonlinear.batchnorm.weight": (512,),
            "xvector.dense.linear.weight": (512, 1024, 1),
            "xvector.dense.nonlinear.batchnorm.running_mean": (512,),
        },
    },
    pooled_frames=lambda frames: -(-frames // 2),
    export={"CAMPPlus": {}},
    poolings="CAMPPlus",
)
