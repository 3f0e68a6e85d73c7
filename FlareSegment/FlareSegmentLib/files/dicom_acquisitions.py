"""One acquisition out of a series that holds several at the same places: phases, passes, reconstructions.

Slices of different acquisitions must never be mixed. What tells them apart is looked for in this order: the acquisition
number, date and time, other headers that name phases or reconstructions, runs of rising times, runs of rising instance
numbers. A series in which nothing does is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_slice import DicomSlice

_SAME_PLACE = 0.2  # of the distance of slices
_SAME_PLACE_MM = 0.5
_WHOLE = 0.9  # of the length of the scan
_FEW_REPEATED = 0.25  # of the places: the ends of two stations of the table
_LEAST_APART = 4  # slices of an acquisition whose slices lie between those of another
_OTHER_END = 0.8  # of the places
_UNEVEN = 0.1  # of the distance of slices

_Labels = list[Hashable]


def one_acquisition(name: str, slices: Sequence[DicomSlice], normal: np.ndarray) -> tuple[list[DicomSlice], list[str]]:
    """The slices of one acquisition, sorted along the normal, and warnings about what was left out.

    name: what messages call the series.

    Raises:
        InputError: slices lie at the same places and nothing tells which ones belong together.
    """
    items = _without_copies(slices)
    copies = len(slices) - len(items)
    said = [f"{copies} files are copies of others and were left out."] if copies else []
    heights = np.array([item.position @ normal for item in items])
    order = np.argsort(heights, kind="stable")
    items, heights = [items[index] for index in order], heights[order]
    places = _places(heights)
    count = int(places[-1]) + 1
    for what, labels in _ways_to_tell(items, places):
        chosen = _whole_acquisition(labels, places, heights, items, apart=count == len(items))
        if chosen is not None:
            left = len(items) - len(chosen)
            numbers = len(set(labels))
            return [items[index] for index in chosen], [
                *said,
                f"{left} slices lie at the place of another one (a second acquisition) and were left out: {numbers} "
                f"acquisitions are told apart by their {what}, and one was taken whole, with {len(chosen)} slices.",
            ]
    if count == len(items):
        return items, said
    if len(items) - count <= _FEW_REPEATED * count:
        kept = _largest_first(items, places)
        return kept, [
            *said,
            f"{len(items) - len(kept)} slices lie at the place of another one (a second acquisition) and were left "
            "out.",
        ]
    raise InputError(
        f"{name} holds {len(items)} slices at {count} places, of several acquisitions, and nothing in its files tells "
        "which ones belong together: export one acquisition as a series of its own."
    )


def _without_copies(slices: Sequence[DicomSlice]) -> list[DicomSlice]:
    """Files that are the same image twice count once."""
    kept: dict[Hashable, DicomSlice] = {}
    for item in slices:
        assert item.position is not None  # see DicomSeries.problem
        place = tuple(np.round(item.position, 3))
        kept.setdefault((item.instance_uid or item.path, place, item.instance_number, item.phase, item.kind), item)
    return list(kept.values())


def _places(heights: np.ndarray) -> np.ndarray:
    """The number of the place of each slice; those nearly at one height have one place. heights: rising, mm."""
    gaps = np.diff(heights)
    real = gaps[gaps > 0.1 * np.percentile(gaps, 95)] if gaps.size else gaps
    step = float(np.median(real)) if real.size else 0.0
    return np.concatenate([[0], np.cumsum(gaps > max(0.005, min(_SAME_PLACE * step, _SAME_PLACE_MM)))])


def _uneven(heights: np.ndarray) -> bool:
    gaps = np.diff(heights)
    return bool(gaps.max() - gaps.min() > _UNEVEN * np.median(gaps))


def _ways_to_tell(items: Sequence[DicomSlice], places: np.ndarray) -> Iterator[tuple[str, _Labels]]:
    """What may tell acquisitions apart, and the label that it gives each slice."""
    yield "acquisition numbers", [item.acquisition for item in items]
    yield "acquisition times", [(item.acquisition_date, item.acquisition_time) for item in items]
    yield "content times", [item.content_time for item in items]
    for index in range(len(items[0].phase)):
        yield "times or temporal positions", [item.phase[index] for item in items]
    for index in range(len(items[0].kind)):
        yield "kinds of image or reconstruction", [item.kind[index] for item in items]
    runs: tuple[tuple[str, Callable[[DicomSlice], tuple[str, ...]]], ...] = (
        ("acquisition times", lambda item: (item.acquisition_date, item.acquisition_time)),
        ("content times", lambda item: (item.content_time,)),
        ("instance numbers", lambda item: (item.instance_number,)),
    )
    for what, key in runs:
        values = [_numbers(key(item)) for item in items]
        if None not in values and len(set(values)) > 1:
            yield what, _runs([value for value in values if value is not None], places)
    numbers = [_numbers((item.instance_number,)) for item in items]
    if None not in numbers and len(set(numbers)) == len(numbers):
        yield "instance numbers", _turns([value[0] for value in numbers if value is not None], places)
    if None not in numbers and int(places[-1]) + 1 == len(items):
        yield "instance numbers", _repeats(numbers)


def _numbers(texts: tuple[str, ...]) -> tuple[float, ...] | None:
    """What is given of the texts as numbers; None where nothing is, or it is no number."""
    try:
        return tuple(float(text) for text in texts if text) or None
    except ValueError:
        return None


def _runs(values: Sequence[tuple[float, ...]], places: np.ndarray) -> _Labels:
    """Slices in the order of their values; a new run begins where a place comes again or, where all places differ, as
    far away as the other end of the scan.
    """
    labels: _Labels = [0] * len(values)
    seen: set[int] = set()
    run, before = 0, None
    apart = int(places[-1]) + 1 == len(places)
    for index in sorted(range(len(values)), key=lambda index: (values[index], places[index])):
        place = int(places[index])
        if place in seen or (apart and before is not None and abs(place - before) > _OTHER_END * len(places)):
            run, seen = run + 1, set()
        seen.add(place)
        labels[index], before = run, place
    return labels


def _turns(numbers: Sequence[float], places: np.ndarray) -> _Labels:
    """The how-manieth of its place each slice is, where the numbers take turns; else one label for all."""
    at: dict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(numbers)), key=lambda index: numbers[index]):
        at[int(places[index])].append(index)
    labels: _Labels = [0] * len(numbers)
    several = max(len(indices) for indices in at.values())
    for indices in at.values():
        for turn, index in enumerate(indices):
            if len(indices) != several or (numbers[index] - numbers[indices[0]]) != turn:
                return [0] * len(numbers)
            labels[index] = turn
    return labels


def _repeats(values: Sequence[Hashable]) -> _Labels:
    """The how-manieth of its value each slice is, from below, where all values come equally often; else one label for
    all.
    """
    seen: Counter[Hashable] = Counter()
    labels: _Labels = []
    for value in values:
        labels.append(seen[value])
        seen[value] += 1
    return labels if len(set(seen.values())) == 1 else [0] * len(labels)


def _whole_acquisition(
    labels: _Labels, places: np.ndarray, heights: np.ndarray, items: Sequence[DicomSlice], apart: bool
) -> list[int] | None:
    """Indices of the largest group of one label, the first of equal ones; None where it is not whole or has a place
    twice. Where all slices lie apart, it must also be evenly spaced by itself.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        groups[label].append(index)
    if len(groups) < 2:
        return None

    def first_shown(group: list[int]) -> tuple:
        return min((_numbers((items[index].instance_number,)) or (0.0,), items[index].path) for index in group)

    largest = max(len(group) for group in groups.values())
    best = min((group for group in groups.values() if len(group) == largest), key=first_shown)
    chosen = heights[best]
    if len(set(places[best])) < len(best) or len(best) < (_LEAST_APART if apart else 2):
        return None
    if chosen[-1] - chosen[0] < _WHOLE * (heights[-1] - heights[0]):
        return None
    return None if apart and _uneven(chosen) else best


def _largest_first(items: Sequence[DicomSlice], places: np.ndarray) -> list[DicomSlice]:
    """The slices of the most complete acquisition, and others only where it has none."""
    sizes: dict[str, int] = defaultdict(int)
    for item in items:
        sizes[item.acquisition] += 1
    kept: dict[int, DicomSlice] = {}
    for index in sorted(
        range(len(items)), key=lambda index: (-sizes[items[index].acquisition], items[index].acquisition)
    ):
        kept.setdefault(int(places[index]), items[index])
    return [kept[place] for place in sorted(kept)]
