"""The results table of a diarization recipe: error rates of every system beside those of trivial answers.

Writes ``results.txt``, ``results.json`` and ``worst``: of the first set's best system the recording with the highest
error rate, its audio, and the system.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from speakerkit.audio import load_audio, require_signal
from speakerkit.data.lists import read_scp
from speakerkit.errors import AudioError
from speakerkit.files import write_json, write_lines
from speakerkit.tables import text_table

HEAD = ["speech", "system", "DER %", "missed", "false alarm", "confusion", "JER %", "overlapped"]
TRIVIAL = ("silence", "one_speaker")


def main() -> None:
    """Write ``results.txt`` and ``results.json`` of an experiment's ``scores/SET/SPEECH-SYSTEM.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exp_dir", type=Path)
    parser.add_argument("--label", required=True, help="of the corpus")
    parser.add_argument("--command", required=True, help="that ran the recipe")
    parser.add_argument("--revision", required=True, help="of the code")
    parser.add_argument("--set", nargs=2, action="append", required=True, metavar=("NAME", "SCP"), help="in this order")
    options = parser.parse_args()
    lines, results = [f"results on {options.label}"], {}
    for name, scp in options.set:
        scores = _scores(options.exp_dir / "scores" / name)
        silent, count = _silent(Path(scp))
        results[name] = {"recordings": count, "silent": silent, "systems": scores}
        lines += ["", f"{name}: {count} recordings, {_convention(scores)}"]
        if silent:
            lines.append(
                f"NOTE: {silent} of {count} recordings are digital silence. Nobody can be heard in them: "
                "rows with speech from the reference or from nowhere say nothing of the systems."
            )
        lines += ["", _table(scores)]
    lines += ["", f"revision {options.revision}, command: {options.command}"]
    write_lines(options.exp_dir / "results.txt", lines)
    facts = {"corpus": options.label, "command": options.command, "revision": options.revision}
    write_json(options.exp_dir / "results.json", {**facts, "sets": results})
    name, scp = options.set[0]
    write_lines(options.exp_dir / "worst", _worst(results[name]["systems"], read_scp(scp)))


def _scores(folder: Path) -> dict[str, Any]:
    """What `speakerkit score der --json` wrote, by system."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def _silent(scp: Path) -> tuple[int, int]:
    """Recordings without any signal, and all."""
    silent, paths = 0, read_scp(scp)
    for path in paths.values():
        try:
            require_signal(load_audio(path), path)
        except AudioError:
            silent += 1
    return silent, len(paths)


def _worst(scores: dict[str, Any], paths: dict[str, str]) -> list[str]:
    """Recording, audio and system."""
    rates = {name: score["errors"]["der"] for name, score in scores.items() if name.partition("-")[2] not in TRIVIAL}
    best = min(rates, key=lambda name: (rates[name], name))
    worst = max(scores[best]["recordings"], key=lambda each: each["errors"]["der"] or 0.0)["recording"]
    return [worst, paths[worst], best]


def _convention(scores: dict[str, Any]) -> str:
    return str(next(iter(scores.values()))["convention"]["text"])


def _table(scores: dict[str, Any]) -> str:
    """Systems by the speech they were given, the best first; trivial answers stand where they fall."""
    counts = sorted({int(count) for score in scores.values() for count in score["by_speakers"]})
    rows = []
    for name, score in scores.items():
        speech, _, system = name.partition("-")
        errors = score["errors"]
        parts = [errors[part] / errors["speech"] for part in ("missed", "false_alarm", "confusion")]
        each = [score["by_speakers"][str(count)]["errors"]["der"] for count in counts]
        rates = [errors["der"], *parts, score["jer"], score["overlap"]["der"], *each]
        rows.append((speech, errors["der"], [speech, system.replace("_", " "), *map(_percent, rates)]))
    head = [*HEAD, *(f"{count} speaker{'s' * (count != 1)}" for count in counts)]
    return text_table([head, *(row for _, _, row in sorted(rows))])


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}"


if __name__ == "__main__":
    main()
