"""The bundled model in the worker process, from the panel, and the module's own test. Needs PyTorch."""

from __future__ import annotations

import importlib.util
import unittest

import slicer

from slicer_checks.hand import PanelCheck, add_ct, take_picture, voxels

HAS_TORCH = importlib.util.find_spec("torch") is not None


@unittest.skipUnless(HAS_TORCH, "PyTorch is not installed in this Slicer")
class TestNetwork(PanelCheck):
    networks = True

    def test_segment_with_the_bundled_model(self):
        ct = add_ct(organs_marked=False)
        self.segment()
        self.assert_all_organs(self.output)
        for name in ("liver", "right kidney", "left kidney", "spleen"):
            self.assertGreater(voxels(self.output, name, ct), 100, name)
        self.segment()  # the warm worker
        self.assertIn("Done in", self.message)
        take_picture("bundled_model")


@unittest.skipUnless(HAS_TORCH, "PyTorch is not installed in this Slicer")
class TestSelfTest(unittest.TestCase):
    def test_self_test(self):
        slicer.selfTests["FlareSegment"]()
