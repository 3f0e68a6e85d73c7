"""Training on a GPU, tested without one: on the device "meta", whose tensors have no values, every operation, copy and
question for a value is seen, and what cannot be watched there is asked of a stand-in.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten  # noqa: E402

from FlareSegmentTrainingLib.datasets.preparation import PreparedCase  # noqa: E402
from FlareSegmentTrainingLib.training.batches import Batch, BatchSource  # noqa: E402
from FlareSegmentTrainingLib.training.configuration import StageSettings, parse  # noqa: E402
from FlareSegmentTrainingLib.training.distributed import Group  # noqa: E402
from FlareSegmentTrainingLib.training.presets import read_preset  # noqa: E402
from FlareSegmentTrainingLib.training.trainer import StageTrainer  # noqa: E402

CONFIGURATION = parse(read_preset("flare-organs-gpu"))
ORGANS, INTENSITY = CONFIGURATION.organs, CONFIGURATION.intensity
DEVICE = torch.device("meta")
SHAPE = (48, 56, 64)


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for a GPU, and finds tensors of two devices in one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        name = str(func)
        if "meta" in devices or str(kwargs.get("device", "")) == "meta":
            self.operations += 1
            copied = {*devices, torch.device(kwargs.get("device") or "meta").type}
            if "_to_copy" in name:
                if len(copied) > 1 and not kwargs.get("non_blocking"):
                    self.found["a copy that is waited for"] += 1
            elif "nonzero" in name or "masked_select" in name:
                self.found[name] += 1
            elif len({tensor.device.type for tensor in tensors if tensor.dim()}) > 1:
                self.found[f"two devices in {name}"] += 1
            if "_local_scalar_dense" in name:
                self.found["a value"] += 1
                return 1.0
        return func(*args, **kwargs)


class HiddenWaits(TorchFunctionMode):
    """Counts lists of numbers that torch brings to the device by itself, which it waits for out of sight."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__") and args[0].device == DEVICE:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            masks = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
            self.found["an index that is a list or a mask"] += masks or any(isinstance(part, list) for part in parts)
        if name in ("tensor", "as_tensor") and str(kwargs.get("device")) == "meta":
            self.found["a tensor made of numbers there"] += 1
        return func(*args, **kwargs)


@contextmanager
def watched():
    """Gives the counts of everything found; afterwards, without what was looked for and not there."""
    with HiddenWaits() as hidden, Waits() as waits:
        yield waits
    waits.found = +(waits.found + hidden.found)


def stage(**augmentation: float) -> StageSettings:
    """The fine stage of the preset with small patches, and everything that augments drawn often."""
    settings = CONFIGURATION.stages[1]
    changed = {"bowel_probability": 0.0, "mass_probability": 0.0, "other_mass_probability": 0.0}
    changed |= {"perirenal_fat_probability": 0.0, "gamma_probability": 0.5, "strong_noise_probability": 0.3}
    kinds = tuple(replace(kind, patch=(32, 32, 32)) for kind in settings.training.batches)
    return replace(
        settings,
        training=replace(settings.training, batches=kinds, distillation=0.5, starting_point=0.1),
        augmentation=replace(settings.augmentation, **{**changed, **augmentation}),
    )


def cases() -> list[PreparedCase]:
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    for label in range(1, len(ORGANS) + 1):
        labels[10:30, 10 * label : 10 * label + 8, 20:40] = label
    voxels = [np.argwhere(labels.numpy() == label) for label in range(1, len(ORGANS) + 1)]
    image = torch.linspace(-1.0, 1.0, labels.numel()).view(SHAPE)
    return [PreparedCase("a", image, labels, (4.0, 4.0, 4.0), dict.fromkeys(ORGANS, 1.0), voxels, 1.0)]


def source(device: torch.device, **augmentation: float) -> BatchSource:
    return BatchSource(stage(**augmentation), cases(), ORGANS, INTENSITY, 0, 1, Group("gloo"), device=device)


def test_nothing_waits_for_a_gpu_while_a_batch_is_made() -> None:
    made = source(DEVICE)
    made._fits = True  # type: ignore[assignment]
    made.batch(0)  # the first one places the cases and the noise
    numbers = []
    for step in range(1, 6):
        with watched() as waits:
            batch = made.batch(step)
        assert not waits.found, waits.found
        assert batch.images.device == batch.labels.device == batch.weights.device == DEVICE
        numbers.append((len(batch.images), waits.operations))
    (few, less), (many, more) = min(numbers), max(numbers)
    assert few < many and more - less < 30 * (many - few), "most commands serve the whole batch"


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_step_waits_for_a_gpu_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **more: nullcontext())  # of meta there is none
    made = StageTrainer(stage(), 100, INTENSITY, ORGANS, 0, DEVICE, "fp32", False, Group("gloo"))
    made.start_from(
        {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in made.network.state_dict().items()}
    )
    images = torch.zeros(2, 1, 32, 32, 32, device=DEVICE)
    batch = Batch(images, images[:, 0].to(torch.uint8), torch.ones(2, len(ORGANS), device=DEVICE))
    for made.step in (1, 60):
        assert made.freezing is (made.step == 60)
        with watched() as waits:
            made.train_step(batch)
        assert waits.found == {"a value": 1}, "the loss, which must be a number"


def test_patches_are_made_in_a_stream_of_their_own_and_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []

    @contextmanager
    def stream(own: object):
        events.append("in")
        yield
        events.append("out")

    present = SimpleNamespace(wait_event=lambda event: events.append(("waits for", event)))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: present)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, used: events.append((self.data_ptr(), used)))
    made, plain = (source(torch.device("cpu")) for _ in range(2))
    made._stream = SimpleNamespace(record_event=lambda: events.append("recorded") or len(events))  # type: ignore
    (batch,) = made.prefetched(3, 4)
    tensors = (batch.images, batch.labels, batch.weights)
    assert events[:4] == ["in", "recorded", "out", ("waits for", 2)]
    assert events[4:] == [(tensor.data_ptr(), present) for tensor in tensors]
    assert torch.equal(batch.images, plain.batch(3).images)


def test_evaluation_tries_no_algorithms_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    made = StageTrainer(stage(), 100, INTENSITY, ORGANS, 0, torch.device("cpu"), "fp32", False, Group("gloo"))
    seen: list[bool] = []
    score = made._score

    def watching(*arguments):
        seen.append(torch.backends.cudnn.benchmark)
        return score(*arguments)

    monkeypatch.setattr(made, "_score", watching)
    made.evaluate(cases())
    assert seen == [False] and torch.backends.cudnn.benchmark
