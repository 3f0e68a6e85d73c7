"""Which scans a run trains and validates on, by their content: what a resumed run and an evaluation compare with.

`cases.json` in the run's folder has for each case its side, patient, the hash of its files and meaning
(`Case.content_hash`) and the hash of its scan (`scan_identity.scan_hash`). Names alone would say nothing: other data
may use the same, and data that moved or were prepared may have others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentTrainingLib.datasets.cases import Case
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase
from FlareSegmentTrainingLib.datasets.scan_identity import SHORT
from FlareSegmentTrainingLib.datasets.splits import Split
from FlareSegmentTrainingLib.training.run_folder import RunFolder

CASES_FILE = "cases.json"
TRAINING, VALIDATION = "training", "validation"


def check_no_twins(training: Sequence[PreparedCase], validation: Sequence[PreparedCase]) -> None:
    """Raise InputError when one scan is on both sides, whatever it is called."""
    names = {case.scan: case.name for case in training if case.scan}
    both = [f"{case.name} is {names[case.scan]}" for case in validation if case.scan in names]
    if both:
        raise InputError(f"Validation scans must never be trained on: {', '.join(both[:5])}. Remove one of the two.")


def write_cases(
    folder: RunFolder, cases: Sequence[Case], split: Split, training: Sequence[PreparedCase], validation: Sequence
) -> None:
    """Write `cases.json`. Raises FlareSegmentError when the disk does not take it."""
    by_name = {case.name: case for case in cases}
    content = {
        prepared.name: {
            "side": side,
            "patient": by_name[prepared.name].patient,
            "content_sha256": by_name[prepared.name].content_hash(),
            "weights": dict(by_name[prepared.name].weights),
            "scan_sha256": prepared.scan,
        }
        for side, part in ((TRAINING, training), (VALIDATION, validation))
        for prepared in part
    }
    folder.write_json(CASES_FILE, content)


def read_cases(folder: Path) -> dict[str, dict]:
    """What `write_cases` wrote into a run's folder; empty where it did not."""
    try:
        content = RunFolder(folder).read_json(CASES_FILE)
    except FlareSegmentError:
        return {}
    return {name: entry for name, entry in content.items() if isinstance(entry, dict)}


def cases_of_run(
    folder: RunFolder, split: Split, cases: Sequence[Case], say: Callable[[str], None] = lambda line: None
) -> list[Case]:
    """The run's own cases among those that lie at its locations now, under their names in the run, wherever they are
    and whatever they are called now.

    Args:
        say: told which cases are there that are not the run's.

    Raises:
        InputError: cases of the run are missing, or have other images, labels, meanings or grades than before.
    """
    known = read_cases(folder.path)
    by_name = {case.name: case for case in cases}
    by_content: dict[str, Case] = {}
    if known:
        for case in cases:
            try:
                by_content.setdefault(case.content_hash(), case)
            except InputError:
                continue  # if it is one of the run's it will be missed
    result: list[Case] = []
    changed: list[str] = []
    graded: list[str] = []
    missing: list[str] = []
    for name in (*split.training, *split.validation):
        entry = known.get(name)
        own = by_name.get(name) if entry is None else by_content.get(str(entry.get("content_sha256")))
        if own is not None and entry is not None and entry.get("weights", own.weights) != own.weights:
            graded.append(name)
        elif own is not None:
            patient = own.patient if entry is None else str(entry.get("patient", own.patient))
            result.append(replace(own, name=name, patient=patient))
        else:
            (changed if name in by_name else missing).append(name)
    if changed or graded or missing:
        raise InputError(
            f"The data of {folder.path} are not what they were: {_differences(changed, graded, missing)}. "
            f"Put them back, or train on with --start-from {folder.best} and a new --output."
        )
    taken = {_place(case) for case in result}
    new = [case.name for case in cases if _place(case) not in taken]
    if new:
        say(f"Warning: {_some(new)} {'is' if len(new) == 1 else 'are'} not in this run and not used.")
    return result


def _place(case: Case) -> object:
    return case.phantom_seed if case.image is None else case.image


def _differences(changed: Sequence[str], graded: Sequence[str], missing: Sequence[str]) -> str:
    parts = []
    if changed:
        parts.append(f"image, labels or their meaning changed of {_some(changed)}")
    if graded:
        parts.append(f"grades of the labels changed of {_some(graded)}")
    if missing:
        parts.append(f"missing: {_some(missing)}")
    return "; ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def short_scans(cases: Sequence[PreparedCase]) -> list[str]:
    """What a model's description tells of the scans it was made with: enough to know them again, and no name."""
    return sorted(case.scan[:SHORT] for case in cases if case.scan)
