"""ECAPA-TDNN as SpeechBrain and TaoRuijie publish it."""

from tests.embedding.families import Family

SMALL: dict[str, object] = {"channels": 16, "joined": 24, "attention": 8}

FAMILY = Family(
    names=("ECAPA_TDNN_SpeechBrain", "ECAPA_TDNN_TaoRuijie"),
    small={"": SMALL},
    published={"ECAPA_TDNN_SpeechBrain": (None, 20.8)},  # the tables of 3D-Speaker, whose model is SpeechBrain's
    shapes={
        "ECAPA_TDNN_SpeechBrain": {"conv.conv.weight": (3072, 3072, 1), "pool.linear1.weight": (128, 9216, 1)},
        "ECAPA_TDNN_TaoRuijie": {"conv.weight": (1536, 3072, 1), "pool.linear1.weight": (256, 4608, 1)},
    },
    export={"ECAPA_TDNN_SpeechBrain": SMALL, "ECAPA_TDNN_TaoRuijie": SMALL},
    blind=("pool.linear2.bias",),
)
