"""What of the training needs slicer, vtk or qt, or starts processes for the panel; the training itself is in
FlareSegmentTrainingLib.
"""
