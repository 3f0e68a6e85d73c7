"""Nothing gets in and nothing gets out: code in model files, archives that reach elsewhere, ports, shells, names.

Names and archives one by one are in `test_data_archives.py`; here is what spans the project.
"""

from __future__ import annotations

import ast
import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from test_bad_input import status_field
from test_worker import NETWORK, Client, prepared

from FlareSegmentLib.errors import InputError, ModelError
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentLib.model.model_file import load_model, save_model
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.protocol import Hello, Ready, Result
from FlareSegmentLib.worker.shared_files import shared_folders
from FlareSegmentTrainingLib.datasets.archives import Limits, unpack
from FlareSegmentTrainingLib.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted([*(ROOT / "FlareSegment").rglob("*.py"), *(ROOT / "FlareSegmentTraining").rglob("*.py")])
LABELS = {1: "liver", 2: "right_kidney", 3: "left_kidney", 4: "spleen"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    description = ModelDescription(
        "small", "1", "none", LABELS, Intensity(-200, 300), (Stage("only", "volume", NETWORK, (4.0, 4.0, 4.0)),)
    )
    save_model(tmp_path / "model", description, {"only": build_network(NETWORK)})
    return tmp_path / "model"


def with_weights(model: Path, content: bytes) -> Path:
    """The model with other weights whose SHA-256 is the one in its description: made by somebody who knows how."""
    (model / "weights.pt").write_bytes(content)
    description = json.loads((model / "model.json").read_text())
    description["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
    (model / "model.json").write_text(json.dumps(description))
    return model


# Code in files ------------------------------------------------------------------------------------


class Payload:
    """Makes a file where it is unpickled, in one of several ways."""

    def __init__(self, kind: str, marker: Path) -> None:
        self.kind, self.marker = kind, marker

    def __reduce__(self) -> tuple:
        if self.kind == "system":
            return os.system, (f"touch {self.marker}",)
        if self.kind == "open":
            return open, (str(self.marker), "w")
        if self.kind == "exec":
            return exec, (f"open({str(self.marker)!r}, 'w')",)
        if self.kind == "process":
            return subprocess.check_output, (["touch", str(self.marker)],)
        return Path.touch, (self.marker,)


def saved(value: object, how: str) -> bytes:
    stream = io.BytesIO()
    if how == "pickle":
        pickle.dump(value, stream)
    elif how == "old format":
        torch.save(value, stream, _use_new_zipfile_serialization=False)
    else:
        torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize("how", ["pickle", "old format", "zip"])
@pytest.mark.parametrize("kind", ["system", "open", "exec", "process", "method"])
@pytest.mark.parametrize("inside", ["alone", "in a dictionary", "beside tensors"])
def test_no_code_runs_from_a_model_or_a_checkpoint(
    model: Path, tmp_path: Path, how: str, kind: str, inside: str
) -> None:
    marker = tmp_path / "code has run"
    payload: object = Payload(kind, marker)
    if inside != "alone":
        payload = {"only": {"weight": torch.ones(2) if inside == "beside tensors" else 1, "bias": payload}}
    content = saved(payload, how)
    with pytest.raises(ModelError, match="was not loaded") as caught:
        load_model(with_weights(model, content))
    assert "\n" not in str(caught.value)
    folder = RunFolder(tmp_path / "run")
    folder.last.mkdir(parents=True)
    folder.state_file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be loaded") as refused:
        folder.load_tensors(folder.state_file)
    assert "\n" not in str(refused.value)
    assert not marker.exists()
    if how == "pickle" and inside == "alone" and kind == "open":  # the payload works where it is let in
        pickle.loads(content)
        assert marker.exists()


@pytest.mark.parametrize(
    "weights",
    [
        [],
        {},
        {"only": {}},
        {"only": {"x": 1}},
        {"only": torch.ones(3)},
        {"other": {}},
        {"only": {"head.weight": "text"}},
        "text",
        None,
        {1: 2},
        torch.ones(3),
    ],
    ids=str,
)
def test_weights_that_do_not_follow_the_schema_are_refused(model: Path, weights: object) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(with_weights(model, saved(weights, "zip")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"text", bytes(5000), b"\x80\x02.", gzip.compress(b"x", mtime=0)], ids=repr
)
def test_weights_that_are_none_are_refused(model: Path, content: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(with_weights(model, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"base_channels": 1 << 14},
        {"base_channels": 1 << 40},
        {"base_channels": 10**30},
        {"base_channels": -4},
        {"base_channels": 0},
        {"kernel_size": 10**5 + 1},
        {"out_channels": 10**9},
        {"encoder_convolutions": [10**7, 1, 1]},
        {"encoder_convolutions": [1] * 40, "decoder_convolutions": [1] * 39},
        {"encoder_convolutions": [], "decoder_convolutions": []},
        {"encoder_convolutions": "abc"},
        {"encoder_convolutions": [None, 1, 1]},
        {"architecture": "__import__"},
        {"architecture": ["vnet"]},
        {"normalization": {}},
    ],
    ids=str,
)
def test_a_network_larger_than_its_weights_is_refused_before_it_is_made(model: Path, change: dict) -> None:
    description = json.loads((model / "model.json").read_text())
    description["stages"][0]["network"].update(change)
    (model / "model.json").write_text(json.dumps(description))
    before = status_field("VmRSS") if Path("/proc/self/status").exists() else 0
    with pytest.raises(ModelError) as caught:
        load_model(model)
    assert "\n" not in str(caught.value)
    if before:
        assert status_field("VmRSS") - before < 200 << 20


# Archives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"], ids=["pax", "pax for all", "long name", "long link"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_header_of_gigabytes_is_refused(tmp_path: Path, kind: bytes, packed: bool) -> None:
    """tarfile would read the whole of such a header into memory."""
    header = tarfile.TarInfo("name")
    header.type, header.size = kind, 3 << 30
    archive = tmp_path / ("bomb.tar.gz" if packed else "bomb.tar")
    content = header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)
    archive.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match="bomb"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_bomb_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz", compresslevel=1) as file:
        info = tarfile.TarInfo("a.nii")
        info.size = 64 << 20
        for number in range(3):
            info.name = f"{number}.nii"
            file.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(InputError, match="bomb"):
        unpack(tmp_path / "bomb.tar.gz", tmp_path / "out", Limits(small_bytes=100 << 20))
    assert not (tmp_path / "out").exists()


def test_a_chain_of_links_in_tar_leads_nowhere(tmp_path: Path) -> None:
    """First a link to a folder elsewhere, then a file below the link: the classic way out."""
    (tmp_path / "elsewhere").mkdir()
    link = tarfile.TarInfo("images")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
    below = tarfile.TarInfo("images/a.nii")
    below.size = 1
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.addfile(link)
        file.addfile(below, io.BytesIO(b"1"))
    with pytest.raises(InputError, match="link"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_zip_entries_that_are_no_files_are_refused(tmp_path: Path, mode: int) -> None:
    info = zipfile.ZipInfo("a.nii")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


# What the code may not do -------------------------------------------------------------------------


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv", "input"}
FORBIDDEN_MODULES = {
    *("http", "urllib", "requests", "ftplib", "smtplib", "ssl", "socketserver", "xmlrpc", "telnetlib"),
    *("pickle5", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
}
ALLOWED_ATTRIBUTES = {
    "socket": {"gethostname"},
    "pickle": {"UnpicklingError"},
    "yaml": {"safe_load", "YAMLError"},
    "multiprocessing": {"spawn", "get_context", "parent_process"},  # which Python Dask starts; PyTorch's own
}

# Between a command and the workers that it started, where Dask pickles too; no file and no stranger is read.
OWN_WORKERS = {"connection.py imports from multiprocessing", "tasks.py pickle.dumps", "tasks.py pickle.loads"}


def findings(path: Path, source: str) -> list[str]:
    """What the file does that FlareSegment must not do."""
    found = []
    tree = ast.parse(source)
    for name, call in calls(tree):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if keywords.get("shell", "False") != "False" or "shell" in name.split(".")[-1]:
            found.append(f"{path.name}:{call.lineno} a shell")
        if name in FORBIDDEN_CALLS or name.endswith((".extractall", ".unpack_archive", "Unpickler")):
            found.append(f"{path.name}:{call.lineno} {name}")
        if name in ("torch.load", "torch.jit.load") and keywords.get("weights_only") != "True":
            found.append(f"{path.name}:{call.lineno} {name} without weights_only")
        if name == "np.load" and keywords.get("allow_pickle") != "False":
            found.append(f"{path.name}:{call.lineno} np.load without allow_pickle=False")
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found += [f"{path.name}:{node.lineno} imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.ImportFrom) and not node.level:
            module = (node.module or "").split(".")[0]
            if module in FORBIDDEN_MODULES or module in ALLOWED_ATTRIBUTES:
                found.append(f"{path.name}:{node.lineno} imports from {node.module}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            allowed = ALLOWED_ATTRIBUTES.get(node.value.id)
            if allowed is not None and node.attr not in allowed:
                found.append(f"{path.name}:{node.lineno} {node.value.id}.{node.attr}")
    return found


def test_no_shell_no_network_no_pickle_in_what_is_shipped() -> None:
    assert len(SHIPPED) > 40
    found = [line for path in SHIPPED for line in findings(path, path.read_text(encoding="utf-8"))]
    assert {re.sub(r":[0-9]+", "", line) for line in found} == OWN_WORKERS
    flare = ROOT / "flare.py"
    assert findings(flare, flare.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(name, shell=True)",
        "os.system(name)",
        "torch.load(file)",
        "np.load(file)",
        "archive.extractall(folder)",
        "import urllib.request",
        "from http import client",
        "import socket\nsocket.create_server(('', 1))",
        "pickle.loads(data)",
        "asyncio.create_subprocess_shell(name)",
        "import yaml\nyaml.load(text)",
        "from yaml import load",
        "import multiprocessing\nmultiprocessing.Process(target=work)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert findings(Path("example.py"), source)


# The worker ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from Linux's /proc")
def test_the_worker_opens_no_socket_and_its_files_are_private(model: Path) -> None:
    volume = Volume(np.random.default_rng(0).normal(20, 150, (30, 40, 40)).astype(np.int16), (3.0, 3.0, 3.0))
    client = Client()
    try:
        with shared_folders() as folder:
            client.send(Hello(1, SegmentationRequest(model, "cpu", 1)))
            client.wait(Ready)
            request = prepared(2, volume, folder, model, "cpu", 1)
            client.send(request)
            result, _ = client.wait(Result)
            for path in (Path(request.volume.voxels), Path(result.labels.path)):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
                assert path.stat().st_uid == os.getuid()
            assert internet_sockets(client.process.pid) == []
            private = Path(request.volume.voxels).parent
        assert not private.exists()
    finally:
        client.process.kill()
        client.process.wait()


def internet_sockets(pid: int) -> list[str]:
    """Lines of /proc/net about the process's own sockets."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime, such as the one that lists the folder
            links.append(os.readlink(link))
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    lines = []
    for table in ("tcp", "tcp6", "udp", "udp6", "raw"):
        file = Path(f"/proc/{pid}/net/{table}")
        if file.exists():
            lines += [line for line in file.read_text().splitlines()[1:] if line.split()[9] in inodes]
    return lines


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from Linux's /proc")
def test_a_listening_process_would_be_found() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert len(internet_sockets(os.getpid())) >= 1


# Private data -------------------------------------------------------------------------------------


def test_a_trained_model_says_nothing_of_patients_and_paths(tmp_path: Path) -> None:
    """What leaves the house is best/: neither the names of the cases nor the folders they came from are in it."""
    from test_training_run import ONE_THREAD, PRESET, TRAIN

    from FlareSegmentLib.phantom.torso import make_phantom

    data = tmp_path / "DOE_JANE_4711"
    data.mkdir()
    for seed in range(3):
        volume, labels = make_phantom(seed, (8.0, 8.0, 8.0))
        for array, kind in ((volume.array, "ct"), (labels, "labels")):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(volume.spacing)
            sitk.WriteImage(image, str(data / f"patient_miller_{seed}_{kind}.nii.gz"))
    (tmp_path / "tiny.json").write_text(json.dumps(PRESET))
    arguments = ["--preset", tmp_path / "tiny.json", "--data", data, "--output", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, TRAIN, *map(str, arguments), "--epochs", "1", "--device", "cpu"],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    places = [tmp_path / "run" / "best", tmp_path / "run" / "last", tmp_path / "run" / "checkpoints"]
    # last/training.pt, which only --resume reads, has the cases' names for their scores
    files = [file for place in places for file in place.rglob("*") if file.is_file() and file.name != "training.pt"]
    assert len(files) >= 5
    private = [b"DOE_JANE", b"4711", b"miller", str(tmp_path).encode()]
    found = [(file.name, word) for file in files for word in private if word in file.read_bytes()]
    assert found == []
    load_model(tmp_path / "run" / "best")
