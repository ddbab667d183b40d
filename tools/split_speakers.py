"""Cut a Kaldi directory by speakers into one or two, with a few recordings of each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speakerkit.data.lists import Utterance, read_data_dir, read_durations, write_data_dir
from speakerkit.errors import SpeakerKitError


def main() -> int:
    """Write both; the recordings of a speaker are taken evenly over its sorted keys."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="Kaldi directory")
    parser.add_argument("rest", type=Path, help="directory for the other speakers")
    parser.add_argument("part", type=Path, nargs="?", help="directory for one speaker in --every")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--recordings", type=int, default=20, help="of each speaker, at most")
    options = parser.parse_args()
    try:
        split(options)
    except SpeakerKitError as error:
        print(f"split_speakers: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def split(options: argparse.Namespace) -> None:
    """Write what the options ask for; durations where they are known."""
    known = options.source / "utt2dur"
    durations = read_durations(known) if known.is_file() else None
    recordings: dict[str, list[Utterance]] = {}
    for utterance in read_data_dir(options.source):
        recordings.setdefault(utterance.speaker, []).append(utterance)
    cut: dict[Path, list[Utterance]] = {options.rest: []}
    for number, speaker in enumerate(sorted(recordings), start=1):
        step = -(-len(recordings[speaker]) // options.recordings)
        chosen = options.part if options.part and number % options.every == 0 else options.rest
        cut.setdefault(chosen, []).extend(recordings[speaker][::step])
    for folder, utterances in cut.items():
        write_data_dir(folder, utterances, durations)
        speakers = len({utterance.speaker for utterance in utterances})
        print(f"{folder}: {len(utterances)} recordings of {speakers} speakers")


if __name__ == "__main__":
    sys.exit(main())
