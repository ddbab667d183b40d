"""x-vectors, with statistics pooling and as xi-vectors."""

from tests.embedding.families import Family

FAMILY = Family(
    names=("XVEC", "XI_VEC_XVEC"),
    small={"XVEC": {"hid_dim": 32, "stats_dim": 48}},
    published={"XVEC": (32, 4.611), "XI_VEC_XVEC": (43, 4.616)},
    shapes={
        "XVEC": {
            "frame_1.conv_1d.weight": (512, 80, 5),
            "frame_2.conv_1d.weight": (512, 512, 3),
            "frame_3.bn.running_mean": (512,),
            "frame_4.conv_1d.bias": (512,),
            "frame_5.conv_1d.weight": (1500, 512, 1),
            "seg_1.weight": (512, 3000),
            "seg_bn_1.running_var": (512,),
            "seg_2.weight": (512, 512),
        },
        "XI_VEC_XVEC": {
            "pool.prior_mean": (1, 1500),
            "pool.prior_logprec": (1, 1500),
            "pool.lin1_relu_bn.0.weight": (256, 1500, 1),
            "pool.lin1_relu_bn.2.running_mean": (256,),
            "pool.lin2.weight": (1500, 256, 1),
            "seg_1.weight": (512, 1500),
        },
    },
    pooled_frames=lambda frames: frames - 14,
    export={"XVEC": {"pooling_func": "XI"}},
    poolings="XVEC",
)
