"""RepVGG, with and without the dilated branch."""

from tests.embedding.families import Family

SMALL = ("REPVGG_TINY_A0", "REPVGG_TINY_RSBB_A0", "REPVGG_B1g4")
RSBB = ("REPVGG_RSBB_A0", "REPVGG_RSBB_A2", "REPVGG_RSBB_B0")
GROUPED = ("REPVGG_B1g2", "REPVGG_B2g2", "REPVGG_B2g4", "REPVGG_B3g2", "REPVGG_B3g4", "REPVGG_D2SE")
LARGE = tuple(f"REPVGG_{size}" for size in ("A0", "A1", "A2", "B0", "B1", "B2", "B3")) + RSBB + GROUPED

FAMILY = Family(
    names=SMALL + LARGE,
    small={"": {"base_width": 8}},
    published={
        "REPVGG_TINY_A0": (560, 6.834),
        "REPVGG_TINY_RSBB_A0": (560, 11.233),
        "REPVGG_A0": (356, 14.381),
        "REPVGG_RSBB_A0": (356, 20.624),
        "REPVGG_A1": (356, 19.364),
        "REPVGG_A2": (351, 34.010),
        "REPVGG_RSBB_A2": (351, 55.416),
        "REPVGG_B0": (458, 21.090),
        "REPVGG_RSBB_B0": (458, 32.690),
        "REPVGG_B1": (453, 65.851),
        "REPVGG_B1g2": (453, 54.218),
        "REPVGG_B1g4": (453, 48.402),
        "REPVGG_B2": (453, 99.568),
        "REPVGG_B2g2": (453, 81.392),
        "REPVGG_B2g4": (453, 72.304),
        "REPVGG_B3": (453, 133.630),
        "REPVGG_B3g2": (453, 107.457),
        "REPVGG_B3g4": (453, 94.370),
        "REPVGG_D2SE": (985, 138.356),
    },
    shapes={
        "REPVGG_TINY_A0": {
            "stage0.rbr_dense.conv.weight": (32, 1, 3, 3),
            "stage0.rbr_dense.bn.running_var": (32,),
            "stage0.rbr_1x1.conv.weight": (32, 1, 1, 1),
            "stage1.0.rbr_identity.weight": (32,),
            "stage2.0.rbr_1x1.conv.weight": (64, 32, 1, 1),
            "stage3.22.rbr_identity.num_batches_tracked": (),
            "stage4.2.rbr_dense.conv.weight": (256, 256, 3, 3),
            "seg.weight": (256, 5120),
            "seg.bias": (256,),
        },
        "REPVGG_RSBB_A0": {
            "stage0.rbr_dense_dilation.conv.weight": (48, 1, 3, 3),
            "stage3.13.rbr_dense_dilation.bn.bias": (192,),
            "stage4.0.rbr_dense.conv.weight": (1280, 192, 3, 3),
        },
        "REPVGG_B2g4": {
            "stage0.rbr_dense.conv.weight": (64, 1, 3, 3),
            "stage1.0.rbr_dense.conv.weight": (160, 64, 3, 3),
            "stage1.1.rbr_dense.conv.weight": (160, 40, 3, 3),
            "stage1.1.rbr_1x1.conv.weight": (160, 40, 1, 1),
            "stage4.0.rbr_dense.conv.weight": (2560, 640, 3, 3),
        },
        "REPVGG_D2SE": {
            "stage0.se.fc_1.weight": (16, 64),
            "stage4.0.se.fc_2.weight": (2560, 640),
        },
    },
    pooled_frames=lambda frames: -(-frames // 8),
    export={"REPVGG_TINY_A0": {}},
    slow=LARGE,
    poolings="REPVGG_TINY_A0",
)
