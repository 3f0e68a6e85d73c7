"""Random damage: files through the readers, words through the command line, lines through the worker's protocol.

FLARE_FUZZ_FILES sets how many files are damaged (default 200).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import Judge, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.model.description import DESCRIPTION_FILE, read_description
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.worker.protocol import ProtocolError, decode_event, decode_request

FILES = int(os.environ.get("FLARE_FUZZ_FILES", "200"))
SEED = 20260801
QUICK = settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck), derandomize=True)


def test_randomly_damaged_files(tmp_path: Path, figures: dict[str, str]) -> None:
    script = Path(__file__).resolve().parents[1] / "helpers" / "fuzz_files.py"
    command = [sys.executable, str(script), str(tmp_path), str(FILES), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(300, 3 * FILES))
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"case {lines[-1:]} of seed {SEED}: status {done.returncode}\n{done.stderr[-2000:]}"
    assert done.stderr == ""
    counts = json.loads(lines[-1])
    assert sum(counts.values()) == FILES
    assert min(counts.values()) > FILES / 50  # the damage is neither total nor nil
    figures["Randomly damaged files"] = (
        f"{FILES}: {counts['read']} still a CT, {counts['refused']} refused in one line, no crash"
    )


OPTIONS = ["--output", "--reference", "--device", "--model", "--label-ids", "--json", "--help", "--", "-", "cpu", ""]
WORDS = st.lists(st.one_of(st.sampled_from(OPTIONS), st.text(max_size=20)), max_size=6)


@QUICK
@given(words=WORDS)
def test_random_command_lines(segment_script, words: list[str]) -> None:
    """Arguments are understood, or refused by the one exception that ends in one line."""
    try:
        options = segment_script.parse_arguments(words)
    except InputError as error:
        assert str(error)  # noqa: PT017
    except SystemExit as request:
        assert request.code == 0 and "--help" in words  # noqa: PT017
    else:
        assert options.device in ("auto", "cpu", "cuda", "mps")


@settings(parent=QUICK, max_examples=40)
@given(words=WORDS)
def test_random_words_behind_a_ct(judge: Judge, tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    folder = tmp_path_factory.mktemp("words")
    (folder / "in").mkdir()
    ct = save(folder / "in" / "ct.mha", compressed=False)
    former = os.getcwd()
    os.chdir(folder / "in")
    try:
        status = judge.status([ct, *(word.replace("\0", "") for word in words)], folder / "results")
    finally:
        os.chdir(former)
    assert status in (0, 2)
    if status == 2:
        assert not (folder / "results").exists()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
KEYS = (
    "id",
    "kind",
    "volume",
    "labels",
    "model",
    "device",
    "threads",
    "request",
    "region",
    "folders",
    "voxels",
    "message",
)
MESSAGES = st.dictionaries(st.sampled_from(KEYS), st.one_of(JSON, st.sampled_from(["Segment", "Hello", "Ready"])))


@settings(parent=QUICK, max_examples=200)
@given(line=st.one_of(st.binary(max_size=60), MESSAGES.map(lambda message: json.dumps(message).encode())))
def test_random_lines_of_the_protocol(line: bytes) -> None:
    for decode in (decode_request, decode_event):
        try:
            decode(line)
        except ProtocolError as error:
            assert "\n" not in str(error)  # noqa: PT017


@settings(parent=QUICK, max_examples=100)
@given(data=st.data())
def test_random_model_descriptions(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The bundled model's description with something else at a random place: read, or refused in one line."""
    content = json.loads((bundled_model_folder() / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    place: dict | list = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and data.draw(st.booleans()):
            place = place[key]
            continue
        if isinstance(place, dict) and data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = data.draw(JSON)
        break
    folder = tmp_path_factory.mktemp("model")
    (folder / DESCRIPTION_FILE).write_text(json.dumps(content), encoding="utf-8")
    try:
        read_description(folder)
    except FlareSegmentError as error:
        assert "\n" not in str(error)  # noqa: PT017
