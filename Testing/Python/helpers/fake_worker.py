"""A worker without networks, for tests of the panel's side: it does what the model folder's name says.

good    two progress events, then a result: voxels of 1000 HU and more get the label value - 1000
slow    progress for as long as nobody cancels; answers a cancel
deaf    as slow, but does not hear a cancel
dying   one progress event, words on stderr, then death
wrong   an error event

A comparison of the spleen alone never ends and does not hear a cancel.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "FlareSegment"))

from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.processes import set_priority
from FlareSegmentLib.worker.main import Worker, offset
from FlareSegmentLib.worker.protocol import (
    CompareRequest,
    Failure,
    Progress,
    Ready,
    Result,
    Stopped,
    decode_request,
    encode_event,
)

NICENESS = set_priority("--background" in sys.argv)
DEVICES = [
    {"id": "cpu", "name": "Intel(R) Core(TM) i5", "memory_gb": 15.6},
    {"id": "cuda:0", "name": "NVIDIA RTX A2000", "memory_gb": 11.8},
    {"id": "cuda:1", "name": "NVIDIA T400", "memory_gb": None},
]


def emit(event) -> None:
    sys.stdout.buffer.write(encode_event(event))
    sys.stdout.buffer.flush()


def segment(request, cancelled) -> None:
    kind = Path(request.model).name
    if kind == "dying":
        emit(Progress(request.id, 0.2, "Finding the organs"))
        print("RuntimeError: out of breath", file=sys.stderr, flush=True)
        os.abort()
    if kind == "wrong":
        emit(Failure(request.id, "input", "This is not a CT.", "details for the log"))
        return
    step = 0
    while kind in ("slow", "deaf"):
        step += 1
        emit(Progress(request.id, min(0.9, step / 100), "Finding the organs"))
        time.sleep(0.02)
        if kind == "slow" and request.id in cancelled:
            emit(Stopped(request.id))
            return
    emit(Progress(request.id, 0.4, "Finding the organs"))
    emit(Progress(request.id, 0.8, "Outlining the organs"))
    from FlareSegmentLib.measures.organ_statistics import bounding_box, keep_only, organ_boxes, organ_statistics

    volume = request.map_volume()
    labels = np.where(volume.array >= 1000, volume.array - 1000, 0).astype(np.uint8)
    organs = [organ for organ in ORGANS if request.organs is None or organ.key in request.organs]
    labels = keep_only(labels, organs, request.region)
    box = request.labels.write_box(labels, bounding_box(labels))
    if request.surfaces:
        from FlareSegmentSlicerLib.rendering.segment_surfaces import write_organ_surfaces

        values = {organ.key: organ.label for organ in organs}
        boxes = organ_boxes(labels, organs)
        write_organ_surfaces(request.surfaces, labels, boxes, values, volume.affine_ras, request.smoothing)
    seconds = {"preprocess": 0.1, "network": 0.2, "postprocess": 0.1, "total": 0.4}
    region = request.region or tuple(slice(0, n) for n in labels.shape)
    facts = offset(organ_statistics(volume.part(region), labels[region], organs), region)
    warnings = ["The slices are thick."]
    emit(Result(request.id, seconds, warnings, "cpu", "fake 1", facts, box, request.surfaces is not None))


def main() -> None:
    requests: queue.Queue = queue.Queue()
    cancelled: set[int] = set()

    def read() -> None:
        for line in sys.stdin.buffer:
            request = decode_request(line)
            if request.command == "cancel":
                cancelled.add(request.target)
            else:
                requests.put(request)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while (request := requests.get()).command != "shutdown":
        if request.command == "hello":
            emit(Ready(request.id, 1, os.getpid(), "0", "cpu", 1, request.model, DEVICES, NICENESS))
        elif isinstance(request, CompareRequest) and list(request.organs) == ["spleen"]:
            time.sleep(3600)
        elif isinstance(request, CompareRequest):
            emit(Worker(sys.stdin.buffer, sys.stdout.buffer)._compare(request))
        else:
            segment(request, cancelled)


if __name__ == "__main__":
    main()
