"""USED: the voices of known speakers and when each of them speaks, in one network (Ao et al., "USED", 2024).

Equations, tables and algorithm 1 are those of "USED: Universal Speaker Extraction and Diarization". A training step::

    voices = model.enrol(enrolments, lengths)  # (B * L, D) of all L speakers of each mixture
    slots = model.assign(voices.unflatten(0, (B, L)), present, identities)
    heard = model.hear(mixture, slots.embeddings)
    loss, parts = used_loss(heard, slots, sources, speaking, rate, model.frame, ...)

All of it belongs in the forward pass of one module, since the slots hold parameters of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from speakerkit.config import require
from speakerkit.errors import ConfigError, DataError
from speakerkit.extraction.filters import Decoder, Encoder
from speakerkit.extraction.losses import SCALE_WEIGHTS, ScenarioWeights, multi_scale, scenario_loss
from speakerkit.extraction.registry import Extracted, Extractor, register_extractor
from speakerkit.extraction.spex_plus import SpeakerEncoder
from speakerkit.nn.conditioning import Conditioning, for_each_voice
from speakerkit.nn.tcn import EPS, TemporalStack
from speakerkit.nn.time_context import ChannelNorm

NOBODY = -1  # class of a speaker who is not trained on


@dataclass(frozen=True, eq=False)
class Diarized(Extracted):
    """Estimates, and who speaks when.

    Attributes:
        logits: (B, K, M) of the activity in each frame, by the decoder after each joint block (``D^j``), the last one
            being what counts; none of a model for extraction alone.
    """

    logits: tuple[Tensor, ...] = ()

    @property
    def activity(self) -> Tensor:
        """(B, K, M) probability that each voice speaks in each frame."""
        return torch.sigmoid(self.logits[-1].float())


@dataclass(frozen=True, eq=False)
class Slots:
    """What the network is asked, and for whom: k' slots, the last of which is the residual one where there is one.

    Attributes:
        embeddings: (B, k', D).
        members: (B, k', L) bool: of whose speech, of the mixture's L speakers, the output of each slot is the sum.
    """

    embeddings: Tensor
    members: Tensor

    def targets(self, sources: Tensor) -> Tensor:
        """Each speaker's speech (B, L, S) to each slot's (B, k', S)."""
        return (self.members.unsqueeze(-1) * sources.unsqueeze(1)).sum(2)

    def active(self, speaking: Tensor) -> Tensor:
        """When each speaker speaks, (B, L, *), to when any of each slot's does, (B, k', *) bool."""
        return (self.members.unsqueeze(-1) & speaking.bool().unsqueeze(1)).any(2)

    def interfering(self, speaking: Tensor) -> Tensor:
        """When each speaker speaks, (B, L, *), to when any speaks who is not of the slot, (B, k', *) bool."""
        return (~self.members.unsqueeze(-1) & speaking.bool().unsqueeze(1)).any(2)


@dataclass(frozen=True)
class Chances:
    """Probabilities of algorithm 1, by the paper's names.

    Attributes:
        p_em: that a blank slot holds the empty embedding, not somebody's who is not in the mixture.
        p_sel: that a speaker who is there is NOT selected: the algorithm compares so, although it calls it otherwise,
            and USED-F, which always selects, has 0.
        p_res: that the residual slot holds the residual embedding although all are selected. The algorithm prints the
            comparison the other way round, which table V contradicts (p_res = 1 there does as if the network never saw
            an empty residual slot); to follow the print give 1 - p_res.
    """

    p_em: float = 0.3
    p_sel: float = 0.5
    p_res: float = 0.9

    def __post_init__(self) -> None:
        for name in ("p_em", "p_sel", "p_res"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "it is from 0 to 1")


class EmbeddingAssignment(nn.Module):
    """Which embedding stands in which slot (section III-E): active, blank, and residual ones.

    Args:
        size: D.
        count: k.
        residual: whether a further slot takes the speakers that are not selected.
    """

    def __init__(self, size: int, count: int, residual: bool) -> None:
        super().__init__()
        self.count = count
        self.empty = nn.Parameter(torch.randn(size) / size**0.5)  # V_em
        self.residual = nn.Parameter(torch.randn(size) / size**0.5) if residual else None  # V_res

    def known(self, voices: Tensor, complete: bool) -> Tensor:
        """Slots (B, k', D) for voices (B, K, D), K from 1 to k, in their order, and empty ones after them.

        Args:
            complete: nobody else speaks in the mixture, so that the residual slot is empty too.
        """
        place = torch.arange(self.count, device=voices.device)
        last = torch.arange(voices.shape[1], device=voices.device)[-1]  # a tensor: an exporter fixes a size here
        filled = voices[:, torch.minimum(place, last)]
        slots = torch.where((place <= last).view(1, -1, 1), filled, self.empty.to(voices.dtype))
        if self.residual is None:
            return slots
        rest = (self.empty if complete else self.residual).to(voices.dtype)
        return torch.cat([slots, rest.expand(voices.shape[0], 1, -1)], dim=1)

    def forward(
        self,
        voices: Tensor,
        present: Tensor,
        identities: Tensor,
        chances: Chances,
        generator: torch.Generator | None = None,
    ) -> Slots:
        """Algorithm 1, for a batch at once, with ``count < k`` where it prints ``count <= k``.

        Speakers who are not in a mixture are taken from the other mixtures of the batch, without gradient. Where more
        than k are selected, the others belong to the residual slot.

        Args:
            voices: (B, L, D) of the speakers of each mixture.
            present: (B, L) whether each speaks in it.
            identities: (B, L) integers, equal for the same speaker in any mixture; negative ones stand for no speaker
                (their ``present`` is false), where mixtures of fewer speakers are filled up.
            generator: of all chance, on the CPU; torch's own unless given.
        """
        batch, speakers = present.shape
        rows = torch.arange(batch, device=voices.device).unsqueeze(1)

        def drawn(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(voices.device)

        selected = present & (drawn(batch, speakers) >= chances.p_sel)
        first = torch.argsort(drawn(batch, speakers) + 2 * ~selected, dim=1)  # the selected ones first, in any order
        shuffled = torch.argsort(drawn(batch, self.count), dim=1)  # the slot of each
        most = min(self.count, speakers)
        taken = torch.arange(most, device=voices.device) < selected.sum(1, keepdim=True)  # (B, most)
        members = torch.zeros(batch, self.count, speakers, dtype=torch.bool, device=voices.device)
        members[rows, shuffled[:, :most], first[:, :most]] = taken

        active = voices[rows, members.int().argmax(2)]
        pool, names = voices.detach().flatten(0, 1), identities.flatten()  # (B * L)
        absent = (names >= 0) & (identities.unsqueeze(2) != names).all(1)  # (B, B * L)
        keys = drawn(batch, self.count, len(names)).masked_fill(~absent.unsqueeze(1), -1.0)
        others = pool[keys.argmax(2)]
        blank = (drawn(batch, self.count) < chances.p_em) | ~absent.any(1, keepdim=True)
        blanks = torch.where(blank.unsqueeze(2), self.empty.to(voices.dtype), others)
        slots = torch.where(members.any(2, keepdim=True), active, blanks)
        if self.residual is None:
            return Slots(slots, members)

        left = present & ~members.any(1)  # (B, L)
        used = left.any(1) | (drawn(batch) < chances.p_res)
        last = torch.where(used.unsqueeze(1), self.residual.to(voices.dtype), self.empty.to(voices.dtype))
        return Slots(torch.cat([slots, last.unsqueeze(1)], dim=1), torch.cat([members, left.unsqueeze(1)], dim=1))


class DiarizationDecoder(nn.Module):
    """Joint features to logits of each slot in each frame (section III-G), with a sigmoid to come.

    The paper has a softmax, which over slots would leave no overlap to BCE.
    """

    def __init__(self, features: int, slots: int, kernel: int) -> None:
        super().__init__()
        self.down_sampling = nn.Conv1d(features, features, kernel, kernel // 2)
        self.linear = nn.Linear(features, slots)

    def forward(self, joint: Tensor) -> Tensor:
        """(B, C, T) to (B, k', M)."""
        logits: Tensor = self.linear(self.down_sampling(joint).transpose(1, 2))
        return logits.transpose(1, 2)


class Interaction(nn.Module):
    """How loud an output may be at each sample, by the diarization (section III-H): r of eq. 5.

    ReLU must not close for good, which would be silence without gradient. A drawn convolution is as likely as not to
    be negative, so this one begins as a moving mean. And since SI-SDR does not mind the scale of the output but the
    power of quiet parts does, r shrinks before the diarization has learnt anything; weights of 1, with the sum over
    L^im divided by it, make steps of one size for all parameters small ones here. In float32: r multiplies waveforms.

    Args:
        kernel: L^im, samples.
        frame: samples of a frame.
    """

    def __init__(self, kernel: int, frame: int) -> None:
        super().__init__()
        self.kernel, self.frame = kernel, frame
        self.conv = nn.Conv1d(1, 1, kernel)
        weight, bias = self.conv.parameters()
        nn.init.ones_(weight)
        nn.init.zeros_(bias)

    def forward(self, logits: Tensor, samples: int) -> Tensor:
        """Logits (B, k', M), through which no gradient goes back, to r (B, k', S), S being ``samples``."""
        with torch.autocast(logits.device.type, enabled=False):
            gate = gates(logits, samples, self.frame).flatten(0, 1).unsqueeze(1)  # (B * k', 1, S)
            before = (self.kernel - 1) // 2
            padded = F.pad(gate, (before, self.kernel - 1 - before), mode="replicate")
            r: Tensor = torch.relu(self.conv(padded)) / self.kernel
        return r.squeeze(1).unflatten(0, logits.shape[:2])


def gates(logits: Tensor, samples: int, frame: int) -> Tensor:
    """Probabilities of logits (B, k', M), without gradient, at each of the samples: (B, k', S) in float32.

    Linear between the centres of frames, and constant before the first and after the last.
    """
    p = torch.sigmoid(logits.detach().float()).unsqueeze(-1)  # (B, k', M, 1)
    earlier, later = torch.cat([p[:, :, :1], p[:, :, :-1]], dim=2), torch.cat([p[:, :, 1:], p[:, :, -1:]], dim=2)
    place = (torch.arange(frame, device=p.device) + 0.5) / frame - 0.5  # in frames, from the centre of one
    between = (p + place.clamp_min(0) * (later - p) - place.clamp_max(0) * (earlier - p)).flatten(2)
    return F.pad(between, (0, samples - between.shape[-1]))  # not [..., :samples], of which an exporter forgets it


@register_extractor("used")
class USED(Extractor):
    """USED (section III); without a residual slot, and trained with p_sel = 0, it is USED-F.

    k' = k slots, and one more for whoever else speaks where ``residual``. N^t stacks of temporal blocks hear the
    mixture with each slot's embedding by itself; what they make of all slots is joined, and N^t further stacks hear
    that. Masks come from the last of these; a diarization decoder with the same weights listens to each of them.

    The mixture is filled up so that frame m of the diarization has its centre in the middle of samples ``m * frame`` to
    ``(m + 1) * frame``: at 16 kHz and the paper's sizes, 160 M + 170 samples give exactly M = ceil(S / 160) frames of
    10 ms. Channels of the residual blocks are not printed; those here bring the model to 18.34 M parameters at k = 3.

    As an :class:`Extractor`, it takes 1 to k voices: in whichever order, the outputs are the same in that order.

    Args:
        voice_size: D of voices that are embeddings from elsewhere; 0 for the speaker encoder of section III-D, which
            makes voices of C values.
        count: k, the most speakers that it extracts at once.
        residual: whether there is a slot for all others.
        task: "both", or one alone. A model for "extraction" has no diarization decoder, and no interaction. One for
            "diarization" has no masks: its outputs are the mixture, as loud as the activity is probable.
        interaction: whether eq. 5 multiplies the outputs by what the diarization says.
        filters: C of each scale of the encoder.
        kernels: L1, L2, L3 of encoder and decoder, samples.
        features: C of the separator.
        hidden: channels of the depthwise convolutions.
        kernel: their frames.
        blocks: N^b, temporal layers of each stack.
        stacks: N^t, before and after the slots are joined.
        res_channels: of the N^r residual blocks of the speaker encoder.
        frame_kernel: L^diar, frames of the encoder; the stride is half of it.
        gate_kernel: L^im, samples.
        conditioning: how an embedding enters each of the first stacks, a kind of :class:`Conditioning`.
        checkpointed: whether stacks are computed again for the gradient: slower, with less memory in training.

    Attributes:
        frame: samples of a frame of the diarization.

    Raises:
        ConfigError: sizes of nothing, or odd ones where a half is taken.
    """

    def __init__(
        self,
        voice_size: int = 0,
        count: int = 3,
        residual: bool = True,
        task: Literal["both", "extraction", "diarization"] = "both",
        interaction: bool = True,
        filters: int = 256,
        kernels: Sequence[int] = (20, 80, 160),
        features: int = 256,
        hidden: int = 512,
        kernel: int = 3,
        blocks: int = 8,
        stacks: int = 3,
        res_channels: Sequence[int] = (256, 256, 512, 512),
        frame_kernel: int = 32,
        gate_kernel: int = 16,
        conditioning: str = "concatenate",
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        if stacks < 1 or count < 1 or gate_kernel < 1:
            sizes = f"{count}, {stacks} and {gate_kernel}"
            raise ConfigError("count, stacks and gate_kernel", f"are {sizes}", "give 1 or more")
        if frame_kernel < 2 or frame_kernel % 2:
            raise ConfigError("frame_kernel", f"is {frame_kernel}", "it is even")
        if task not in ("both", "extraction", "diarization"):
            raise ConfigError("task", f"is {task!r}", 'it is "both", "extraction" or "diarization"')
        self.voice_size, self.count, self.checkpointed = voice_size or features, count, checkpointed
        self.encoder = Encoder(filters, kernels)
        self.min_samples = kernels[0]
        self.frame_kernel, self.frame = frame_kernel, self.encoder.stride * frame_kernel // 2
        slots, encoded = count + residual, filters * len(kernels)
        self.assignment = EmbeddingAssignment(self.voice_size, count, residual)
        self.bottleneck = nn.Sequential(ChannelNorm(encoded, EPS), nn.Conv1d(encoded, features, 1))

        def stack(hears: Conditioning | None) -> TemporalStack:
            return TemporalStack(features, hidden, kernel, blocks, conditioning=hears)

        self.slot_stacks = nn.ModuleList(
            stack(Conditioning(conditioning, features, self.voice_size)) for _ in range(stacks)
        )
        self.join = nn.Conv1d(slots * features, features, 1)
        self.joint_stacks = nn.ModuleList(stack(None) for _ in range(stacks))
        self.diarization = None if task == "extraction" else DiarizationDecoder(features, slots, frame_kernel)
        extracts = task != "diarization"
        self.masks = nn.ModuleList(nn.Conv1d(features, slots * filters, 1) for _ in kernels) if extracts else None
        self.decoder = Decoder(filters, kernels) if extracts else None
        self.interaction = Interaction(gate_kernel, self.frame) if task == "both" and interaction else None
        self.speaker_encoder = None if voice_size else SpeakerEncoder(encoded, features, res_channels)
        if self.speaker_encoder is not None:
            self.min_enrolment = self.speaker_encoder.shortest(self.encoder)

    def enrol(self, enrolment: Tensor, lengths: Tensor) -> Tensor:
        if self.speaker_encoder is None:
            return super().enrol(enrolment, lengths)
        return self.speaker_encoder.hear(self.encoder, enrolment, lengths)

    def assign(
        self,
        voices: Tensor,
        present: Tensor,
        identities: Tensor,
        chances: Chances | None = None,
        generator: torch.Generator | None = None,
    ) -> Slots:
        """Slots to train on; see :class:`EmbeddingAssignment`."""
        slots: Slots = self.assignment(voices, present, identities, chances or Chances(), generator)
        return slots

    def forward(self, mixture: Tensor, voices: Tensor, complete: bool = False) -> Diarized:
        """Mixtures (B, S) and voices (B, K, D), K from 1 to k, to outputs of those K.

        Voices go to the slots by their sum of values, since training shuffles slots but weights differ between them.

        Args:
            complete: nobody else is in the mixture ("m is all", section V-D).

        Raises:
            DataError: more than k voices.
        """
        if voices.shape[1] > self.count:
            fault = f"is told {voices.shape[1]} voices, {self.count} at once are the most"
            raise DataError("the model", fault, "give fewer at a time")
        order = torch.argsort(voices.sum(-1), dim=1)
        rows = torch.arange(voices.shape[0], device=voices.device).unsqueeze(1)
        heard = self.hear(mixture, self.assignment.known(voices[rows, order], complete))
        back = torch.argsort(order, dim=1)  # (B, K) the slot of each

        def own(outputs: Tensor) -> Tensor:
            return outputs[rows, back]

        scales, logits = (tuple(own(each) for each in parts) for parts in (heard.scales, heard.logits))
        return Diarized(own(heard.waveform), scales, logits=logits)

    def hear(self, mixture: Tensor, embeddings: Tensor) -> Diarized:
        """Mixtures (B, S) and embeddings of all slots (B, k', D) to outputs of all slots."""
        samples = mixture.shape[-1]
        before, after = self._filling(samples)
        encoded = self.encoder(F.pad(mixture, (before, after)))
        x, embedding = for_each_voice(self.bottleneck(torch.cat(encoded, dim=1)), embeddings)  # (B * k', C, T)
        for stack in self.slot_stacks:
            x = self._stacked(stack, x, embedding)
        x = self.join(x.unflatten(0, embeddings.shape[:2]).flatten(1, 2))  # (B, C, T)
        joint = []
        for stack in self.joint_stacks:
            x = self._stacked(stack, x)
            joint.append(x)
        logits = () if self.diarization is None else tuple(self.diarization(each) for each in joint)
        waveforms = self._waveforms(mixture, encoded, x, before, logits)
        return Diarized(waveforms[0], tuple(waveforms[1:]), logits=logits)

    def _filling(self, samples: int) -> tuple[int, int]:
        """Zeros before and after so many samples."""
        stride = self.encoder.stride
        margin = stride * (self.frame_kernel // 2 - 1) + self.encoder.kernels[0]  # beyond M whole frames
        return margin // 2, margin - margin // 2 + -samples % self.frame

    def _stacked(self, stack: nn.Module, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        if self.checkpointed and self.training and torch.is_grad_enabled():
            x, _ = checkpoint(stack, x, embedding, use_reentrant=False, preserve_rng_state=False)
        else:
            x, _ = stack(x, embedding)
        return x

    def _waveforms(
        self, mixture: Tensor, encoded: Sequence[Tensor], joint: Tensor, before: int, logits: Sequence[Tensor]
    ) -> list[Tensor]:
        """(B, k', S) of each scale: masks, transposed convolutions, and eq. 5."""
        samples = mixture.shape[-1]
        if self.masks is None or self.decoder is None:
            return [mixture.unsqueeze(1) * gates(logits[-1], samples, self.frame)]
        slots = self.join.in_channels // self.join.out_channels
        masks = [torch.relu(mask(joint)).unflatten(1, (slots, -1)) for mask in self.masks]
        waveforms = [each[..., before:] for each in self.decoder(encoded, masks, before + samples)]
        if self.interaction is None:
            return waveforms
        loudness = self.interaction(logits[-1], samples)
        return [loudness * each for each in waveforms]


def frame_labels(speaking: Tensor, frame: int) -> Tensor:
    """Whether one speaks at the centre of each frame: (..., S) to (..., M), M = ceil(S / frame).

    As :func:`speakerkit.diarization.activity.activity` has it of turns.
    """
    samples = speaking.shape[-1]
    centres = frame * torch.arange(-(-samples // frame), device=speaking.device) + frame // 2
    return speaking[..., centres.clamp(max=samples - 1)]


@dataclass(frozen=True)
class UsedWeights:
    """Weights of the losses.

    The heads of table IV, and section V-F, exchange those of the scenarios; eq. 9 and section IV-C agree on these.

    Attributes:
        extraction: lambda_1; 0, and a model whose task is "diarization", is "only SD" of table VI.
        diarization: lambda_2; 0, and a model whose task is "extraction", is "only SE".
        speaker: lambda_3.
        scales: mu, of the decoders.
        scenarios: alpha to delta of eq. 9.
    """

    extraction: float = 1.0
    diarization: float = 1.0
    speaker: float = 1.0
    scales: tuple[float, ...] = SCALE_WEIGHTS
    scenarios: ScenarioWeights = field(default_factory=ScenarioWeights)


def used_loss(
    heard: Diarized,
    slots: Slots,
    sources: Tensor,
    speaking: Tensor,
    rate: int,
    frame: int,
    speakers: tuple[Tensor, Tensor] | None = None,
    weights: UsedWeights | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of eq. 6, and its parts by name.

    ``extraction_loss`` is eq. 9, the mean over slots of the scenario-aware loss; ``diarization_loss`` eq. 11, the sum
    over joint stacks of the mean over slots of BCE; ``speaker_loss`` eq. 12. Halves are reckoned in float32.

    Args:
        heard: outputs of all slots.
        sources: (B, L, S) of all speakers of the mixtures, zeros where there is none.
        speaking: (B, L, S) 1 where each speaks.
        rate: Hz.
        frame: samples, of the model.
        speakers: logits (B, L, classes) of the training speakers, by the speakers' own voices, and the classes (B, L),
            of which -1 is not counted.
    """
    weights = weights or UsedWeights()
    parts: dict[str, Tensor] = {}
    if weights.extraction:
        own, other = slots.active(speaking), slots.interfering(speaking)

        def by_scenario(estimate: Tensor, target: Tensor) -> Tensor:
            return scenario_loss(estimate, target, own, other, rate, weights.scenarios)

        scales = weights.scales if heard.scales else (1.0,)
        estimates = (heard.waveform, *heard.scales)
        parts["extraction"] = multi_scale(by_scenario, estimates, slots.targets(sources), scales).mean()
    if weights.diarization and heard.logits:
        labels = slots.active(frame_labels(speaking, frame)).float()
        entropies = [F.binary_cross_entropy_with_logits(each.float(), labels) for each in heard.logits]
        parts["diarization"] = torch.stack(entropies).sum()
    if weights.speaker and speakers is not None and (speakers[1] != NOBODY).any():
        logits, classes = (each.flatten(0, 1) for each in speakers)
        parts["speaker"] = F.cross_entropy(logits.float(), classes, ignore_index=NOBODY)
    loss = torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
    return loss, {f"{name}_loss": value.detach() for name, value in parts.items()}
