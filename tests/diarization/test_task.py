"""Training of TS-VAD and EEND: labels, slots, learning of a toy, resuming, and the published folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from speakerkit.bundle import read_bundle
from speakerkit.data.ark import Embeddings, write_embeddings
from speakerkit.data.lists import Utterance, write_data_dir
from speakerkit.data.sources import read_sources
from speakerkit.diarization.bundle import load
from speakerkit.diarization.formats import read_turns
from speakerkit.diarization.neural import diarize_end_to_end, refine
from speakerkit.diarization.simulation import Conversations, ConversationSettings, write_conversations
from speakerkit.diarization.task import DiarizationTask, Recordings, TSVADTask, frame_metrics
from speakerkit.embedding.embedder import Embedder
from speakerkit.errors import BundleError, ConfigError, DataError
from speakerkit.training.checkpoint import load_checkpoint
from speakerkit.training.experiment import read_experiment, run_experiment
from speakerkit.training.publish import publish
from tests.command import speakerkit

RATE = 16000
Experiment = Callable[..., Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four voices that a child would tell apart: noise in bands of their own."""
    folder = tmp_path_factory.mktemp("voices")
    utterances = []
    for number in range(8):
        rng, speaker = np.random.default_rng(number), number // 2
        spectrum = np.fft.rfft(rng.standard_normal(3 * RATE))
        hertz = np.fft.rfftfreq(3 * RATE, 1 / RATE)
        spectrum[(hertz < 300 + 1000 * speaker) | (hertz > 1100 + 1000 * speaker)] = 0
        samples = np.fft.irfft(spectrum)
        path = folder / f"s{speaker}-{number}.wav"
        soundfile.write(path, 0.3 * samples / np.abs(samples).max(), RATE)
        utterances.append(Utterance(path.stem, f"s{speaker}", str(path)))
    write_data_dir(folder, utterances)
    return folder


@pytest.fixture
def experiment(source: Path, small_bundle: Path, tmp_path: Path) -> Experiment:
    """``experiment(task, name="exp", **sections)``: the path of a configuration of four steps."""

    def write(task: str, name: str = "exp", **sections: Any) -> Path:
        values: dict[str, Any] = {
            "task": task,
            "exp_dir": str(tmp_path / name),
            "seed": 7,
            "data": {
                "train": str(source),
                "valid": str(source),
                "batch_size": 4,
                "chunk_seconds": 2.0,
                "chunks": 2,
                "speakers": [2, 2],
                "turn_seconds": 1.0,
                "valid_chunks": 6,
                "workers": 0,
            },
            "optim": {"name": "adamw", "lr": 3e-3},
            "schedule": {"name": "cosine", "final_lr": 1e-5},
            "trainer": {"steps": 4, "device": "cpu", "log_every": 1, "threads": 1},
        }
        if task == "tsvad":
            values["embedder"] = str(small_bundle)
            values["model"] = {"size": 32, "feed_forward": 32, "slots": 3, "average": 4, "dropout": 0.0}
            values["optim"]["lr_factors"] = {"encoder": 0}
        else:
            values["frontend"] = {"sample_rate": RATE, "num_mels": 23}
            values["model"] = {"size": 32, "feed_forward": 32, "layers": 1, "dropout": 0.0}
        for section, content in sections.items():
            merged = {**values.get(section, {}), **content} if isinstance(content, dict) else content
            values[section] = merged
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def built(path: Path) -> tuple[Any, torch.nn.Module]:
    task = read_experiment(path).build()
    torch.manual_seed(0)
    return task, task.build_model()


def test_labels_are_the_turns_of_the_chunk(experiment: Experiment) -> None:
    task, model = built(experiment("tsvad"))
    batch = next(task.train_batches(0, 1))
    assert batch["labels"].shape == (4, task.frame_count, 3)
    assert model(batch["inputs"], batch["voices"]).shape == batch["labels"].shape
    plans = [task.train.source.plan(0), task.train.source.plan(0), task.train.source.plan(1), task.train.source.plan(1)]
    for index, plan in enumerate(plans):
        chunk = task.train[index]
        assert np.array_equal(batch["inputs"][index].numpy(), chunk.samples)
        centres = 2.0 * (index % 2) + task.frames.centres(task.frame_count)
        spoken = {
            label: np.array([any(t.start <= c < t.end for t in plan.turns if t.speaker == label) for c in centres])
            for label in plan.labels
        }
        for slot in range(3):
            voice, labels = batch["voices"][index, slot].numpy(), batch["labels"][index, :, slot].bool().numpy()
            owner = [name for name, rows in task.voices.items() if any(np.array_equal(row, voice) for row in rows)]
            assert (
                np.array_equal(labels, spoken.get(owner[0], False) & np.ones_like(labels))
                if owner
                else not labels.any()
            )
            assert owner or not voice.any()
        given = {tuple(voice) for voice in batch["voices"][index].tolist() if any(voice)}
        present = {turn.speaker for turn in chunk.turns}
        assert all(any(tuple(row.tolist()) in given for row in task.voices[name]) for name in present)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_empty_slots(experiment: Experiment, share: float) -> None:
    task, _ = built(experiment("tsvad", empty_share=share))
    empty = others = 0
    for index in range(150):
        chunk = task.train[index % 2]
        chunk.rng.bit_generator.state = np.random.default_rng(index).bit_generator.state
        voices, labels = task._slots(chunk)
        silent = ~labels.any(axis=0) & ~voices.any(axis=1)
        empty += int(silent.sum())
        others += 3 - len({turn.speaker for turn in chunk.turns})
    assert others >= 150
    assert empty / others == pytest.approx(share, abs=0.12)


def test_metrics_by_hand() -> None:
    decided = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    labels = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 0]])
    found = frame_metrics(decided, labels)
    assert float(found["frame_error"]) == pytest.approx(3 / 8)
    assert float(found["frame_der"]) == pytest.approx(2 / 3)  # one false alarm, one confusion; three of speech
    nobody = frame_metrics(torch.zeros(4, 2), torch.zeros(4, 2))
    assert float(nobody["frame_der"]) == 0


@pytest.mark.parametrize("task", ["tsvad", "eend"])
def test_a_toy_is_learned(experiment: Experiment, tmp_path: Path, task: str) -> None:
    """Two voices at a time, of four that differ in their band."""
    directions = np.random.default_rng(0).standard_normal((4, 16))
    keys = [f"s{number // 2}-{number}" for number in range(8)]
    write_embeddings(tmp_path / "e.npz", Embeddings(keys, np.repeat(directions, 2, axis=0).astype(np.float32)))
    known = {"embeddings": str(tmp_path / "e.npz")} if task == "tsvad" else {}
    config = experiment(task, data={"batch_size": 8, "valid": None}, **known)
    built_task, model = built(config)
    batches = built_task.train_batches(0, 1)
    seen = [next(batches) for _ in range(2)]
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 5e-3)
    model.train()
    if task == "tsvad":
        model.encoder.eval()
    first = last = 0.0
    for step in range(90):
        loss, metrics = built_task.loss(model, seen[step % 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = float(metrics["frame_der"])
        first = first or last
    assert last < 0.2 < 0.6 < first


@pytest.mark.parametrize("task", ["tsvad", "eend"])
def test_resuming_is_exact(experiment: Experiment, tmp_path: Path, task: str) -> None:
    run_experiment(experiment(task, "whole"))
    parts = experiment(task, "parts")
    assert run_experiment(parts, stop_after=2).step == 2
    result = run_experiment(parts)
    assert set(result.metrics) >= {"valid_loss", "valid_frame_error", "valid_frame_der"}
    one, other = (load_checkpoint(tmp_path / name / "checkpoints" / "step_00000004.pt") for name in ("whole", "parts"))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])


def test_published_tsvad_refines(experiment: Experiment, source: Path, small_bundle: Path, tmp_path: Path) -> None:
    ran = speakerkit("train", experiment("tsvad"))
    assert ran.code == 0, ran.err
    ran = speakerkit("average", tmp_path / "exp")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(str(tmp_path / "exp" / "bundle"))
    model = load(tmp_path / "exp" / "bundle", "cpu")
    state = load_checkpoint(tmp_path / "exp" / "checkpoints" / "step_00000004.pt")["model"]
    assert all(torch.equal(state[name], value) for name, value in model.network.state_dict().items())
    assert model.config.provenance["steps"] == 4
    conversation = Conversations(read_sources(source), ConversationSettings(seconds=10.0, speakers=(2, 2)), 3)[0]
    embedder = Embedder(read_bundle(small_bundle))
    refined = refine(conversation.diarization, conversation.samples, model, embedder, rate=RATE)
    assert set(refined.labels) == set(conversation.diarization.labels)
    assert refined.turns == refine(conversation.diarization, conversation.samples, model, embedder, rate=RATE).turns
    with pytest.raises(BundleError, match="is of format 'speakerkit-bundle-1'"):
        load(small_bundle)
    # A training can go on from it, but not a model of another kind.
    _task, again = built(experiment("tsvad", "next", init=str(model.path)))
    assert torch.equal(again.state_dict()["empty"], model.network.state_dict()["empty"])
    with pytest.raises(BundleError, match="task 'tsvad'"):
        built(experiment("eend", "wrong", init=str(model.path)))


def test_published_eend_diarizes(experiment: Experiment, source: Path, tmp_path: Path) -> None:
    run_experiment(experiment("eend"))
    publish(tmp_path / "exp", tmp_path / "bundle")
    model = load(tmp_path / "bundle", "cpu")
    conversation = Conversations(read_sources(source), ConversationSettings(seconds=10.0, speakers=(2, 2)), 3)[0]
    found = diarize_end_to_end(model, conversation.samples, "x", rate=RATE, num_speakers=2)
    assert len(found.labels) <= 2
    assert found.duration == pytest.approx(10.0)
    (tmp_path / "bundle" / "model.safetensors").unlink()
    with pytest.raises(BundleError, match="has no config"):
        load(tmp_path / "bundle")


def test_real_recordings_are_cut_into_chunks(experiment: Experiment, source: Path, tmp_path: Path) -> None:
    made = Conversations(read_sources(source), ConversationSettings(seconds=20.0, speakers=(2, 3)), 0)
    write_conversations(made, tmp_path / "real", 2)
    parts = Recordings(tmp_path / "real", RATE, 4.0, seed=1)
    whole = {key: soundfile.read(path, dtype="float32")[0] for key, path in parts.paths.items()}
    turns = read_turns(tmp_path / "real" / "rttm", "rttm")
    for index in range(5):
        part = parts[index]
        key, start = part.diarization.recording.split("@")
        place = int(np.argmin([np.abs(whole[key][n : n + 64] - part.samples[:64]).sum() for n in _near(float(start))]))
        first = _near(float(start))[place]
        assert np.array_equal(part.samples, whole[key][first : first + 4 * RATE])
        for turn in part.diarization.turns:
            owner = [
                each
                for each in turns[key].turns
                if turn.speaker == f"{key}/{each.speaker}"
                and each.start - 0.01 <= turn.start + first / RATE <= each.end
            ]
            assert owner
            assert turn.end + first / RATE == pytest.approx(min(owner[0].end, first / RATE + 4), abs=0.01)
    task, model = built(experiment("tsvad", data={"train": str(tmp_path / "real"), "valid": None}))
    assert isinstance(task, TSVADTask)
    assert set(task.voices) == {f"{key}/{label}" for key, each in turns.items() for label in each.labels}
    loss, _ = task.loss(model, next(task.train_batches(0, 1)))
    assert torch.isfinite(loss)


def _near(seconds: float) -> range:
    return range(max(0, int((seconds - 0.01) * RATE)), int((seconds + 0.01) * RATE))


def test_the_encoder_is_left_alone_at_first(experiment: Experiment) -> None:
    task, model = built(experiment("tsvad", frozen_steps=3, optim={"lr_factors": {}}))
    task.start_step(model, 2)
    assert not model.hears_gradients
    task.start_step(model, 3)
    assert model.hears_gradients
    with pytest.raises(ConfigError, match="frozen_steps"):
        next(task.train_batches(0, 2))


def test_loading_processes_change_nothing(experiment: Experiment) -> None:
    alone, _ = built(experiment("eend"))
    helped, _ = built(experiment("eend", data={"workers": 2}))
    for _, one, other in zip(range(3), alone.train_batches(0, 1), helped.train_batches(0, 1), strict=False):
        assert one["keys"] == other["keys"]
        assert torch.equal(one["inputs"], other["inputs"])
        assert torch.equal(one["labels"], other["labels"])


def test_unknown_task_names_the_nearest(experiment: Experiment) -> None:
    path = experiment("eend")
    with pytest.raises(ConfigError, match="did you mean 'tsvad'"):
        read_experiment(path, ["task=tsvda"])
    with pytest.raises(ConfigError, match="unknown key"):
        read_experiment(path, ["embedder=x"])


def test_embeddings_of_another_model_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"key": "s0-0", "embedding": [1.0, 2.0]}\n')
    with pytest.raises(DataError):
        read_experiment(experiment("tsvad", embeddings=str(tmp_path / "e.jsonl"))).build()


def test_tasks_are_the_trainers(experiment: Experiment) -> None:
    assert all(isinstance(read_experiment(experiment(name)).build(), DiarizationTask) for name in ("tsvad", "eend"))
