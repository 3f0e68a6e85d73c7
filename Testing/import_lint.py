"""Checks which way imports point: `python3 flare.py lint`. The contracts are in pyproject.toml (tool.importlinter)."""

from importlinter.cli import lint_imports_command

if __name__ == "__main__":
    lint_imports_command(["--no-cache"])
