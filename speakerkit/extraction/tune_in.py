"""Tune-In: separation that is steered by voices which it finds in the mixture itself, or in enrolments (Wang et al.).

Equations, tables and sections are those of "Tune-In: Training Under Negative Environments with Interference for
Attention Networks Simulating Cocktail Party Effect" (2021). It is trained in one mode after the other, "autopilot",
"online", "offline", each from the weights of the one before (:func:`adopt`). A step of the online one::

    tuned = model(mixture)
    loss, parts = tune_in_loss(tuned, targets, labels, table, TuneInWeights(steered=...))

where ``table`` is a :class:`SpeakerTable` of the training speakers, a part of the module that is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from speakerkit.config import require
from speakerkit.errors import BundleError, ConfigError
from speakerkit.extraction.dprnn import GatedMasks
from speakerkit.extraction.filters import Decoder, Encoder
from speakerkit.extraction.losses import best_order, pairwise, si_sdr
from speakerkit.extraction.registry import Extracted, Extractor, register_extractor
from speakerkit.nn.conditioning import for_each_voice
from speakerkit.nn.dual_path import GALRBlock, Steering, segmented
from speakerkit.nn.tcn import GlobalNorm

NOBODY = -1  # class of a speaker who is not trained on
LEAST_DISTANCE = 1e-8  # of two speakers, under a logarithm
SPEAKER_PARTS = ("knowledge.", "embedder.", "cross.")  # which autopilot lacks, as it does ".steering." in blocks
SETTLING = 0.9  # of the running mean of how far the table moves


@dataclass(frozen=True, eq=False)
class TunedIn(Extracted):
    """Estimates, and the voices that steered them.

    Attributes:
        steering: (B, C, D) steering vectors Z; ``None`` in autopilot.
        noisy: (B, C, D) Z as the dual attention heard it: in training with noise.
        attention: (B, C, S, S_j) by which segment j of the speaker's was asked for at segment s (eq. 1), for plots;
            ``None`` where the voices were given.
    """

    steering: Tensor | None = None
    noisy: Tensor | None = None
    attention: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the speaker-knowledge space makes of recordings.

    Attributes:
        query: (N, S, D) mean of the generic features of each segment.
        features: (N, C, S, D) of each of C speakers, Y.
        real: (N, S) the segments that hold anything of the recording; ``None`` for all.
    """

    query: Tensor
    features: Tensor
    real: Tensor | None = None


class CrossAttention(nn.Module):
    """What the speaker-knowledge space has to say to what is heard (section 2.3), with one head."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)

    def forward(
        self, heard: Tensor, known: Tensor, real: Tensor | None = None, asking: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Steering vectors Z (B, C, D) by eq. 2, attention (B, C, S, S_j) by eq. 1, and salience (B, C).

        The salience is the mean over S of the log of the sum of exponentiated scores: how much of what is heard a
        speaker's features answer to. Scores are divided by sqrt(D), which is not printed.

        Args:
            heard: (B, S, D) queries.
            known: (B, C, S_j, D).
            real: (B, S_j) or (B, C, S_j), which of the known segments count.
            asking: (B, S), which of the heard ones do.
        """
        scores = self.query(heard).unsqueeze(1) @ self.key(known).mT / math.sqrt(heard.shape[-1])  # (B, C, S, S_j)
        if real is not None:
            shown = real.unsqueeze(1) if real.ndim == 2 else real
            scores = scores.masked_fill(~shown.unsqueeze(2), -torch.inf)
        attention = scores.softmax(-1)
        found = attention @ self.value(known)  # (B, C, S, D)
        salience = scores.logsumexp(-1)
        if asking is None:
            return found.mean(2), attention, salience.mean(2)
        asked = asking.to(found.dtype)
        share = (asked / asked.sum(1, keepdim=True)).unsqueeze(1)  # (B, 1, S)
        return (share.unsqueeze(-1) * found).sum(2), attention, (share * salience).sum(2)


@register_extractor("tune_in")
class TuneIn(Extractor):
    """Tune-In (section 2): GALR blocks in a generic space, then in one of speakers and in one of speech.

    Modes (section 2.5):

    - "autopilot" separates C sources blindly, without the space of speakers: r = 1 and h = 0 in eq. 3, whose layer
      normalisation it goes without. 2.29 M parameters.
    - "online" also finds C steering vectors in the mixture, which steer one source each. 3.18 M.
    - "offline" is told them by enrolments, clean ones or mixtures. 2.36 M, where the voices are known beforehand.

    In the steered modes each source has a pass of its own through the space of speech. Of the head's C maps source j
    takes map j online, as in autopilot; offline, where the order of voices means nothing, it takes the mean of all.

    An online model is a blind separator, and its :class:`TunedIn` tells the voices. An offline one is told voices
    (B, K, D): what :meth:`enrol` gives; or, as the paper has it, features (B, K, S_j, D) of the enrolments out of
    :meth:`know`, which the mixture attends to.

    Args:
        mode: as above.
        sources: C, of the mixture, or of an enrolment.
        filters: N.
        window: L, samples of a filter; 4 at 8 kHz (WSJ0-2mix), 8 at 16 kHz (LibriSpeech).
        features: D.
        segment: K; 256 or 128 frames for these windows.
        reduced: Q; 8 or 16.
        hidden: cells of each direction of an LSTM.
        heads: of self- and dual attention.
        generic, knowledge, stimuli: B, B1, B2 blocks of each space.
        steering: how a voice enters, a kind of :class:`speakerkit.nn.dual_path.Steering` (section 5.4).
        within, across: summarisers of each block (table 4); only autopilot may have an RNN across segments.
        noise_var: variance of the noise on Z in training (table 2); whether 0.1 is that or the deviation is not said.
        dropout: of Z, the technique that does worse in table 2.

    Raises:
        ConfigError: sizes of nothing, or an unknown mode.
    """

    def __init__(
        self,
        mode: Literal["autopilot", "online", "offline"] = "autopilot",
        sources: int = 2,
        filters: int = 64,
        window: int = 4,
        features: int = 128,
        segment: int = 256,
        reduced: int = 8,
        hidden: int = 128,
        heads: int = 8,
        generic: int = 4,
        knowledge: int = 2,
        stimuli: int = 2,
        steering: str = "dual",
        within: str = "rnn",
        across: str = "attention",
        noise_var: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if mode not in ("autopilot", "online", "offline"):
            raise ConfigError("mode", f"is {mode!r}", 'it is "autopilot", "online" or "offline"')
        if min(sources, generic, knowledge, stimuli, reduced) < 1 or segment < 2 or segment % 2 or features % 2:
            raise ConfigError("sizes", "are not 1 or more each", "segment and features are even too")
        if mode != "autopilot" and across != "attention":
            raise ConfigError("across", f"is {across!r}, which no voice can steer", 'give "attention", or autopilot')
        require(noise_var >= 0, "noise_var", noise_var, "it is at least 0")
        require(0 <= dropout < 1, "dropout", dropout, "it is from 0 to below 1")
        self.mode, self.slots, self.segment, self.noise_var = mode, sources, segment, noise_var
        self.sources, self.voice_size = (0, features) if mode == "offline" else (sources, 0)
        self.encoder = Encoder(filters, (window,))
        self.min_samples = window
        self.min_enrolment = window + (segment - 1) * self.encoder.stride if mode == "offline" else 0
        self.norm = GlobalNorm(filters)
        self.bottleneck = nn.Conv1d(filters, features, 1, bias=False)

        def blocks(count: int, steered: bool = False) -> nn.ModuleList:
            return nn.ModuleList(
                GALRBlock(
                    features,
                    segment,
                    reduced,
                    hidden,
                    heads,
                    within=within,
                    across=across,
                    steering=Steering(steering, features, features) if steered else None,
                )
                for _ in range(count)
            )

        self.generic = blocks(generic)
        self.stimuli = blocks(stimuli, steered=mode != "autopilot")
        self.masks = GatedMasks(features, sources, filters)
        self.decoder = Decoder(filters, (window,))
        if mode != "autopilot":
            self.knowledge = blocks(knowledge)
            self.embedder = nn.Linear(features, sources * features)
            self.cross = CrossAttention(features)
            self.dropout = nn.Dropout(dropout)

    def forward(self, mixture: Tensor, voices: Tensor | None = None, real: Tensor | None = None) -> TunedIn:
        """Mixtures (B, S) to estimates (B, C, S), or, offline, (B, K, S) of K voices.

        Args:
            voices: offline, steering vectors (B, K, D), or features (B, K, S_j, D).
            real: (B, K, S_j) which of the features' segments count; all unless given.
        """
        encoded = self.encoder(mixture)
        frames = encoded[0].shape[-1]
        x, _ = self._generic(encoded[0], None)  # (B, S, K, D)
        if self.mode == "autopilot":
            for block in self.stimuli:
                x = block(x)
            return TunedIn(*self.decoder(encoded, [self.masks(x, frames)], mixture.shape[-1]))
        steering, attention = self._steering(x, voices, real)
        noisy = self._noisy(steering)
        count = steering.shape[1]
        y, voice = for_each_voice(x, noisy)
        for block in self.stimuli:
            y = block(y, voice)
        masks = self._own_masks(y, count, frames)
        (waveform,) = self.decoder(encoded, [masks], mixture.shape[-1])
        return TunedIn(waveform, steering=steering, noisy=noisy, attention=attention)

    def _generic(self, encoded: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames (N, filters, T) to generic features (N, S, K, D), and the segments (N, S) of the first samples."""
        if lengths is None:
            x, shown = self.bottleneck(self.norm(encoded)), None
        else:
            stride, window = self.encoder.stride, self.encoder.kernels[0]
            count = torch.div(lengths - window + stride - 1, stride, rounding_mode="floor") + 1  # frames of each
            real = torch.arange(encoded.shape[-1], device=encoded.device) < count.unsqueeze(1)
            x = self.bottleneck(_normalised(self.norm, encoded, real)).masked_fill(~real.unsqueeze(1), 0.0)
            shown = torch.div(2 * count + self.segment - 1, self.segment, rounding_mode="floor") + 1
        x = segmented(x.transpose(1, 2), self.segment)
        heard = None if shown is None else torch.arange(x.shape[1], device=x.device) < shown.unsqueeze(1)
        for block in self.generic:
            x = block(x, None, heard)
        return x, heard

    def _known(self, generic: Tensor, real: Tensor | None) -> Knowledge:
        x = generic
        for block in self.knowledge:
            x = block(x, None, real)
        features = self.embedder(x).mean(2).unflatten(-1, (self.slots, -1)).transpose(1, 2)  # (N, C, S, D)
        return Knowledge(generic.mean(2), features, real)

    def _steering(self, x: Tensor, voices: Tensor | None, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.mode == "online":
            known = self._known(x, None)
            steering, attention, _ = self.cross(known.query, known.features)
            return steering, attention
        if voices is None:
            raise ConfigError("voices", "are missing, which an offline model hears", "enrol some")
        if voices.ndim == 3:
            return voices, None
        steering, attention, _ = self.cross(x.mean(2), voices, real)
        return steering, attention

    def _noisy(self, steering: Tensor) -> Tensor:
        if not self.training:
            return steering
        noise = self.noise_var**0.5 * torch.randn_like(steering) if self.noise_var else 0.0
        noisy: Tensor = self.dropout(steering + noise)
        return noisy

    def _own_masks(self, segments: Tensor, count: int, frames: int) -> Tensor:
        """What the blocks found for each voice, (B * K, S, K, D), to masks (B, K, N, T)."""
        maps = self.masks.split(segments).unflatten(-1, (self.slots, -1))  # (B * K, S, K, C, D)
        if self.mode == "online":
            own = maps.unflatten(0, (-1, count)).diagonal(dim1=1, dim2=4).movedim(-1, 1).flatten(0, 1)
        else:
            own = maps.mean(3)
        return self.masks.gated(own, frames).squeeze(1).unflatten(0, (-1, count))

    def know(self, enrolment: Tensor, lengths: Tensor) -> Knowledge:
        """What enrolments (N, S), of which the first ``lengths`` (N,) samples are real, say of C speakers each.

        Raises:
            ConfigError: in autopilot, which knows nobody.
        """
        if self.mode == "autopilot":
            raise ConfigError("mode", "is autopilot, which knows no voices", 'give "online" or "offline"')
        lengths = lengths.clamp_min(self.encoder.kernels[0])
        heard = enrolment.masked_fill(torch.arange(enrolment.shape[-1], device=lengths.device) >= lengths[:, None], 0.0)
        heard = F.pad(heard, (0, max(0, self.min_enrolment - enrolment.shape[-1])))
        return self._known(*self._generic(self.encoder(heard)[0], lengths))

    def candidates(self, enrolment: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Steering vectors (N, C, D) of enrolments by their own queries, and the salience (N, C) of each."""
        known = self.know(enrolment, lengths)
        steering, _, salience = self.cross(known.query, known.features, known.real, known.real)
        return steering, salience

    def enrol(self, enrolment: Tensor, lengths: Tensor) -> Tensor:
        """The most salient of an enrolment's C candidates; where its speaker is known, the table tells better."""
        if self.mode != "offline":
            return super().enrol(enrolment, lengths)
        steering, salience = self.candidates(enrolment, lengths)
        rows = torch.arange(enrolment.shape[0], device=enrolment.device)
        return steering[rows, salience.argmax(1)]


def _normalised(norm: GlobalNorm, x: Tensor, real: Tensor) -> Tensor:
    """gLN of (N, C, T) by the statistics of the frames in ``real`` (N, T)."""
    x = _precise(x)
    shown = real.unsqueeze(1).to(x.dtype)  # (N, 1, T)
    count = x.shape[1] * shown.sum(-1, keepdim=True)
    centred = x - (shown * x).sum((1, 2), keepdim=True) / count
    variance = (shown * centred.square()).sum((1, 2), keepdim=True) / count
    return centred / (variance + norm.eps).sqrt() * norm.weight.unsqueeze(1) + norm.bias.unsqueeze(1)


class SpeakerTable(nn.Module):
    """Embeddings E of the training speakers, moving averages of their steering vectors (section 2.4).

    The table is a buffer: it is in every checkpoint, equal on all ranks, and a step that is not taken because of its
    gradient does not move it. ``alpha`` = softplus(a) starts at 1 / D, E at N(0, 1) / sqrt(D); neither is printed.

    Args:
        speakers: N, 2 or more.
        features: D.
        rate: epsilon of the moving average.
        gamma: of eq. 7.

    Attributes:
        drift: running mean of ||step|| / ||E|| of the speakers that move: below 0.01 it is stable, and may steer.

    Raises:
        ConfigError: fewer than two speakers.
    """

    embeddings: Tensor
    drift: Tensor

    def __init__(self, speakers: int, features: int, rate: float = 0.05, gamma: float = 3.0) -> None:
        super().__init__()
        if speakers < 2:
            raise ConfigError("speakers", f"are {speakers}", "two or more can be told apart")
        self.rate, self.gamma = rate, gamma
        self.scale = nn.Parameter(torch.tensor(math.log(math.expm1(1 / features))))  # a
        self.register_buffer("embeddings", torch.randn(speakers, features) / math.sqrt(features))
        self.register_buffer("drift", torch.tensor(math.inf))

    def forward(self, steering: Tensor) -> Tensor:
        """Z (..., D) to logits (..., N): log f(Z, E_i) = -alpha ||Z - E_i||^2, eq. 6, in float32."""
        with torch.autocast(steering.device.type, enabled=False):
            z = _precise(steering)
            table = self.embeddings.detach().to(z.dtype, copy=True)  # the step that follows may move it in place
            squares = z.square().sum(-1, keepdim=True) - 2 * z @ table.mT + table.square().sum(-1)
            return -F.softplus(self.scale) * squares

    def regulariser(self, steering: Tensor, labels: Tensor) -> Tensor:
        """Eq. 7, for Z (..., D) of speakers (...), of which -1 are not counted.

        E is no parameter, so the gradient goes through what Z makes of it: E'_j = (1 - epsilon) E_j + epsilon Z_j in
        place of E_j, against all the other E as they are.
        """
        with torch.autocast(steering.device.type, enabled=False):
            z, classes = _precise(steering).flatten(0, -2), labels.flatten()
            known = classes != NOBODY
            classes = classes.clamp_min(0)
            table = self.embeddings.detach().to(z.dtype, copy=True)
            moved = (1 - self.rate) * table[classes] + self.rate * z  # (n, D)
            distances = (moved.unsqueeze(1) - table).abs().sum(-1)  # (n, N)
            own = F.one_hot(classes, len(table)).bool()
            nearest = distances.masked_fill(own, torch.inf).amin(1).clamp_min(LEAST_DISTANCE)
            return -(known * nearest.log()).sum() / (self.gamma * known.sum().clamp_min(1))

    @torch.no_grad()
    def commit(self, steering: Tensor, labels: Tensor) -> None:
        """Move E by Z (..., D) of speakers (...), on all ranks alike: E_j += epsilon (Z_j - E_j), n times for n of j.

        Several Z of one speaker at once count as their mean, so that their order does not matter.
        """
        z, classes = steering.float().flatten(0, -2), labels.flatten()
        known = classes != NOBODY
        sums = torch.zeros(len(self.embeddings), z.shape[1] + 1, device=z.device)
        sums.index_add_(0, classes[known], F.pad(z[known], (0, 1), value=1.0))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        count, seen = sums[:, -1], sums[:, -1] > 0
        share = (1 - (1 - self.rate) ** count).unsqueeze(1)
        step = share * (sums[:, :-1] / count.clamp_min(1).unsqueeze(1) - self.embeddings)
        if not seen.any():
            return
        sizes = torch.linalg.vector_norm(self.embeddings[seen], dim=1).clamp_min(LEAST_DISTANCE)
        moved = (torch.linalg.vector_norm(step[seen], dim=1) / sizes).mean()
        self.drift.copy_(torch.where(self.drift.isinf(), moved, SETTLING * self.drift + (1 - SETTLING) * moved))
        self.embeddings += step


@dataclass(frozen=True)
class TuneInWeights:
    """Weights of section 2.4, and which space has the say in the order of speakers.

    Attributes:
        speaker: lambda; 0 for separation alone.
        regulariser: of eq. 7 within the speaker loss; 0 is the last row of table 2.
        steered: the speaker loss finds who is who, and the separation is PIT-free (section 5.7); before, u-PIT on
            SI-SNR does.
    """

    speaker: float = 10.0
    regulariser: float = 1.0
    steered: bool = False


def tune_in_loss(
    tuned: TunedIn, targets: Tensor, labels: Tensor, table: SpeakerTable, weights: TuneInWeights | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative SI-SNR, and lambda times Tune-InCE (eq. 5) with its regulariser (eq. 7); the parts by name.

    Tune-InCE hears Z with its noise and the E of before; the regulariser and the table's move, which follows in
    training, are by Z without noise. Mixtures with speakers who are not trained on are never steered.

    Args:
        tuned: of an online model.
        targets: (B, C, S).
        labels: (B, C) place in the table of each target's speaker, -1 for none.
    """
    weights = weights or TuneInWeights()
    if tuned.steering is None or tuned.noisy is None:
        raise ConfigError("mode", "is autopilot, which has no speaker loss", "train it by si_sdr")
    known = labels != NOBODY
    chances = table(tuned.noisy).log_softmax(-1)  # (B, C, N)
    costs = -torch.take_along_dim(chances, labels.clamp_min(0).unsqueeze(1), dim=2)  # (B, C estimates, C targets)
    if weights.steered and bool(known.all()):
        order = best_order(costs)
        separation = -si_sdr(torch.take_along_dim(tuned.waveform, order.unsqueeze(-1), dim=1), targets).mean()
    else:
        losses = pairwise(lambda estimate, target: -si_sdr(estimate, target), tuned.waveform, targets)
        order = best_order(losses)  # (B, C) the estimate of each target
        separation = losses.gather(1, order.unsqueeze(1)).mean()
    contrast = (known * costs.gather(1, order.unsqueeze(1)).squeeze(1)).sum() / known.sum().clamp_min(1)
    steering = torch.take_along_dim(tuned.steering, order.unsqueeze(-1), dim=1)
    spread = table.regulariser(steering, labels)
    loss = separation + weights.speaker * (contrast + weights.regulariser * spread)
    if table.training:
        table.commit(steering.detach(), labels)
    parts = {"separation_loss": separation, "tune_ince_loss": contrast, "regulariser": spread}
    return loss, {name: value.detach() for name, value in parts.items()} | {"drift": table.drift.clone()}


@torch.no_grad()
def adopt(model: TuneIn, tensors: Mapping[str, Tensor]) -> list[str]:
    """Begin with the weights of a model of an earlier mode; names of the tensors that it did not have.

    Raises:
        BundleError: tensors that are missing or too many for any other reason than the mode, or of another shape.
    """
    own = model.state_dict()
    new = [name for name in own if name not in tensors]
    odd = [name for name in new if not (name.startswith(SPEAKER_PARTS) or ".steering." in name)]
    odd += [name for name, value in tensors.items() if name not in own or own[name].shape != value.shape]
    if odd:
        fault = f"does not fit this model at {len(odd)} tensors, {odd[0]!r} first"
        raise BundleError("the earlier model", fault, "keep all sizes from mode to mode")
    model.load_state_dict({**own, **tensors})
    return new


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
