"""Self-supervised models, which hear samples."""

from tests.embedding.families import Family

LARGE = ("WAV2VEC2_LARGE", "WAV2VEC2_LARGE_LV60K", "HUBERT_LARGE", "WAVLM_LARGE")
BASE = ("WAV2VEC2_BASE", "HUBERT_BASE", "WAVLM_BASE")
TINY = {"dim": 32, "layers": 2, "heads": 4, "ff_dim": 64, "conv_dim": 16, "pos_kernel": 16, "pos_groups": 2}

FAMILY = Family(
    names=("SSL", *BASE, *LARGE),
    small={"SSL": {**TINY, "head_args": {"heads": 4, "compression": 8}}},
    shapes={
        "WAVLM_BASE": {
            "ssl.feature_extractor.conv_layers.0.layer_norm.weight": (512,),
            "ssl.encoder.feature_projection.projection.weight": (768, 512),
            "ssl.encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1": (768, 48, 128),
            "ssl.encoder.transformer.layers.0.attention.rel_attn_embed.weight": (320, 12),
            "ssl.encoder.transformer.layers.11.attention.gru_rel_pos_linear.weight": (8, 64),
            "head.layers.weights": (13,),
            "head.linear.weight": (256, 64 * 128),
        },
        "HUBERT_LARGE": {
            "ssl.feature_extractor.conv_layers.6.layer_norm.weight": (512,),
            "ssl.encoder.transformer.layers.23.feed_forward.output_dense.weight": (1024, 4096),
            "head.key_layers.weights": (25,),
        },
    },
    pooled_frames=lambda frames: (160 * frames - 400) // 320 + 1,
    export={"SSL": {"layers": 1, "lora_rank": 2, "adapter_dim": 4}},
    slow=(*BASE, *LARGE),
    blind=("head.key.bias", "head.attention.bias"),
    pooled=False,
    feat_dim=1,
    rows=160,
)
