"""The part of Slicer's SampleData module that other modules call at start: registering their sample data sets.

Nothing is downloaded here but what a file: address names.
"""

from __future__ import annotations

import os
import urllib.parse
import urllib.request

import slicer


def downloadSample(sampleName):
    """Load a sample by its name and return the first node, as in Slicer: by its addresses, never by its button."""
    return SampleDataLogic().downloadSamples(sampleName)[0]


class SampleDataSource:
    """A data set: addresses, and what becomes of the files behind them. All lists are of one length."""

    def __init__(
        self,
        sampleName=None,
        sampleDescription=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        checksums=None,
        loadFiles=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFileProperties=None,
        loadFileType=None,
    ):
        count = len(uris)
        self.sampleName, self.sampleDescription = sampleName, sampleDescription or sampleName
        self.uris, self.fileNames, self.nodeNames = uris, fileNames, nodeNames or [None] * count
        self.customDownloader = customDownloader
        lengths = {count, *(len(one) for one in (fileNames, self.nodeNames, checksums) if one is not None)}
        if len(lengths) > 1:
            raise ValueError(f"sample data {sampleName}: its lists have different lengths")

    def __eq__(self, other):
        return str(self) == str(other)

    __hash__ = None

    def __str__(self):
        return f"{self.sampleName} {self.uris} {self.fileNames} {self.nodeNames}"


class SampleDataLogic:
    """Keeps the registered data sets by category, in `slicer.modules.sampleDataSources`."""

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
    def registerCustomSampleDataSource(category="Custom", sampleName=None, uris=None, fileNames=None, **arguments):
        """Add a data set to a category, once."""
        source = SampleDataSource(sampleName, uris=uris, fileNames=fileNames, **arguments)
        if not SampleDataLogic.isSampleDataSourceRegistered(category, source):
            SampleDataLogic._category(category).append(source)

    @staticmethod
    def isSampleDataSourceRegistered(category, sampleDataSource):
        """Whether an equal data set is in the category."""
        return sampleDataSource in SampleDataLogic._category(category)

    def downloadSamples(self, sampleName):
        """Load a sample by its name; no node where there is none of that name."""
        every = [source for sources in slicer.modules.sampleDataSources.values() for source in sources]
        source = next((one for one in every if one.sampleName == sampleName), None)
        if source is None:
            if sampleName.startswith("CT"):
                raise RuntimeError(f"the embedded Slicer downloads nothing, and so not {sampleName}")
            return []
        nodes = []
        for uri, file_name, node_name in zip(source.uris, source.fileNames, source.nodeNames, strict=True):
            if urllib.parse.urlparse(uri).scheme != "file":
                raise RuntimeError(f"the embedded Slicer downloads nothing, and so not {uri}")
            file = os.path.join(slicer.app.temporaryPath, "cache-" + file_name)
            urllib.request.urlretrieve(uri, file)
            nodes.append(slicer.util.loadVolume(file, {"name": node_name or os.path.splitext(file_name)[0]}))
        return nodes
