"""What stands for segmenting a CT where a cohort's schedule, tables and report are tried: records without any CT."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from FlareSegmentCohortLib.case_task import DONE, FAILED, CannotWork, Job, fail
from FlareSegmentCohortLib.cohort_cases import CohortCase
from FlareSegmentCohortLib.output_folder import write_record
from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import ORGANS

MEAN_SECONDS = float(os.environ.get("FLARE_STAND_IN_SECONDS", "0"))


def job(output: Path, **changes: Any) -> Job:
    """A job whose results lie in a folder."""
    facts = {"model": None, "model_identity": "m", "device": "cpu", "label_ids": "flaresegment", "kinds": ()}
    return Job(**{"output": str(output), **facts, "label_map": None, "settings": "s", **changes})


def record_of(case: CohortCase, job: Job, volume: float | None = None, **changes: Any) -> dict[str, Any]:
    """A record as a worker writes it, with numbers that depend on the case alone."""
    chance = random.Random(case.case)
    organs = {}
    for number, organ in enumerate(ORGANS):
        size = chance.lognormvariate(7.2 - number, 0.2) if volume is None else volume
        organs[organ.key] = {
            "label": organ.label, "volume_ml": round(size, 4), "cut": int(chance.random() < 0.1),
            "mean_hu": 100.0, "sd_hu": 20.0, "left_right_mm": 100.0, "front_back_mm": 90.0, "head_foot_mm": 80.0,
        }  # fmt: skip
    return {
        "case": case.case,
        "settings": job.settings,
        "state": case.state,
        "content": case.case,
        "model": "stand-in 1.0",
        "begun": time.time() - 1,
        "finished": time.time(),
        "organs": organs,
        "warnings": ["It is none."] if chance.random() < 0.2 else [],
        "size": [1, 1, 1],
        "spacing_mm": [1.0, 1.0, 1.0],
        "device": "cpu",
        "files": {},
        "seconds": {"read": 0.1, "preprocess": 0.2, "network": 1.0, "postprocess": 0.1, "measure": 0.1, "write": 0.1},
        **changes,
    }


def sleep(case: CohortCase, job: Job) -> dict[str, Any]:
    """Sleep for a random time, and keep a record."""
    time.sleep(random.expovariate(1 / MEAN_SECONDS) if MEAN_SECONDS else 0)
    write_record(Path(job.output), case.name, record_of(case, job))
    return {"result": DONE, "seconds": 1.3}


def by_name(case: CohortCase, job: Job) -> dict[str, Any]:
    """Do what the case's name says: kill the process, fail, find the disk full, or be done."""
    if "kills" in case.case:
        os.kill(os.getpid(), signal.SIGKILL)
    if "fails" in case.case:
        reason = f"{case.source} is no CT of {len(case.case)} mm"
        fail(case, job, reason)
        return {"result": FAILED, "error": reason}
    if "full" in case.case:
        raise CannotWork("the disk is full")
    if "strange" in case.case:
        raise InputError("nobody expects it")
    with open(Path(job.output) / "done.txt", "a", encoding="utf-8") as stream:
        stream.write(f"{case.case}\n")
    return sleep(case, job)
