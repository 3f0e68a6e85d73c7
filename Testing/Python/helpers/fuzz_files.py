"""Damages valid image files at random and reads them: `python fuzz_files.py FOLDER COUNT SEED`, a process of its own.

ITK's readers are C++ code that a wrong file may end in the middle, so nobody's process but this one does it. The number
of the case that is read is on standard output before it is read: where the process ends without its last line, the
last number names the file that ended it, FOLDER/case.*. The last line is a JSON object of counts.
"""

from __future__ import annotations

import faulthandler
import gzip
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "engine"), str(HERE.parents[2] / "FlareSegment")]

import SimpleITK as sitk  # noqa: E402

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.files.image_io import check_is_ct, read_volume  # noqa: E402

KINDS = ("nii", "nii.gz", "nrrd", "mha")
HEADER_BYTES = 360


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """A few random changes, most of them in the header: bits, bytes, numbers, pieces lost, doubled or exchanged."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(0, HEADER_BYTES if random.random() < 0.8 else len(data)))
        place = min(place, len(data) - 1)
        length = int(random.integers(1, 9))
        kind = random.integers(0, 7)
        if kind == 0:
            data[place] ^= 1 << int(random.integers(0, 8))
        elif kind == 1:
            data[place : place + length] = random.bytes(length)
        elif kind == 2:
            data[place : place + length] = bytes([int(random.choice([0, 255, 127, 128, 45, 57]))]) * length
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length] * int(random.integers(1, 4))
        elif kind == 5:
            del data[int(random.integers(place, len(data) + 1)) :]
        else:
            digits = [index for index in range(min(HEADER_BYTES, len(data))) if 48 <= data[index] <= 57]
            if digits:
                data[int(random.choice(digits))] = int(random.choice(list(b"0123456789-.e ")))
        if not data:
            return b"\0"
    return bytes(data)


def main(folder: Path, count: int, seed: int) -> None:
    from bad_input import save

    faulthandler.enable()
    originals = {}
    for kind in KINDS:
        content = save(folder / f"original.{kind}", compressed=kind != "mha").read_bytes()
        originals[kind] = gzip.decompress(content) if kind == "nii.gz" else content
    counts = {"read": 0, "refused": 0}
    for number in range(count):
        random = np.random.default_rng([seed, number])
        kind = KINDS[number % len(KINDS)]
        path = folder / f"case.{kind}"
        damaged = damage(originals[kind], random)
        path.write_bytes(gzip.compress(damaged, 1) if kind == "nii.gz" else damaged)
        print(number, flush=True)
        try:
            volume, _ = read_volume(path)
            check_is_ct(volume)
            assert volume.array.size < 1 << 24 and np.isfinite(volume.affine_lps).all()
            counts["read"] += 1
        except InputError as error:
            assert "\n" not in str(error) and path.name in str(error), error  # noqa: PT017
            counts["refused"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
