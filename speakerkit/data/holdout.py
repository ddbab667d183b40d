"""Held-out utterances of training speakers, and trials on them, to watch a training by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speakerkit.data.lists import Utterance, write_utterance_list
from speakerkit.data.trials import write_trial_list

MIN_UTTERANCES = 3  # one is held out, at least two remain to train on


@dataclass(frozen=True)
class Holdout:
    """A training list cut in two.

    Attributes:
        train: what remains.
        valid: one utterance of each chosen speaker.
        trials: (held-out key, training key, same speaker) over the chosen speakers.
    """

    train: list[Utterance]
    valid: list[Utterance]
    trials: list[tuple[str, str, bool]]


def hold_out(utterances: Iterable[Utterance], speakers: int, seed: int) -> Holdout:
    """Hold out one utterance of each of up to ``speakers`` speakers that have three or more.

    Every speaker stays in training; where none has three, nothing is held out. The trials pair each held-out utterance
    with all training utterances of the chosen speakers; since these were trained on, their EER shows progress and is no
    result.
    """
    utterances = list(utterances)
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda utterance: utterance.key):
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    eligible = sorted(speaker for speaker, items in by_speaker.items() if len(items) >= MIN_UTTERANCES)
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(eligible)[:speakers].tolist())
    valid = [by_speaker[speaker][int(rng.integers(len(by_speaker[speaker])))] for speaker in chosen]
    held_out = {utterance.key for utterance in valid}
    remaining = [utterance for speaker in chosen for utterance in by_speaker[speaker] if utterance.key not in held_out]
    trials = [
        (utterance.key, other.key, utterance.speaker == other.speaker) for utterance in valid for other in remaining
    ]
    return Holdout([utterance for utterance in utterances if utterance.key not in held_out], valid, trials)


def write_holdout(cut: Holdout, folder: Path) -> None:
    """Write ``train.list``, and ``valid.list`` and ``valid.trials`` where there are such; earlier ones are replaced."""
    write_utterance_list(folder / "train.list", cut.train)
    valid, trials = folder / "valid.list", folder / "valid.trials"
    valid.unlink(missing_ok=True)
    trials.unlink(missing_ok=True)
    if cut.valid:
        write_utterance_list(valid, cut.valid)
    if cut.trials:
        write_trial_list(trials, cut.trials)
