"""How good the tests are: mutation testing of the geometry, the post-processing and the metrics, with mutmut.

    python Testing/Mutation/run.py [--keep FOLDER] [MODULE ...]

Each MODULE of `FlareSegmentLib` (default: all of TESTS) is changed in one small place at a time (a sign, a bound, a
constant), and its tests are run: at least one should fail. Everything happens in a copy outside of the working tree.
Printed at the end: how many changes the tests noticed, module by module, and the others with their differences. Needs
`pip install mutmut` (3.8) in the environment of `flare.py`; on Windows it runs in WSL. Takes about an hour.

Exit status: 0 when at least LEAST of all changes were noticed, else 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

CONFTEST = '''
import sys

import pytest


@pytest.fixture(scope="module", autouse=True)
def nothing_remembered():
    """mutmut forks from a process that has run the tests: what was computed there must be computed anew."""
    for name, module in list(sys.modules.items()):
        if name.startswith("FlareSegmentLib"):
            for value in vars(module).values():
                getattr(value, "cache_clear", lambda: None)()
'''
ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "volume": ["test_volume.py", "test_geometry_properties.py"],
    "resampling": ["test_resampling.py"],
    "postprocessing": ["test_postprocessing.py"],
    "metrics": ["test_metrics.py"],
}
LEAST = 0.85
NOTICED = ("killed", "timeout", "segfault", "suspicious")


def make_copy(folder: Path, modules: list[str]) -> None:
    """A project of mutmut's: the library, the tests of the modules, and what these import."""
    shutil.copytree(ROOT / "FlareSegment" / "FlareSegmentLib", folder / "FlareSegmentLib")
    (folder / "tests").mkdir()
    tests = sorted({name for module in modules for name in TESTS[module]})
    for name in ["test_volume.py", *tests]:
        if (ROOT / "Testing" / "Python" / name).is_file():
            shutil.copy(ROOT / "Testing" / "Python" / name, folder / "tests" / name)
    (folder / "tests" / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    selected = "\n    ".join(f"tests/{name}" for name in tests if (folder / "tests" / name).is_file())
    mutated = "\n    ".join(f"FlareSegmentLib/{module}.py" for module in modules)
    (folder / "setup.cfg").write_text(
        "[mutmut]\nsource_paths=FlareSegmentLib\n"
        f"only_mutate=\n    {mutated}\n"
        f"pytest_add_cli_args_test_selection=\n    {selected}\n"
        "pytest_add_cli_args=\n    -p\n    no:cacheprovider\n"
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
        subprocess.run([*mutmut, "run", "--max-children", "2"], cwd=folder, env=environment, check=False)
        listing = subprocess.run(
            [*mutmut, "results", "--all", "true"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        endings = dict(line.strip().split(": ", 1) for line in listing.stdout.splitlines() if ": " in line)
        for name, ending in endings.items():
            if ending not in NOTICED:
                print(f"\n{name}: {ending}")
                subprocess.run([*mutmut, "show", name], cwd=folder, env=environment, check=False)
    total = Counter()
    for module in modules:
        of_module = [ending for name, ending in endings.items() if f".{module}." in name]
        noticed = sum(ending in NOTICED for ending in of_module)
        total.update(noticed=noticed, all=len(of_module))
        print(
            f"{module}: {noticed} of {len(of_module)} changes noticed ({100 * noticed / max(1, len(of_module)):.1f} %)"
        )
    share = total["noticed"] / max(1, total["all"])
    print(f"all: {total['noticed']} of {total['all']} ({100 * share:.1f} %)")
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
