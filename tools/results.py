"""The results table of an embedding recipe: metrics with the command, configuration, seed and log they came from."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from speakerkit.bundle import CONFIG, read_bundle
from speakerkit.config import read_yaml, to_dict, write_yaml
from speakerkit.files import write_json, write_lines
from speakerkit.verification.metrics import VerificationMetrics, metrics_table

# Their values differ between machines.
PATHS = {"exp_dir", "init", "embedder", "train", "valid", "valid_trials", "voices", "genders", "noise", "rir"}
PATHS |= {"shard_cache"}


def main(exp_dir: Path) -> None:
    """Write ``results.txt`` and ``results.json``, and the figures into the bundle's configuration."""
    measured = json.loads((exp_dir / "metrics.json").read_text(encoding="utf-8"))
    facts = {"corpus": measured["title"], **run_facts(exp_dir)}
    write_json(exp_dir / "results.json", {**facts, "scores": measured["scores"]})

    table = metrics_table({name: VerificationMetrics(**row) for name, row in measured["scores"].items()})
    write_lines(exp_dir / "results.txt", [f"results on {facts['corpus']}", "", table, "", *fact_lines(facts)])

    bundle = read_bundle(exp_dir / "bundle")
    values = to_dict(bundle.config)
    values["results"] = {facts["corpus"]: measured["scores"]}
    write_yaml(bundle.path / CONFIG, values)


def run_facts(exp_dir: Path) -> dict[str, Any]:
    """What it takes to make a row of a table again."""
    config = read_yaml(exp_dir / "config.yaml")
    run = json.loads((exp_dir / "provenance.json").read_text(encoding="utf-8"))
    settings = {**config, "data": {key: value for key, value in config["data"].items() if key not in PATHS}}
    spelled = json.dumps({key: value for key, value in settings.items() if key not in PATHS}, sort_keys=True)
    return {
        "model": config["model"]["name"],
        "config_sha256": hashlib.sha256(spelled.encode()).hexdigest()[:12],
        "seed": config["seed"],
        "device": config["trainer"]["device"],
        "ranks": run["ranks"],
        "steps": config["trainer"]["steps"],
        "revision": run["git_revision"],
        "command": " ".join(run["command"]),
        "log": str(exp_dir / "train.log"),
    }


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """The facts that stand below a table."""
    shown = ("model", "config_sha256", "seed", "device", "ranks", "steps", "revision")
    return [", ".join(f"{name} {facts[name]}" for name in shown), f"log: {facts['log']}"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
