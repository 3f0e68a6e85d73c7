"""Train a model without a window, in Slicer or in any Python that has torch:

    Slicer --no-main-window --python-script train.py --preset NAME --data DIR [--data ...] --output RUN
    PythonSlicer -m torch.distributed.run --nproc-per-node 2 train.py --preset NAME --data DIR --output RUN

FlareSegmentTrainingLib/training/run_folder.py describes the run's folder; RUN/best is a model for `segment.py --model
RUN/best`. Ctrl-C, SIGTERM or a file RUN/stop saves and ends the run; --resume --output RUN continues it as if it had
not been stopped. Where the data moved, --data names their new place; any other option has to be what the run began
with. To train longer or otherwise, begin a new run with --start-from RUN/best.

Exit status: 0 done; 2 bad input or usage, with one line on standard error; 1 anything else, also stopped, in one line
(FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script raises, so every way out ends in
slicer.util.exit.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().with_name("find_libraries.py")))

from FlareSegmentLib import command_line  # noqa: E402
from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.processes import set_priority  # noqa: E402


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options. Raises InputError."""
    from FlareSegmentTrainingLib.training.presets import preset_names

    parser = command_line.ArgumentParser(prog="train.py", description="Train a segmentation model.")
    parser.add_argument("--preset", metavar="NAME", help=f"{', '.join(preset_names())}, or the path of a JSON file")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR",
        help="folder, archive or list of CTs with labels, or phantom:N; may be given several times",
    )
    parser.add_argument(
        "--shares",
        metavar="N,N,...",
        help="how often cases are drawn from each --data, relative to each other, such as 4,3,1 (default: by number)",
    )
    parser.add_argument(
        "--start-from", metavar="MODEL", help="begin with the weights of a model folder, or of the bundled model"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of every stage, instead of the preset's")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="train for M minutes in all, instead of the preset's epochs; the learning rate follows the clock",
    )
    parser.add_argument("--limit-cases", type=int, metavar="N", help="use at most N training and N validation cases")
    parser.add_argument(
        "--label-map", metavar="MAP", help="what label values mean: a table's name, a JSON file or 1=liver,2=spleen"
    )
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="regular expression with one group that finds the patient in a case's name; "
        "patients stay on one side of the split",
    )
    parser.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="JSON lists of training and validation cases, or nnU-Net's splits_final.json with --fold (default: 90/10)",
    )
    parser.add_argument(
        "--fold", metavar="K/N", help="validate on fold K (from 0) of N, dealt out or of --split, instead of on a tenth"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder of prepared cases (default: RUN/prepared)")
    parser.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps (default: auto)"
    )
    parser.add_argument(
        "--priority",
        choices=("normal", "background"),
        help="background: other programs go first; normal: even where the program that starts the training has less",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN; begin it when there is none")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change a value of the preset, such as training.learning_rate=0.001 or stages.fine.training.batch=2",
    )
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1 or options.limit_cases is not None and options.limit_cases < 1:
        raise InputError("--epochs and --limit-cases must be at least 1.")
    if options.minutes is not None and not (options.minutes > 0 and options.epochs is None):
        raise InputError("--minutes must be above 0, and goes without --epochs.")
    return options


def _settings(options: argparse.Namespace, folder) -> dict:
    """What config.json holds: the command line's, or on resume the run's own. Raises InputError."""
    from FlareSegmentTrainingLib.training.configuration import parse
    from FlareSegmentTrainingLib.training.presets import read_preset
    from FlareSegmentTrainingLib.training.run_folder import CONFIGURATION_FILE

    resuming = options.resume and folder.exists()
    begun = bool(options.preset and options.data)
    if folder.began() and not options.resume:
        raise InputError(f"{folder.path} holds a run already: --resume continues it, or choose another --output.")
    if folder.is_running():
        raise InputError(f"A process ({folder.progress().get('pid')}) is training in {folder.path} now; stop it first.")
    saved = folder.read_json(CONFIGURATION_FILE) if resuming else None
    if saved:
        return _resumed(options, saved, folder)
    if options.resume and not begun:
        raise InputError(
            f"{folder.path} holds no run to continue: check --output, or begin one with --preset and --data."
        )
    if not begun:
        raise InputError("--preset and --data are needed to begin a run (see --help).")
    content = _content(options, read_preset(options.preset))
    if len(parse(content).shares) not in (0, len(options.data)):
        raise InputError(f"--shares {options.shares}: one number is needed for each of the {len(options.data)} --data.")
    return {
        "configuration": content,
        "data": _places(options.data),
        "label_map": options.label_map,
        "fold": options.fold,
        "limit_cases": options.limit_cases,
        "cache": str(options.cache.resolve()) if options.cache else None,
        "start_from": options.start_from,
        "patient_pattern": options.patient_pattern,
        "split": _listed_split(options.split, options.fold) if options.split else None,
    }


def _content(options: argparse.Namespace, content: dict) -> dict:
    """A configuration with what the command line changes. Raises InputError."""
    from FlareSegmentTrainingLib.training.configuration import override, with_minutes

    shares = [f"shares=[{options.shares}]"] if options.shares else []
    epochs = [f"training.epochs={options.epochs}"] if options.epochs else []
    for assignment in [*epochs, *shares, *options.overrides]:
        content = override(content, assignment)
    return with_minutes(content, options.minutes) if options.minutes else content


def _places(data: list[str]) -> list[str]:
    return [place if place.startswith("phantom:") else str(Path(place).resolve()) for place in data]


def _listed_split(file: Path, fold: str | None) -> dict[str, list[str]]:
    from FlareSegmentTrainingLib.datasets.splits import read_split

    split = read_split(file, fold)
    return {"training": list(split.training), "validation": list(split.validation)}


def _resumed(options: argparse.Namespace, saved: dict, folder) -> dict:
    """The run's own settings; data may lie elsewhere, and the cache. Raises InputError where an option would change the
    run.
    """
    changed = _changed_options(options, saved)
    if changed:
        raise InputError(
            f"--resume continues {folder.path} as it was begun, but {', '.join(changed)} differ. Give --resume and "
            f"--output alone; to train longer or otherwise, begin a new --output with --start-from {folder.best}."
        )
    settings = dict(saved)
    if options.cache:
        settings["cache"] = str(options.cache.resolve())
    if options.data:
        settings["data"] = _places(options.data)
        if len(settings["data"]) != len(saved["data"]):
            raise InputError(
                f"{folder.path} was begun with {len(saved['data'])} --data ({', '.join(saved['data'])}): name the new "
                "place of each, in this order."
            )
    gone = [place for place in settings["data"] if not place.startswith("phantom:") and not Path(place).exists()]
    if gone:
        raise InputError(
            f"{gone[0]} is missing. Where the data moved, name the new place: --resume --output {folder.path} "
            "--data PLACE."
        )
    return settings


def _changed_options(options: argparse.Namespace, saved: dict) -> list[str]:
    """The options given with --resume that are not what the run was begun with. Raises InputError."""
    from FlareSegmentTrainingLib.training.presets import read_preset

    changed = []
    own = saved["configuration"]
    if options.preset:
        changed += ["configuration"] if _content(options, read_preset(options.preset)) != own else []
    else:
        given = [("--epochs", options.epochs), ("--minutes", options.minutes), ("--shares", options.shares)]
        given += [("--set", assignment) for assignment in options.overrides]
        for name, value in given:
            alone = argparse.Namespace(epochs=None, minutes=None, shares=None, overrides=[])
            setattr(alone, {"--set": "overrides"}.get(name, name[2:]), [value] if name == "--set" else value)
            if value is not None and _content(alone, own) != own:
                changed.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    names = ("label_map", "fold", "limit_cases", "start_from", "patient_pattern")
    for name in names:
        value = getattr(options, name)
        if value is not None and value != saved.get(name):
            changed.append(f"--{name.replace('_', '-')} {value}")
    if options.split:
        try:
            same = _listed_split(options.split, saved.get("fold")) == saved.get("split")
        except InputError:
            same = False
        changed += [] if same else [f"--split {options.split}"]
    return changed


def _split(settings: dict, cases: list):
    """A new run's split. Raises InputError."""
    from FlareSegmentTrainingLib.datasets.splits import Split, parse_fold, split_cases

    if settings["split"]:
        split = Split(tuple(settings["split"]["training"]), tuple(settings["split"]["validation"]), "list")
    elif settings["fold"]:
        fold, folds = parse_fold(settings["fold"])
        split = split_cases(cases, folds=folds, fold=fold, seed=settings["configuration"].get("seed", 0))
    else:
        split = split_cases(cases, seed=settings["configuration"].get("seed", 0))
    limit = settings["limit_cases"]
    return Split(
        split.training[:limit], split.validation[:limit], split.method + (f", at most {limit} each" if limit else "")
    )


def _cases(settings: dict, folder, cache: Path, resume: bool, say, is_first: bool) -> tuple[list, object]:
    """The cases of a new or a resumed run, and its split; what is left out is said. Raises InputError."""
    from FlareSegmentTrainingLib.datasets.cases import (
        find_cases,
        label_maps_in_use,
        patient_pattern,
        print_left_out,
        with_patients,
    )
    from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
    from FlareSegmentTrainingLib.datasets.scan_identity import MEMORY_FILE, without_twins
    from FlareSegmentTrainingLib.datasets.splits import SPLIT_FILE, read_split, remarks_on_split
    from FlareSegmentTrainingLib.training.run_cases import cases_of_run

    def leave_out(item) -> None:
        if is_first:
            print_left_out(item)

    cases = find_cases(
        settings["data"],
        label_map=parse_label_map(settings["label_map"]) if settings["label_map"] else None,
        unpack_to=(cache if settings["cache"] else folder.path) / "unpacked",
        left_out=leave_out,
        say=say,
    )
    for line in label_maps_in_use(cases, settings["data"]):
        say(line)
    cases = with_patients(cases, patient_pattern(settings.get("patient_pattern")), say)
    if resume and (folder.path / SPLIT_FILE).is_file():
        split = read_split(folder.path / SPLIT_FILE)
        return cases_of_run(folder, split, cases, say), split
    cases = without_twins(cases, leave_out, cache / MEMORY_FILE, say)
    split = _split(settings, cases)
    for line in remarks_on_split(split, cases):
        say(line)
    return cases, split


def _first_weights(model: str | None, organs: tuple[str, ...]) -> dict:
    """Stage name -> weights of the model that training begins with. Raises InputError, ModelError."""
    from FlareSegmentLib.model.model_card import bundled_model_folder
    from FlareSegmentLib.model.model_file import read_model

    if model is None:
        return {}
    description, weights = read_model(bundled_model_folder() if model == "bundled" else model)
    if tuple(description.labels[value] for value in sorted(description.labels)) != organs:
        raise InputError(f"--start-from {model}: it has other organs: {', '.join(description.labels.values())}.")
    return {
        stage: {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        for stage, state in weights.items()
    }


def train(options: argparse.Namespace) -> None:
    """Do everything that the command line asks for. Raises FlareSegmentError."""
    import torch

    from FlareSegmentTrainingLib.datasets.splits import FIXED_BY_DATA
    from FlareSegmentTrainingLib.runs.stop_request import NotSaved, Stopped
    from FlareSegmentTrainingLib.training.configuration import parse
    from FlareSegmentTrainingLib.training.devices import choose_precision, training_device
    from FlareSegmentTrainingLib.training.distributed import Group, local_rank
    from FlareSegmentTrainingLib.training.run_folder import CONFIGURATION_FILE, RunFolder
    from FlareSegmentTrainingLib.training.training_run import TrainingRun

    if options.priority:
        set_priority(options.priority == "background")
    folder = RunFolder(options.output)
    settings = _settings(options, folder)
    folder.forget_old_stop()
    configuration = parse(settings["configuration"])
    device = training_device(options.device, local_rank())
    precision = choose_precision(configuration.precision, device)
    group = Group("nccl" if device.type == "cuda" else "gloo")

    def say(line: str) -> None:
        if group.is_first:
            command_line.say(line)

    try:
        group.wait()  # every process has seen the folder as it was
        if options.resume and folder.progress().get("state") == "finished":
            say(f"{folder.path} was finished: to train longer, begin a new --output with --start-from {folder.best}.")
        cache = Path(settings["cache"]) if settings["cache"] else folder.path / "prepared"
        cases, split = _cases(settings, folder, cache, options.resume, say, group.is_first)
        fixed = settings.get("split") or split.method == FIXED_BY_DATA
        first_weights = _first_weights(settings.get("start_from"), configuration.organs)
        deal = None if fixed else lambda left: _split(settings, left)
        run = TrainingRun(
            configuration,
            cases,
            split,
            folder,
            device,
            precision,
            group,
            cache,
            say,
            first_weights,
            deal,
            settings["data"],
        )
        if group.is_first:
            chosen = {
                "device": str(device),
                "precision": precision,
                "processes": group.size,
                "torch": torch.__version__,
            }
            folder.write_json(CONFIGURATION_FILE, {**settings, "chosen": chosen})
        try:
            scores = run.run(options.resume)
        except (Stopped, NotSaved) as end:  # a panel, which reads the report of it, has a button to continue
            raise type(end)(f"{str(end).removesuffix('.')}; continue with --resume.") from end
        for key, value in scores.organ_means().items():
            say(f"{key:<22} Dice {value:.4f}")
        say(f"Mean validation Dice {scores.mean():.4f}, on the grid of the last stage; the model is in {folder.best}")
        if command_line.in_slicer() and group.is_first:
            from FlareSegmentTrainingSlicerLib.curves_nodes import save_scene

            say(f"Wrote {save_scene(folder)}")
    finally:
        group.close()


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""
    return command_line.run(
        lambda: train(parse_arguments(arguments)),
        interrupted="Interrupted; the last checkpoint stands, --resume continues from it.",
        out_of_memory="Not enough memory: lower training.batch, the patch or the network's base_channels with --set.",
    )


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
