"""Responses of simulated rooms, made once and kept in a store: simulating with every mixture would hold up training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from speakerkit.audio import MAX_RATE, MIN_RATE, Samples
from speakerkit.config import require
from speakerkit.data.parallel import map_threads
from speakerkit.errors import DataError, MissingExtraError
from speakerkit.files import atomic_path, write_json

SMALLEST, LARGEST = (3.0, 3.0, 2.3), (9.0, 8.0, 3.5)  # metres: offices and living rooms
WALL = 0.5  # metres that talkers and microphone keep from the walls
NEAREST = 0.3  # metres between a talker and the microphone
LONGEST_ORDER = 40  # of reflections
SETTINGS = "rooms.json"


@dataclass(frozen=True)
class RoomSettings:
    """What rooms are like.

    Attributes:
        sample_rate: Hz.
        places: of a talker in each room, before one microphone.
        rt60: (shortest, longest) in seconds, drawn from uniformly; in a large room at least what its walls allow.

    Raises:
        ConfigError: values out of range.
    """

    sample_rate: int = 16000
    places: int = 4
    rt60: tuple[float, float] = (0.1, 0.6)

    def __post_init__(self) -> None:
        rate = self.sample_rate
        require(MIN_RATE <= rate <= MAX_RATE, "sample_rate", rate, f"rates are from {MIN_RATE} to {MAX_RATE} Hz")
        require(self.places >= 1, "places", self.places, "it is at least 1")
        require(0.05 <= self.rt60[0] <= self.rt60[1] <= 1.5, "rt60", self.rt60, "they are from 0.05 to 1.5 s, in order")


def room_responses(settings: RoomSettings, seed: int, number: int) -> list[Samples]:
    """The responses of room ``number``, one a place, (samples,) float32 of peak 1 each. A function of its arguments.

    Raises:
        MissingExtraError: without pyroomacoustics.
    """
    try:
        import pyroomacoustics
    except ImportError:
        raise MissingExtraError("responses of simulated rooms", "train") from None
    rng = np.random.default_rng([seed, number])
    size = rng.uniform(SMALLEST, LARGEST)
    # By Sabine's formula with walls that absorb all, the least that this room can have.
    volume, surface = float(np.prod(size)), 2 * float(size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    seconds = max(rng.uniform(*settings.rt60), 0.163 * volume / surface)
    absorption, order = pyroomacoustics.inverse_sabine(seconds, size)
    material = pyroomacoustics.Material(absorption)
    room = pyroomacoustics.ShoeBox(size, settings.sample_rate, materials=material, max_order=min(order, LONGEST_ORDER))
    microphone = rng.uniform(WALL, size - WALL)
    for _ in range(settings.places):
        place = rng.uniform(WALL, size - WALL)
        while np.linalg.norm(place - microphone) < NEAREST:
            place = rng.uniform(WALL, size - WALL)
        room.add_source(place)
    room.add_microphone(microphone)
    room.compute_rir()
    # As long as the room sounds: what comes later lies 60 dB under the direct sound.
    length = round((seconds + float(np.linalg.norm(size)) / 343) * settings.sample_rate)
    responses = [np.asarray(response[:length]) for response in room.rir[0]]
    return [(response / np.abs(response).max()).astype(np.float32) for response in responses]


def write_rooms(out: str | Path, settings: RoomSettings, count: int, seed: int, workers: int = 1) -> None:
    """Write ``room00000/0.wav`` and so on: a store, in which the responses of one room stand in one folder.

    Files that an interrupted call has left are not made again.

    Raises:
        DataError: a folder of other rooms.
    """
    out, description = Path(out), {"seed": seed, **json.loads(json.dumps(asdict(settings)))}
    if (out / SETTINGS).exists():
        if json.loads((out / SETTINGS).read_text(encoding="utf-8")) != description:
            raise DataError(out, "holds rooms of other settings", "choose another folder")
    elif out.exists() and any(out.iterdir()):
        raise DataError(out, "is not empty", "choose another folder")
    else:
        write_json(out / SETTINGS, description)

    def make(number: int) -> None:
        paths = [out / f"room{number:05d}" / f"{place}.wav" for place in range(settings.places)]
        if all(path.exists() for path in paths):
            return
        for path, response in zip(paths, room_responses(settings, seed, number), strict=True):
            with atomic_path(path) as temporary:
                soundfile.write(temporary, 0.99 * response, settings.sample_rate, subtype="PCM_16")

    for _ in map_threads(make, range(count), workers=workers, description="rooms", unit="room", block=1):
        pass
