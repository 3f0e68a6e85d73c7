"""Both modules after the start of the application."""

from __future__ import annotations

import sys
import unittest

import slicer


class TestStart(unittest.TestCase):
    def test_both_modules_are_loaded(self):
        for name in ("FlareSegment", "FlareSegmentTraining"):
            module = slicer.app.moduleManager().module(name)
            self.assertIsNotNone(module, name)
            self.assertTrue(module.title)

    def test_no_file_was_taken_for_a_module(self):
        for name in ("segment", "train", "evaluate", "prepare", "synthesize"):
            self.assertNotIn(name, sys.modules)

    def test_nothing_heavy_is_imported(self):
        for name in ("torch", "scipy", "nibabel", "pydicom", "matplotlib"):
            module = sys.modules.get(name)
            self.assertIsNone(module, f"{name} is imported at start")
