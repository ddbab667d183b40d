"""Cut a training directory into speakers to calibrate on and a cohort of the others, a few recordings of each."""

from __future__ import annotations

import argparse
from pathlib import Path

from speakerkit.data.lists import Utterance, read_data_dir, read_durations, write_data_dir


def main() -> None:
    """Write OUT/cohort and OUT/calibration; the recordings of a speaker are taken evenly over its sorted keys."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=5, help="one speaker in so many is to calibrate on")
    parser.add_argument("--recordings", type=int, default=20, help="of each speaker, at most")
    options = parser.parse_args()
    durations = read_durations(options.train_dir / "utt2dur")
    recordings: dict[str, list[Utterance]] = {}
    for utterance in read_data_dir(options.train_dir):
        recordings.setdefault(utterance.speaker, []).append(utterance)
    parts: dict[str, list[Utterance]] = {"cohort": [], "calibration": []}
    for number, speaker in enumerate(sorted(recordings), start=1):
        step = -(-len(recordings[speaker]) // options.recordings)
        parts["cohort" if number % options.every else "calibration"] += recordings[speaker][::step]
    for name, utterances in parts.items():
        write_data_dir(options.out / name, utterances, durations)
        speakers = len({utterance.speaker for utterance in utterances})
        print(f"{options.out / name}: {len(utterances)} recordings of {speakers} speakers")


if __name__ == "__main__":
    main()
