"""A tiny corpus and a tiny model, as a configuration file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml

from speakerkit.data.holdout import hold_out
from speakerkit.data.lists import Utterance, write_utterance_list
from speakerkit.data.shards import write_shards
from speakerkit.verification.trials import Trials, write_trials
from tests.conftest import speech_like


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train.list``, ``valid.list``, ``trials`` and 3 shards of 4 speakers with 4 recordings each, 0.6 s long."""
    folder = tmp_path_factory.mktemp("corpus")
    utterances = []
    for number in range(16):
        path = folder / f"u{number:02d}.wav"
        soundfile.write(path, speech_like(0.6, seed=number), 16000)
        utterances.append(Utterance(path.stem, f"s{number // 4}", str(path)))
    held = hold_out(utterances, speakers=4, seed=0)
    write_utterance_list(folder / "all.list", utterances)
    write_utterance_list(folder / "train.list", held.train)
    write_utterance_list(folder / "valid.list", held.valid)
    enrol, test, target = zip(*held.trials, strict=True)
    write_trials(folder / "trials", Trials.from_pairs(list(enrol), list(test), list(target)))
    write_shards(held.train, folder / "shards", per_shard=4)
    return folder


@pytest.fixture
def experiment(corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """``experiment(name="exp", **sections)``: the path of a configuration of 6 steps; sections are merged into it."""

    def write(name: str = "exp", **sections: Any) -> Path:
        values: dict[str, Any] = {
            "exp_dir": str(tmp_path / name),
            "seed": 7,
            "frontend": {"num_mels": 20, "dither": 1.0},
            "data": {
                "train": str(corpus / "train.list"),
                "valid": str(corpus / "valid.list"),
                "valid_trials": str(corpus / "trials"),
                "batch_size": 4,
                "chunk_frames": 24,
                "workers": 0,
                "augment": [{"name": "gain"}, {"name": "clip", "prob": 0.5}],
                "spec_augment": {"prob": 0.5},
            },
            "model": {"name": "ECAPA_TDNN", "args": {"channels": 16, "joined": 24, "embed_dim": 16}},
            "margin": {"initial": 0.0, "final": 0.2, "start_step": 1, "end_step": 5},
            "optim": {"lr": 0.05},
            "schedule": {"name": "exponential", "warmup_steps": 2, "final_lr": 0.001},
            "trainer": {"steps": 6, "device": "cpu", "log_every": 1, "threads": 1},
        }
        for section, content in sections.items():
            if isinstance(content, dict):
                values[section] = {**values.get(section, {}), **content}
            else:
                values[section] = content
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
