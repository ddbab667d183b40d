"""A folder of invented voices to mix: noise in a band of its own for each."""

from pathlib import Path

import numpy as np
import soundfile

from speakerkit.data.lists import Utterance, write_data_dir

RATE = 8000


def write_voices(folder: Path, speakers: int = 4, utterances: int = 2, seconds: float = 1.0) -> Path:
    """A Kaldi directory; ``spk2gender`` takes turns."""
    listed = []
    for speaker in range(speakers):
        for number in range(utterances):
            rng = np.random.default_rng([speaker, number])
            spectrum = np.fft.rfft(rng.standard_normal(round(seconds * RATE)))
            hertz = np.fft.rfftfreq(round(seconds * RATE), 1 / RATE)
            spectrum[(hertz < 200 + 800 * speaker) | (hertz > 900 + 800 * speaker)] = 0
            samples = np.fft.irfft(spectrum)
            path = folder / f"s{speaker}-{number}.wav"
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.3 * samples / np.abs(samples).max(), RATE)
            listed.append(Utterance(path.stem, f"s{speaker}", str(path)))
    write_data_dir(folder, listed)
    (folder / "spk2gender").write_text("".join(f"s{speaker} {'mf'[speaker % 2]}\n" for speaker in range(speakers)))
    return folder
