"""The part of Slicer's SampleData module that other modules call at start: registering their sample data sets.

Nothing is downloaded here.
"""

from __future__ import annotations

import slicer


def downloadSample(sampleName):
    """In Slicer this downloads and loads one of its samples."""
    raise RuntimeError(f"the embedded Slicer downloads nothing, and so not {sampleName}")


class SampleDataLogic:
    """Keeps the names of registered data sets by category, in `slicer.modules.sampleDataSources`."""

    @staticmethod
    def _category(category):
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        return slicer.modules.sampleDataSources.setdefault(category, [])

    @staticmethod
    def registerCustomSampleDataCategory(category, title):
        """Add a category."""
        SampleDataLogic._category(category)

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
        loadFileType=None,
    ):
        """Add a data set to a category; its lists must be of one length."""
        lists = [one for one in (uris, fileNames, nodeNames, checksums) if isinstance(one, (list, tuple))]
        if len({len(one) for one in lists}) > 1:
            raise ValueError(f"sample data {sampleName}: its lists have different lengths")
        SampleDataLogic._category(category).append(sampleName)
