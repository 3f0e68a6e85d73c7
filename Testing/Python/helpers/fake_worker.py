"""A worker without networks, for tests of the panel's side: it does what the model folder's name says.

good    two progress events, then a result: voxels of 1000 HU and more get the label value - 1000
slow    progress for as long as nobody cancels; answers a cancel
deaf    as slow, but does not hear a cancel
dying   one progress event, words on stderr, then death
wrong   an error event
hung    does not even get ready

A comparison of the spleen alone never ends and does not hear a cancel.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "FlareSegment"))

from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.processes import set_priority
from FlareSegmentLib.worker.main import Worker
from FlareSegmentLib.worker.protocol import (
    Cancel,
    Compare,
    Failure,
    Hello,
    Progress,
    Ready,
    Result,
    decode_request,
    encode,
)
from FlareSegmentLib.worker.shared_files import SharedBox, finish, write_array, write_file
from FlareSegmentSlicerLib.logic.worker_entry import make_surfaces

NICENESS = set_priority("--background" in sys.argv)
DEVICES = [
    {"id": "cpu", "name": "Intel(R) Core(TM) i5", "memory_gb": 15.6},
    {"id": "cuda:0", "name": "NVIDIA RTX A2000", "memory_gb": 11.8},
    {"id": "cuda:1", "name": "NVIDIA T400", "memory_gb": None},
]


def emit(event) -> None:
    sys.stdout.buffer.write(encode(event))
    sys.stdout.buffer.flush()


def segment(message, cancelled) -> None:
    request = message.request
    kind = request.model.name
    if kind == "dying":
        emit(Progress(message.id, 0.2, "Finding the organs"))
        print("RuntimeError: out of breath", file=sys.stderr, flush=True)
        os.abort()
    if kind == "wrong":
        emit(Failure(message.id, "This is not a CT.", "details for the log"))
        return
    step = 0
    while kind in ("slow", "deaf"):
        step += 1
        emit(Progress(message.id, min(0.9, step / 100), "Finding the organs"))
        time.sleep(0.02)
        if kind == "slow" and message.id in cancelled:
            emit(Failure(message.id, "It was cancelled."))
            return
    emit(Progress(message.id, 0.4, "Finding the organs"))
    emit(Progress(message.id, 0.8, "Outlining the organs"))
    from FlareSegmentLib.measures.organ_statistics import (
        bounding_box,
        keep_only,
        organ_boxes,
        organ_statistics,
    )

    volume = message.volume.map()
    labels = np.where(volume.array >= 1000, volume.array - 1000, 0).astype(np.uint8)
    organs = [organ for organ in ORGANS if request.organs is None or organ.key in request.organs]
    labels = keep_only(labels, organs, request.region)
    box = bounding_box(labels)
    written = SharedBox(finish(write_array(message.folders, labels[box])), box)
    surfaces = None
    if request.smoothing is not None:
        values = {organ.key: organ.label for organ in organs}
        boxes = organ_boxes(labels, organs)
        made = make_surfaces(labels, boxes, values, volume.affine_ras, request.smoothing)
        surfaces = finish(write_file(message.folders, lambda: [made]))
    seconds = {"preprocess": 0.1, "network": 0.2, "postprocess": 0.1, "total": 0.4}
    facts = organ_statistics(volume, labels, organs, request.region)
    warnings = ["The slices are thick."]
    places, confidence = review(message, facts, box) if request.review else (None, None)
    emit(Result(message.id, seconds, warnings, "cpu", "fake 1", facts, written, surfaces, places, confidence))


def review(message, facts, box):
    """A doubtful place in the middle of each organ, the largest first, a remark, and doubts all over their box."""
    places = [
        {"kind": "doubtful", "organ": key, "side": "", "ml": one["volume_ml"], "center": one["center"], "box": None}
        for key, one in facts.items()
        if one["found"]
    ]
    places.sort(key=lambda place: -place["ml"])
    places.append({"kind": "remark", "organ": None, "side": "", "ml": 0.0, "center": None, "box": None})
    places[-1]["text"] = "The slices are thick."
    doubts = np.full([extent.stop - extent.start for extent in box], 128, np.uint8)
    path = finish(write_file(message.folders, lambda: [zlib.compress(doubts)]))
    return [{"text": "", **place} for place in places], SharedBox(path, box)


def main() -> None:
    requests: queue.Queue = queue.Queue()
    cancelled: set[int] = set()

    def read() -> None:
        for line in sys.stdin.buffer:
            request = decode_request(line)
            if isinstance(request, Cancel):
                cancelled.add(request.id)
            else:
                requests.put(request)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        request = requests.get()
        if isinstance(request, Hello):
            if request.request is not None and request.request.model == Path("hung"):
                time.sleep(3600)
            emit(Ready(request.id, DEVICES, NICENESS))
        elif isinstance(request, Compare) and request.organs == ("spleen",):
            time.sleep(3600)
        elif isinstance(request, Compare):
            emit(Worker(sys.stdin.buffer, sys.stdout.buffer, make_surfaces)._compare(request))
        else:
            segment(request, cancelled)


if __name__ == "__main__":
    main()
