"""`slicer.testing`: how Slicer's test driver runs one unit test by name."""

from __future__ import annotations

import sys
import unittest

__all__ = ["exitFailure", "exitSuccess", "runUnitTest"]


def exitSuccess():
    """A test script ends well by running to its end."""


def exitFailure(message=""):
    """End a test script as failed."""
    raise Exception(message)


def runUnitTest(path, testname):
    """Run the unittest `testname` with `path` (one folder or a list) on sys.path; raises where it fails."""
    sys.path.extend([path] if isinstance(path, str) else path)
    suite = unittest.defaultTestLoader.loadTestsFromName(testname)
    if not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful():
        exitFailure()
