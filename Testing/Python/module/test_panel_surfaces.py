"""Surfaces made outside of Slicer's process are those that Slicer makes itself."""

from __future__ import annotations

import numpy as np
import pytest

OBLIQUE = np.array([[-0.9, 0.1, 0.0, 30.0], [0.1, -0.9, 0.2, -20.0], [0.0, 0.2, 2.5, 10.0], [0, 0, 0, 1]])


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("at_the_edge", [False, True])
def test_surfaces_are_those_of_slicer(slicer_app, tmp_path, smoothing, at_the_edge):
    import slicer
    from vtk.util import numpy_support

    from FlareSegmentLib.measures.organ_statistics import organ_boxes
    from FlareSegmentLib.organs import ORGANS
    from FlareSegmentSlicerLib.rendering import segment_surfaces
    from FlareSegmentSlicerLib.scene import segmentation_nodes

    labels = np.zeros((24, 30, 32), np.uint8)
    z, y, x = np.indices(labels.shape)
    labels[(z - 12) ** 2 + (y - 14) ** 2 + (x - (4 if at_the_edge else 12)) ** 2 < 64] = 1
    labels[(z - 12) ** 2 + (y - 14) ** 2 + (x - 26) ** 2 < 16] = 4
    ct = slicer.util.addVolumeFromArray(labels.astype(np.int16), ijkToRAS=OBLIQUE, name="CT")
    node = segmentation_nodes.create_segmentation(ct, labels)
    node.GetSegmentation().SetConversionParameter("Smoothing factor", str(smoothing))
    node.CreateClosedSurfaceRepresentation()

    path = tmp_path / "surfaces"
    values = {organ.key: organ.label for organ in ORGANS}
    path.write_bytes(segment_surfaces.organ_surfaces(labels, organ_boxes(labels, ORGANS), values, OBLIQUE, smoothing))
    surfaces = dict(segment_surfaces.read_surfaces(path))
    assert list(surfaces) == ["liver", "spleen"]
    for key, surface in surfaces.items():
        expected = node.GetSegmentation().GetSegment(key).GetRepresentation("Closed surface")
        ours = segment_surfaces.to_polydata(surface)
        assert ours.GetNumberOfPolys() == expected.GetNumberOfPolys()
        for one, other in (
            (ours.GetPoints().GetData(), expected.GetPoints().GetData()),
            (ours.GetPointData().GetNormals(), expected.GetPointData().GetNormals()),
        ):
            np.testing.assert_allclose(numpy_support.vtk_to_numpy(one), numpy_support.vtk_to_numpy(other), atol=1e-4)


def test_a_torn_file_of_surfaces_is_told_as_such(tmp_path):
    from FlareSegmentSlicerLib.rendering import segment_surfaces

    path = tmp_path / "surfaces"
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    path.write_bytes(segment_surfaces.organ_surfaces(mask, {"liver": (slice(0, 4),) * 3}, {"liver": 1}, np.eye(4), 0.5))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="surfaces"):
        list(segment_surfaces.read_surfaces(path))
