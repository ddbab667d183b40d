"""The options of each clustering method that diarize some recordings best, of a small grid, where speech is known.

Writes ``OUT/METHOD``, a word of the options of ``speakerkit diarize`` a line, and ``OUT/best``, a copy of the best.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speakerkit.data.lists import read_scp
from speakerkit.diarization.clustering import METHODS, ClusterSettings, PldaBackend, cluster, settings_for
from speakerkit.diarization.der import Convention, score_diarization
from speakerkit.diarization.formats import read_turns
from speakerkit.diarization.pipeline import seconds_of
from speakerkit.diarization.segments import turns_of_windows
from speakerkit.diarization.turns import Diarization
from speakerkit.diarization.vad import Speech, speech_of
from speakerkit.diarization.windows import WindowEmbeddings, cut_windows, embed_windows
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.errors import SpeakerKitError
from speakerkit.files import write_lines
from speakerkit.tables import text_table
from speakerkit.verification.backend_file import read_backend

# Fields of each method's settings, and what is tried; of equals the first is taken.
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "ahc": {"threshold": (0.3, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)},
    "spectral": {"neighbours": (10, 6, 8, 12, 15, 20, 30)},
    "nme-sc": {"largest_share": (0.25, 0.15, 0.35)},
    "vbx": {"threshold": (0.4, 0.2, 0.3, 0.5), "speaker_scale": (17.0, 5.0, 30.0), "acoustic_scale": (0.9, 0.45, 1.8)},
}
CONVENTION = Convention(collar=0.25, median=11)


@dataclass(frozen=True)
class Heard:
    """A recording as every method gets it."""

    speech: Speech
    found: WindowEmbeddings


def main() -> int:
    """Tune all methods on one set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scp", type=Path, help="wav.scp of the recordings")
    parser.add_argument("reference", type=Path, help="their turns, .rttm")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=sorted(GRIDS), required=True)
    parser.add_argument("--plda", type=Path, help="vbx needs one")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    try:
        tune(options)
    except SpeakerKitError as error:
        print(f"tune_diarization: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def tune(options: argparse.Namespace) -> None:
    """Try every point of the grids on the same embeddings."""
    turns = read_turns(options.reference)
    embedder = load(options.model, "cpu", options.threads)
    heard = {key: hear(embedder, key, path, turns, options.reference) for key, path in read_scp(options.scp).items()}
    reference = {key: turns[key] for key in heard}
    backend = None if options.plda is None else read_backend(options.plda)
    rows, best = [["method", "DER %", "options"]], {}
    for method in options.methods:
        rates = {
            point: error_rate(settings_for(method, **dict(point)), heard, reference, backend)
            for point in points(method)
        }
        point = min(rates, key=lambda each: rates[each])
        words = ["--cluster", method, *itertools.chain(*((f"--{flag(name)}", f"{value:g}") for name, value in point))]
        if METHODS[method].settings.method == "vbx":
            words += ["--plda", str(options.plda)]
        best[method] = rates[point], words
        write_lines(options.out / method, words)
        rows.append([method, f"{100 * rates[point]:.2f}", ", ".join(f"{name} {value:g}" for name, value in point)])
    write_lines(options.out / "best", min(best.values())[1])
    print(text_table(rows))


def hear(embedder: Embedder, key: str, path: str, turns: Mapping[str, Diarization], source: Path) -> Heard:
    """Windows of a recording's speech, embedded."""
    speech = speech_of(turns.values(), source, key, seconds_of(path))
    return Heard(speech, embed_windows(embedder, path, cut_windows(speech.spans)))


def points(method: str) -> list[tuple[tuple[str, float], ...]]:
    """All combinations of the values of a method's options."""
    grid = GRIDS[method]
    return [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def flag(name: str) -> str:
    """How `speakerkit diarize` calls a field."""
    return "cluster-threshold" if name == "threshold" else name.replace("_", "-")


def error_rate(
    settings: ClusterSettings, heard: Mapping[str, Heard], reference: Mapping[str, Any], backend: PldaBackend | None
) -> float:
    """DER of all recordings; infinite where nobody speaks in the reference."""
    found = {
        key: Diarization(
            key, turns_of_windows(each.speech.spans, each.found.windows, cluster(each.found.vectors, settings, backend))
        )
        for key, each in heard.items()
        if len(each.found.windows)
    }
    rate = score_diarization(reference, found, None, CONVENTION, missing_as_silence=True).errors.der
    return float("inf") if rate is None else rate


if __name__ == "__main__":
    sys.exit(main())
