"""Training of FlareSegment's networks: cases, preparation, augmentation, loss, trainer.

Builds on the engine (FlareSegmentLib): networks, model folders, resampling and metrics are the engine's own: a
trained model meets at inference exactly what it met in training. Importable without slicer, vtk or Qt.
"""
