"""Both modules after the start of the application."""

from __future__ import annotations

import sys
import unittest

import slicer

from slicer_checks.hand import output_folder

HEAVY = ("torch", "scipy", "nibabel", "pydicom", "matplotlib", "SimpleITK")


class TestStart(unittest.TestCase):
    def test_both_modules_are_loaded(self):
        for name in ("FlareSegment", "FlareSegmentTraining"):
            module = slicer.app.moduleManager().module(name)
            self.assertIsNotNone(module, name)
            self.assertTrue(module.title)

    def test_no_file_was_taken_for_a_module(self):
        for name in ("segment", "train", "evaluate", "prepare", "synthesize"):
            self.assertNotIn(name, sys.modules)

    def test_what_is_imported_is_noted(self):
        """For the comparison with this Slicer alone, which is made outside."""
        imported = [name for name in HEAVY if name in sys.modules]
        (output_folder() / "imported.txt").write_text("\n".join(imported), encoding="utf-8")
