"""What a blind separator makes of a directory of mixtures, each estimate under the name of one target.

Of the target whose reference it is nearest to by SI-SDR, which no user could know; or, with an embedding model, of the
target whose enrolment it is most like. Mixtures without a target that is in them are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from tqdm import tqdm

from speakerkit.audio import load_audio
from speakerkit.data.lists import write_table
from speakerkit.data.mixing.lists import Target, read_mixture_dir, target_key
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.embedding.extract import write_failures
from speakerkit.errors import AudioError, BundleError, DataError, PartialFailure, SpeakerKitError, first_line
from speakerkit.extraction.bundle import ExtractionBundle, read_extractor
from speakerkit.extraction.losses import pairwise, si_sdr
from speakerkit.extraction.model import Conditioned, open_conditioned

FAULTS = (SpeakerKitError, OSError, MemoryError)  # of one mixture or target, the others are done
Signals = np.ndarray  # (K, samples)


def main() -> None:
    """Write ``KEY.wav`` of every target that is in its mixture, ``wav.scp``, and ``failed.tsv`` where some fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mixtures", type=Path, help="directory with wav.scp, ref.scp and enroll.scp")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--embedder", type=Path, help="embedding model that tells the estimates by the enrolments")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    bundle = read_extractor(options.model)
    if bundle.config.voices != "none":
        raise DataError(bundle.path, "is told whom to hear", "use `speakerkit extract`")
    model, rate = open_conditioned(bundle).to(options.device), bundle.config.sample_rate
    embedder = load(options.embedder, options.device) if options.embedder else None
    options.out.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    failures: dict[str, str] = {}
    listed = read_mixture_dir(options.mixtures)
    for mixture in tqdm(listed, unit="mixture", desc="separate", disable=not sys.stderr.isatty()):
        targets = {target_key(mixture.key, each.speaker): each for each in mixture.targets if each.reference}
        voices = _voices(targets, rate, embedder, failures)
        if not voices:
            continue
        try:
            estimates = _estimates(bundle, model, mixture.wav)
            likeness = _likeness(estimates, list(voices.values()), rate, embedder)
        except FAULTS as error:
            failures |= dict.fromkeys(voices, _reason(error))
            continue
        keys = list(voices)
        for number, target in zip(*linear_sum_assignment(likeness, maximize=True), strict=True):
            written[keys[target]] = str((options.out / f"{keys[target]}.wav").absolute())
            wavfile.write(written[keys[target]], rate, estimates[number])
    write_table(options.out / "wav.scp", written)
    _tell(options.out / "failed.tsv", written, failures)


def _voices(
    targets: dict[str, Target], rate: int, embedder: Embedder | None, failures: dict[str, str]
) -> dict[str, np.ndarray]:
    """What tells each target: its reference (samples,), or the embedding (D,) of its enrolment."""
    found = {}
    for key, target in targets.items():
        try:
            if embedder is None:
                found[key] = load_audio(target.reference, rate).samples
            else:
                found[key] = embedder.embed(target.enrolment, short="pad")
        except FAULTS as error:
            failures[key] = _reason(error)
    return found


def _estimates(bundle: ExtractionBundle, model: Conditioned, mixture: str) -> Signals:
    samples = torch.from_numpy(load_audio(mixture, bundle.config.sample_rate).samples)
    heard = F.pad(samples, (0, max(0, model.extractor.min_samples - len(samples))))
    try:
        with torch.no_grad():
            found = model(heard[None].to(next(model.parameters()).device)).waveform[0].cpu().numpy()
    except RuntimeError as error:
        raise BundleError(bundle.path, f"fails on {mixture} ({first_line(error)})", "give shorter mixtures") from None
    if not np.isfinite(found).all():
        raise BundleError(bundle.path, f"gives samples that are not finite for {mixture}", "check the model")
    return np.asarray(found[:, : len(samples)])


def _likeness(estimates: Signals, voices: Sequence[np.ndarray], rate: int, embedder: Embedder | None) -> np.ndarray:
    """(estimates, targets): SI-SDR in dB, or cosine; -1 of what cannot be embedded, such as silence."""
    if embedder is None:
        if any(len(voice) != estimates.shape[1] for voice in voices):
            raise DataError("ref.scp", "names a reference that is not as long as its mixture", "make it anew")
        references = torch.from_numpy(np.stack(voices))
        return pairwise(si_sdr, torch.from_numpy(estimates)[None], references[None])[0].numpy()
    likeness = np.full((len(estimates), len(voices)), -1.0)
    for number, estimate in enumerate(estimates):
        try:
            heard = embedder.embed(estimate, rate=rate, short="pad")
        except AudioError:
            continue
        lengths = np.linalg.norm(heard) * np.linalg.norm(voices, axis=1)
        likeness[number] = np.stack(voices) @ heard / lengths
    return likeness


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _tell(path: Path, written: dict[str, str], failures: dict[str, str]) -> None:
    path.unlink(missing_ok=True)
    write_failures(path, failures, failures)
    if failures:
        kind, total = PartialFailure if written else DataError, len(written) + len(failures)
        fault = f"{len(failures)} of {total} voices failed, the first: {next(iter(failures.values()))}"
        raise kind(path, fault, "mend them and run this again")
    if not written:
        raise DataError(path.parent, "would hold no voices: no target is in its mixture", "check ref.scp")


if __name__ == "__main__":
    try:
        main()
    except SpeakerKitError as error:
        print(f"separate.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
