"""What a blind separator makes of a directory of mixtures, each estimate under the name of one target.

Of the target whose reference it is nearest to by SI-SDR, which no user could know; or, with an embedding model, of the
target whose enrolment it is most like.
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
from tqdm import tqdm

from speakerkit.audio import load_audio
from speakerkit.data.lists import write_table
from speakerkit.data.mixing.lists import ListedMixture, read_mixture_dir, target_key
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.errors import DataError, SpeakerKitError
from speakerkit.extraction.bundle import read_extractor
from speakerkit.extraction.losses import pairwise, si_sdr
from speakerkit.extraction.model import open_conditioned

Signals = np.ndarray  # (K, samples)


def main() -> None:
    """Write ``KEY.wav`` of every target that is in its mixture, and ``wav.scp``."""
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
    written = {}
    listed = read_mixture_dir(options.mixtures)
    for mixture in tqdm(listed, unit="mixture", desc="separate", disable=not sys.stderr.isatty()):
        samples = torch.from_numpy(load_audio(mixture.wav, rate).samples)
        with torch.no_grad():
            estimates = model(samples[None].to(options.device)).waveform[0].cpu().numpy()
        for key, estimate in _told(mixture, estimates, rate, embedder).items():
            written[key] = str((options.out / f"{key}.wav").absolute())
            wavfile.write(written[key], rate, estimate)
    write_table(options.out / "wav.scp", written)


def _told(mixture: ListedMixture, estimates: Signals, rate: int, embedder: Embedder | None) -> dict[str, Signals]:
    """An estimate of each target, as far as there are enough."""
    targets = [each for each in mixture.targets if each.reference]
    if embedder is None:
        references = torch.from_numpy(np.stack([load_audio(each.reference, rate).samples for each in targets]))
        likeness = pairwise(si_sdr, torch.from_numpy(estimates)[None], references[None])[0].numpy()
    else:
        enrolled = _directions([embedder.embed(each.enrolment) for each in targets])
        likeness = _directions([embedder.embed(each, rate=rate, short="pad") for each in estimates]) @ enrolled.T
    pairs = zip(*linear_sum_assignment(likeness, maximize=True), strict=True)
    return {target_key(mixture.key, targets[target].speaker): estimates[number] for number, target in pairs}


def _directions(vectors: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


if __name__ == "__main__":
    try:
        main()
    except SpeakerKitError as error:
        print(f"separate.py: {error}", file=sys.stderr)
        sys.exit(2)
