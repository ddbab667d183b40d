"""ECAPA-TDNN."""

from tests.embedding.families import Family

FAMILY = Family(
    names=(
        "ECAPA_TDNN",
        "ECAPA_TDNN_c512",
        "ECAPA_TDNN_c1024",
        "ECAPA_TDNN_GLOB_c512",
        "ECAPA_TDNN_GLOB_c1024",
        "XI_VEC_ECAPA_TDNN_c512",
        "XI_VEC_ECAPA_TDNN_c1024",
    ),
    small={"ECAPA_TDNN": {"channels": 16}},
    published={
        "ECAPA_TDNN_GLOB_c512": (221, 6.191),
        "ECAPA_TDNN_GLOB_c1024": (None, 14.65),
        "XI_VEC_ECAPA_TDNN_c512": (228, 5.896),
        "XI_VEC_ECAPA_TDNN_c1024": (228, 14.363),
    },
    shapes={
        "ECAPA_TDNN_GLOB_c512": {
            "layer1.conv.weight": (512, 80, 5),
            "layer2.se_res2block.0.conv.weight": (512, 512, 1),
            "layer3.se_res2block.1.convs.6.weight": (64, 64, 3),
            "layer4.se_res2block.1.bns.0.running_mean": (64,),
            "layer4.se_res2block.3.linear1.weight": (128, 512),
            "conv.weight": (1536, 1536, 1),
            "pool.linear1.weight": (128, 4608, 1),
            "pool.linear2.weight": (1536, 128, 1),
            "bn.weight": (3072,),
            "linear.weight": (192, 3072),
        },
        "ECAPA_TDNN_c1024": {
            "conv.weight": (1536, 3072, 1),
            "pool.linear1.weight": (128, 1536, 1),
        },
        "XI_VEC_ECAPA_TDNN_c512": {
            "pool.prior_mean": (1, 1536),
            "pool.lin1_relu_bn.0.weight": (256, 1536, 1),
            "pool.lin2.bias": (1536,),
            "bn.weight": (1536,),
            "linear.weight": (192, 1536),
        },
    },
    export={"ECAPA_TDNN": {"global_context_att": True, "emb_bn": True}},
    slow=("XI_VEC_ECAPA_TDNN_c1024",),
    blind=("pool.linear2.bias",),
    poolings="ECAPA_TDNN",
)
