"""What needs slicer, vtk or qt and is shared by the panel and the scripts; the engine itself is in FlareSegmentLib."""
