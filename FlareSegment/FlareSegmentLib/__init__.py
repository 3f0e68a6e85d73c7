"""The engine of FlareSegment: CT volume in, organ labels out.

Importable without slicer, vtk or Qt, and without torch: only the files that run the network
(``vnet``, ``model_file``, ``pipeline``, ``worker``) import torch, and nothing here imports them.
"""

__version__ = "0.1.0"
HOMEPAGE = "https://github.com/FlareSegment/SlicerFlareSegment"
