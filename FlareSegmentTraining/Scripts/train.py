"""Train a model without a window, in Slicer or in any Python that has torch:

    Slicer --no-main-window --python-script train.py --preset NAME --data DIR [--data ...] --output RUN
    PythonSlicer -m torch.distributed.run --nproc-per-node 2 train.py --preset NAME --data DIR --output RUN

FlareSegmentTrainingLib/training/run_folder.py describes the run's folder; RUN/best is a model for `segment.py --model
RUN/best`. Ctrl-C, SIGTERM or a file RUN/stop saves and ends the run; the same command with --resume continues it
as if it had not been stopped.

Exit status: 0 done; 2 bad input or usage, with one line on standard error; 1 anything else, also stopped, in one line
(FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script raises, so every way out ends in
slicer.util.exit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_MODULE = Path(__file__).resolve().parent.parent
for _folder in (_MODULE, _MODULE.parent / "FlareSegment"):
    # In a working tree the libraries are in this module's folder and in the other one's; installed, all are in one
    # folder. Slicer itself knows its modules' folders; PythonSlicer and a plain Python do not.
    if any((_folder / name).is_dir() for name in ("FlareSegmentLib", "FlareSegmentTrainingLib")):
        sys.path.insert(0, str(_folder))

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
        "--split", type=Path, metavar="FILE", help="JSON lists of training and validation cases (default: 90/10)"
    )
    parser.add_argument("--fold", metavar="K/N", help="validate on fold K (from 0) of N instead of on a tenth")
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
    from FlareSegmentTrainingLib.training.configuration import override, parse, with_minutes
    from FlareSegmentTrainingLib.training.presets import read_preset
    from FlareSegmentTrainingLib.training.run_folder import CONFIGURATION_FILE

    resuming = options.resume and folder.exists()
    if folder.exists() and not options.resume:
        raise InputError(f"{folder.path} holds a run already: --resume continues it, or choose another --output.")
    if folder.is_running():
        raise InputError(f"A process ({folder.progress().get('pid')}) is training in {folder.path} now; stop it first.")
    saved = folder.read_json(CONFIGURATION_FILE) if resuming else None
    if saved and not options.preset and not options.data:
        return saved
    if not options.preset or not options.data:
        raise InputError("--preset and --data are needed to begin a run (see --help).")
    content = read_preset(options.preset)
    shares = [f"shares=[{options.shares}]"] if options.shares else []
    epochs = [f"training.epochs={options.epochs}"] if options.epochs else []
    for assignment in [*epochs, *shares, *options.overrides]:
        content = override(content, assignment)
    if options.minutes:
        content = with_minutes(content, options.minutes)
    if len(parse(content).shares) not in (0, len(options.data)):
        raise InputError(f"--shares {options.shares}: one number is needed for each of the {len(options.data)} --data.")
    asked = {
        "configuration": content,
        "data": [place if place.startswith("phantom:") else str(Path(place).resolve()) for place in options.data],
        "label_map": options.label_map,
        "fold": options.fold,
        "limit_cases": options.limit_cases,
        "cache": str(options.cache.resolve()) if options.cache else None,
        "start_from": options.start_from,
    }
    if saved:
        changed = [key for key, value in asked.items() if saved.get(key) != value]
        if changed:
            raise InputError(
                f"--resume continues {folder.path} as it was begun, but {', '.join(changed)} differ. "
                "Give --resume and --output alone."
            )
        return saved
    return asked


def _split(options: argparse.Namespace, settings: dict, cases: list, folder):
    """The run's own split, or a new one. Raises InputError."""
    from FlareSegmentTrainingLib.datasets.splits import SPLIT_FILE, Split, read_split, split_cases

    if options.resume and (folder.path / SPLIT_FILE).is_file():
        return read_split(folder.path / SPLIT_FILE)
    if options.split:
        split = read_split(options.split)
    elif settings["fold"]:
        fold, _, folds = settings["fold"].partition("/")
        if not fold.isdigit() or not folds.isdigit():
            raise InputError(f"--fold {settings['fold']}: write K/N, such as 0/5.")
        split = split_cases(cases, folds=int(folds), fold=int(fold), seed=settings["configuration"].get("seed", 0))
    else:
        split = split_cases(cases, seed=settings["configuration"].get("seed", 0))
    limit = settings["limit_cases"]
    return Split(
        split.training[:limit], split.validation[:limit], split.method + (f", at most {limit} each" if limit else "")
    )


def _first_weights(model: str | None, organs: tuple[str, ...]) -> dict:
    """Stage name -> weights of the model that training begins with. Raises InputError, ModelError."""
    from FlareSegmentLib.model.model_file import bundled_model_folder, read_model

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

    from FlareSegmentTrainingLib.datasets.cases import find_cases
    from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
    from FlareSegmentTrainingLib.training.configuration import parse
    from FlareSegmentTrainingLib.training.devices import choose_device, choose_precision
    from FlareSegmentTrainingLib.training.distributed import Group, local_rank
    from FlareSegmentTrainingLib.training.run_folder import CONFIGURATION_FILE, RunFolder
    from FlareSegmentTrainingLib.training.training_run import TrainingRun

    if options.priority:
        set_priority(options.priority == "background")
    folder = RunFolder(options.output)
    settings = _settings(options, folder)
    configuration = parse(settings["configuration"])
    device = choose_device(options.device, local_rank())
    precision = choose_precision(configuration.precision, device)
    group = Group("nccl" if device.type == "cuda" else "gloo")

    def say(line: str) -> None:
        if group.is_first:
            command_line.say(line)

    try:
        group.wait()  # every process has seen the folder as it was
        cases = find_cases(
            settings["data"],
            label_map=parse_label_map(settings["label_map"]) if settings["label_map"] else None,
            say=say,
            **({} if group.is_first else {"left_out": lambda _item: None}),
        )
        split = _split(options, settings, cases, folder)
        cache = Path(settings["cache"]) if settings["cache"] else folder.path / "prepared"
        first_weights = _first_weights(settings.get("start_from"), configuration.organs)
        run = TrainingRun(configuration, cases, split, folder, device, precision, group, cache, say, first_weights)
        if group.is_first:
            chosen = {
                "device": str(device),
                "precision": precision,
                "processes": group.size,
                "torch": torch.__version__,
            }
            folder.write_json(CONFIGURATION_FILE, {**settings, "chosen": chosen})
        scores = run.run(options.resume)
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
