"""How good the tests are: mutation testing of the geometry, the post-processing and the metrics, with mutmut.

    python Testing/Mutation/run.py [--keep FOLDER] [MODULE ...]

Each MODULE of `FlareSegmentLib` (default: all of TESTS) is changed in one small place at a time (a sign, a bound, a
constant), and its tests are run: at least one should fail. Everything happens in a copy outside of the working tree.
Printed at the end: how many changes the tests noticed, module by module, and the others with their differences. Needs
`pip install mutmut==3.8.1` in the environment of `flare.py`; on Windows it runs in WSL. Takes most of an hour on
two busy cores.

mutmut leaves properties and cached functions alone, so that the copy has them as plain functions behind a property or
a cache. Statements outside of functions (tables, default values of dataclasses) are never changed.

Exit status: 0 when at least LEAST of the changes in every module were noticed, else 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

CONFTEST = '''
import os
import sys

import pytest
from hypothesis import Phase, settings

# That an example fails is all that counts: no smaller one is looked for.
settings.register_profile("mutation", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("mutation")
forgotten = []


@pytest.fixture(autouse=True)
def nothing_remembered():
    """mutmut forks from a process that has run the tests: what was computed there must be computed anew; and by each
    test while mutmut looks which tests run which functions.
    """
    run = os.getpid(), os.environ.get("MUTANT_UNDER_TEST")
    if run in forgotten and run[1] != "stats":
        return
    forgotten.append(run)
    for name, module in list(sys.modules.items()):
        if name.startswith("FlareSegmentLib"):
            for value in vars(module).values():
                getattr(value, "cache_clear", lambda: None)()
'''
ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "volume": ["test_volume.py"],
    "inference/resampling": ["test_resampling.py"],
    "inference/postprocessing": ["test_postprocessing.py"],
    "measures/metrics": ["test_metrics.py"],
    "inference/plausibility": ["test_plausibility_bounds.py"],
    "inference/grids": ["test_pipeline_geometry.py"],
    "inference/localization": ["test_pipeline_geometry.py"],
    "inference/oblique_volumes": ["test_pipeline_geometry.py"],
}
ONLY = {
    "inference/grids": ["x_stored_grid", "x_stage_grid"],
    "inference/localization": ["x_find_box", "x_body_midline"],
}
"""The functions to change, in mutmut's spelling, where it shall not be the whole module."""
PLAIN = [
    (r"^( +)@property\n +def (\w+)\(", r"\1\2 = property(lambda self: self.plain_\2())\n\n\1def plain_\2("),
    (r"^@cache\ndef (\w+)\(", r"\1 = cache(lambda *arguments: plain_\1(*arguments))\n\n\ndef plain_\1("),
]
"""What mutmut would not change, and its like that it does."""
SHOW = """
import sys

from mutmut.mutation.diff_apply import get_diff_for_mutant

for name in sys.argv[1:]:
    print(f"\\n{name}", get_diff_for_mutant(name), sep="\\n", flush=True)
"""
LEAST = 0.85
NOTICED = ("killed", "timeout", "segfault", "suspicious")


def make_copy(folder: Path, modules: list[str]) -> None:
    """A project of mutmut's: the library, the tests of the modules, and what these import."""
    shutil.copytree(ROOT / "FlareSegment" / "FlareSegmentLib", folder / "FlareSegmentLib")
    for module in modules:
        file = folder / "FlareSegmentLib" / f"{module}.py"
        source = file.read_text(encoding="utf-8")
        for pattern, replacement in PLAIN:
            source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
        file.write_text(source, encoding="utf-8")
    (folder / "tests").mkdir()
    tests = sorted({name for module in modules for name in TESTS[module]})
    for name in {"test_volume.py", *tests}:
        shutil.copy(ROOT / "Testing" / "Python" / "engine" / name, folder / "tests" / name)
    (folder / "tests" / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    selected = "\n    ".join(f"tests/{name}" for name in tests)
    mutated = "\n    ".join(f"FlareSegmentLib/{module}.py" for module in modules)
    (folder / "setup.cfg").write_text(
        "[mutmut]\nsource_paths=FlareSegmentLib\n"
        f"only_mutate=\n    {mutated}\n"
        f"pytest_add_cli_args_test_selection=\n    {selected}\n"
        "pytest_add_cli_args=\n    -p\n    no:cacheprovider\ntimeout_multiplier=3\ntimeout_constant=40\n"
        "[tool:pytest]\npythonpath=.\n",
        encoding="utf-8",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", choices=[[], *TESTS], metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="work there and leave everything for mutmut's tools"
    )
    options = parser.parse_args()
    modules = options.modules or list(TESTS)
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_copy(folder, modules)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        mutmut = [sys.executable, "-m", "mutmut"]
        patterns = [
            f"FlareSegmentLib.{module.replace('/', '.')}.{function}__mutmut_*"
            for module in modules
            for function in ONLY.get(module, ["*"])
        ]
        subprocess.run([*mutmut, "run", "--max-children", "2", *patterns], cwd=folder, env=environment, check=False)
        listing = subprocess.run(
            [*mutmut, "results", "--all", "true"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        endings = dict(line.strip().split(": ", 1) for line in listing.stdout.splitlines() if ": " in line)
        endings = {name: ending for name, ending in endings.items() if ending != "not checked"}
        others = [name for name, ending in endings.items() if ending not in NOTICED]
        subprocess.run([sys.executable, "-c", SHOW, *others], cwd=folder, env=environment, check=False)
    shares = []
    for module in modules:
        of_module = Counter(
            ending in NOTICED for name, ending in endings.items() if f".{module.replace('/', '.')}." in name
        )
        shares.append(of_module[True] / max(1, of_module.total()))
        print(f"{module}: {of_module[True]} of {of_module.total()} changes noticed ({shares[-1]:.1%})")
    return 0 if min(shares) >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
