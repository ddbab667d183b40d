"""d-vectors."""

from tests.embedding.families import Family

FAMILY = Family(
    names=("DVECTOR",),
    small={"": {"hidden_dim": 32, "proj_dim": 16, "layers": 2}},
    export={"DVECTOR": {}},
    pooled=False,
)
