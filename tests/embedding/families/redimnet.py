"""ReDimNet. Sizes are those of WeSpeaker's own networks without the one weight of theirs that is never trained.

The paper's Table 1 rounds to 1.0, 2.2, 4.7, 3.0, 6.3, 9.2 and 15.0 million: B0 and B6 agree, the others differ by up to
0.3 million and B5, of which WeSpeaker's has larger groups than B4 and nothing else, by 1.5.
"""

from __future__ import annotations

from torch import nn

from tests.embedding.families import Family


def damp(module: nn.Module) -> None:
    """Residual branches at 0.3."""
    if hasattr(module, "conv2pw"):
        nn.init.constant_(module.bn2.weight, 0.3)


NAMES = tuple(f"ReDimNetB{size}" for size in range(7))
TINY = {"channels": 4, "block": "basic_resnet_fwse", "group_divisor": 2, "stages": [[1, 1, 2, 12], [3, 1]]}

FAMILY = Family(
    names=("ReDimNet", *NAMES),
    small={"ReDimNet": TINY, "": {}},
    published={
        "ReDimNetB0": (583, 1.002),
        "ReDimNetB1": (353, 2.123),
        "ReDimNetB2": (548, 4.888),
        "ReDimNetB3": (1373, 3.220),
        "ReDimNetB4": (1044, 6.432),
        "ReDimNetB5": (1044, 7.651),
        "ReDimNetB6": (1044, 15.006),
    },
    shapes={
        "ReDimNetB2": {
            "backbone.inputs_weights.0": (1, 1, 1, 1),
            "backbone.inputs_weights.6": (1, 7, 1152, 1),
            "backbone.stem.0.weight": (16, 1, 3, 3),
            "backbone.stem.1.bias": (16,),
            "backbone.stage0.0.weight": (16, 16, 1, 1),
            "backbone.stage1.0.weight": (32, 16, 2, 1),
            "backbone.stage0.2.conv_block.dwconvs.0.weight": (16, 4, 3, 3),
            "backbone.stage5.4.conv_block.norm.running_var": (128,),
            "backbone.stage5.1.conv_block.pwconv1.weight": (128, 128, 1, 1),
            "backbone.stage0.4.red_dim_conv.0.weight": (96, 1152, 1),
            "backbone.stage5.6.red_dim_conv.1.weight": (288,),
            "backbone.stage5.6.tcm.0.dwconvs.0.weight": (288, 1, 7),
            "backbone.stage5.6.tcm.3.dwconvs.0.weight": (288, 1, 59),
            "backbone.stage5.6.tcm.1.norm.weight": (288,),
            "backbone.stage5.6.tcm.2.pwconv1.bias": (288,),
            "backbone.stage3.6.tcm.4.attention.q_proj.weight": (144, 144),
            "backbone.stage3.6.tcm.4.attention.out_proj.bias": (144,),
            "backbone.stage3.6.tcm.4.layer_norm.weight": (144,),
            "backbone.stage3.6.tcm.4.feed_forward.intermediate_dense.weight": (144, 144),
            "backbone.stage3.6.tcm.4.feed_forward.output_dense.bias": (144,),
            "backbone.stage3.6.tcm.4.final_layer_norm.bias": (144,),
            "backbone.stage3.6.exp_dim_conv.weight": (1152, 144, 1),
            "pool.linear1.weight": (128, 3456, 1),
            "pool.linear2.bias": (1152,),
            "seg_1.weight": (192, 2304),
        },
        "ReDimNetB0": {
            "backbone.stage1.0.weight": (40, 10, 2, 1),
            "backbone.stage1.3.conv_block.conv1.weight": (40, 1, 3, 3),
            "backbone.stage1.3.conv_block.conv2pw.bias": (40,),
            "backbone.stage1.4.0.weight": (20, 2, 3, 3),
            "backbone.stage1.4.1.running_mean": (20,),
            "backbone.stage1.4.3.weight": (20, 20, 1, 1),
            "backbone.stage1.6.exp_dim_conv.weight": (600, 20, 1),
        },
        "ReDimNetB3": {
            "backbone.stage0.6.conv_block.se.squeeze.weight": (64, 72),
            "backbone.stage5.8.conv_block.se.exitation.weight": (9, 64),
        },
        "ReDimNetB5": {"backbone.stage0.1.conv_block.conv1.weight": (64, 16, 3, 3)},
        "ReDimNetB6": {"backbone.stage3.0.weight": (192, 64, 3, 1)},
    },
    export={"ReDimNet": {"stages": [[3, 1, 2, 12]]}},
    slow=NAMES[3:],
    blind=("k_proj.bias", "pool.linear2.bias"),
    damp=damp,
    poolings="ReDimNet",
)
