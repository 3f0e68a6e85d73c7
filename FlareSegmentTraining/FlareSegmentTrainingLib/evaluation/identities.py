"""What a result was made with, as hashes: it is made anew when one of them changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import FlareSegmentLib
from FlareSegmentLib.model.description import DESCRIPTION_FILE, WEIGHTS_FILE
from FlareSegmentTrainingLib.datasets.archives import sha256


def digest(parts: object) -> str:
    """SHA-256 of what JSON can hold; sets and other iterables count as lists."""
    return hashlib.sha256(json.dumps(parts, default=list).encode()).hexdigest()


def identity_of_model(folder: Path) -> str:
    """SHA-256 of a model's files."""
    files = [folder / name for name in (DESCRIPTION_FILE, WEIGHTS_FILE)]
    return digest([sha256(file) if file.is_file() else "" for file in files])


def program_identity() -> str:
    """SHA-256 of the engine: another program may find or measure other things."""
    content = hashlib.sha256()
    for file in sorted(Path(FlareSegmentLib.__file__).parent.rglob("*.py")):
        content.update(file.read_bytes())
    return content.hexdigest()
