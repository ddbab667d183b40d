"""What many backbones share after their last layer of maps: a pooling, and one linear layer or two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speakerkit.embedding.registry import Backbone
from speakerkit.nn.pooling import Pooling


class PooledBackbone(Backbone):
    """Maps, pooled over time, to an embedding; a model file defines ``maps``, then calls ``end_with``.

    Layer names are those of the WeSpeaker model zoo.
    """

    def maps(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, C, F, T') or (B, C, T'), what the pooling sees."""
        raise NotImplementedError

    def end_with(self, pool: Pooling, two_emb_layer: bool) -> None:
        """Define the layers after the maps.

        Args:
            two_emb_layer: a second linear layer after ReLU and normalisation; the embedding is then its output.
        """
        self.pool = pool
        self.seg_1 = nn.Linear(pool.out_dim, self.embed_dim)
        self.two_emb_layer = two_emb_layer
        if two_emb_layer:
            self.seg_bn_1 = nn.BatchNorm1d(self.embed_dim, affine=False)
            self.seg_2 = nn.Linear(self.embed_dim, self.embed_dim)

    def forward(self, feats: Tensor) -> Tensor:
        return self._embedding(self.maps(feats))

    def _embedding(self, maps: Tensor) -> Tensor:
        embedding = self.seg_1(self.pool(maps))  # (batch, embed_dim)
        if self.two_emb_layer:
            embedding = self.seg_2(self.seg_bn_1(torch.relu(embedding)))
        return embedding

    def frame_features(self, feats: Tensor) -> Tensor:
        """(B, T, feat_dim) to (B, T', rows of a frame), row ``c * F + f`` being frequency f of channel c."""
        return self.maps(feats).flatten(1, -2).transpose(1, 2)

    def embed_frames(self, frames: Tensor) -> Tensor:
        """(B, T', rows of a frame) to (B, embed_dim)."""
        return self._embedding(frames.transpose(1, 2))
