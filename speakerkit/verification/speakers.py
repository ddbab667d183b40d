"""What the embeddings of each speaker sum up to: all that LDA, PLDA and PSDA need to know of their training data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speakerkit.data.ark import Embeddings
from speakerkit.errors import DataError
from speakerkit.verification.vectors import Floats, Rows, rank

BLOCK = 8192  # rows

logger = logging.getLogger("speakerkit.verification")


@dataclass(frozen=True, eq=False)
class SpeakerStatistics:
    """Sufficient statistics of embeddings grouped by speaker.

    Attributes:
        means: (speakers, dim) mean of each speaker.
        counts: (speakers,) utterances of each, as floats.
        weights: (speakers,) what each speaker counts for; 1 for all unless asked otherwise.
        scatter: (dim, dim) sum of weight x outer product of each utterance's deviation from its speaker's mean.
        source: file that the embeddings come from; error messages name it.
    """

    means: Floats
    counts: Floats
    weights: Floats
    scatter: Floats
    source: str = "embeddings"

    @classmethod
    def of(
        cls,
        vectors: npt.ArrayLike,
        speakers: Sequence[str],
        weights: Mapping[str, float] | None = None,
        source: str = "embeddings",
    ) -> SpeakerStatistics:
        """Statistics of rows (utterances, dim), in float64.

        Args:
            vectors: embeddings.
            speakers: speaker of each row.
            weights: positive weight of a speaker where it is not 1.
            source: file that the rows come from.

        Raises:
            DataError: NaN or infinity, fewer than two speakers with two utterances, or a weight that is not positive.
        """
        rows = np.asarray(vectors)
        if rows.ndim != 2 or len(rows) != len(speakers):
            raise DataError(source, f"has {len(speakers)} speakers for rows of shape {rows.shape}", "give one each")
        if not np.isfinite(rows).all():
            raise DataError(source, "holds NaN or infinity", "extract the embeddings again")
        names = sorted(set(speakers))
        numbers = {name: number for number, name in enumerate(names)}
        speaker = np.fromiter(map(numbers.__getitem__, speakers), dtype=np.intp, count=len(speakers))
        counts = np.bincount(speaker, minlength=len(names)).astype(np.float64)
        if np.sum(counts >= 2) < 2:
            raise DataError(
                source,
                f"has {np.sum(counts >= 2)} speakers with two utterances or more, among {len(names)}",
                "two such speakers are the least; check utt2spk, or extract more utterances",
            )
        weight = np.array([1.0 if weights is None else weights.get(name, 1.0) for name in names])
        if not (np.isfinite(weight) & (weight > 0)).all():
            raise DataError(source, f"speaker {names[int(np.argmin(weight))]!r} has a bad weight", "weights are > 0")
        means = _sums(rows, speaker, len(names)) / counts[:, None]
        return cls(means, counts, weight, _scatter(rows, speaker, means, np.sqrt(weight)), source)

    @property
    def dim(self) -> int:
        """Values in an embedding."""
        return self.means.shape[1]

    @property
    def mean(self) -> Floats:
        """(dim,) weighted mean of the speakers' means, which is Kaldi's centre."""
        return self.weights @ self.means / self.weights.sum()

    def require_full_rank(self) -> None:
        """Refuse data whose within-speaker covariance cannot be inverted.

        Raises:
            DataError: fewer utterances than it takes, or directions in which no speaker varies.
        """
        freedom = int(self.counts.sum()) - len(self.counts)
        if freedom < self.dim:
            raise DataError(
                self.source,
                f"{int(self.counts.sum())} utterances of {len(self.counts)} speakers show at most {freedom} directions "
                f"within speakers, the embeddings have {self.dim}",
                "take more utterances a speaker, or embeddings of fewer dimensions",
            )
        utterances = self.weights * self.counts
        squares = np.trace(self.scatter) + utterances @ np.sum(self.means**2, axis=1)
        shown = rank(np.linalg.eigvalsh(self.scatter), float(squares))
        if shown < self.dim:
            raise DataError(
                self.source,
                f"speakers vary in {shown} of {self.dim} directions only",
                "drop duplicate or constant dimensions, or take other embeddings",
            )


def speakers_of(embeddings: Embeddings, speakers: Mapping[str, str]) -> list[str]:
    """Speaker of each embedding; warns of utterances that have a speaker but no embedding.

    Raises:
        DataError: an embedding has none; names the first and counts them.
    """
    missing = [key for key in embeddings.keys if key not in speakers]
    if missing:
        raise DataError(
            embeddings.source,
            f"no speaker for {missing[0]!r} ({len(missing)} of {len(embeddings)} embeddings)",
            "give the utt2spk of these embeddings",
        )
    if len(speakers) > len(embeddings):
        absent = len(speakers) - len(embeddings)
        logger.warning("%s: %d of %d utterances are left out, no embedding", embeddings.source, absent, len(speakers))
    return [speakers[key] for key in embeddings.keys]


def _sums(rows: npt.NDArray[np.floating], speaker: Rows, speakers: int) -> Floats:
    """(speakers, dim) sum of each speaker's rows."""
    order = np.argsort(speaker, kind="stable")
    starts = np.searchsorted(speaker[order], np.arange(speakers))
    return np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)


def _scatter(rows: npt.NDArray[np.floating], speaker: Rows, means: Floats, root_weights: Floats) -> Floats:
    scatter = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), BLOCK):
        who = speaker[start : start + BLOCK]
        deviations = (rows[start : start + BLOCK] - means[who]) * root_weights[who, None]
        scatter += deviations.T @ deviations
    return scatter
