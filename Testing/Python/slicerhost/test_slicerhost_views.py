"""The embedded Slicer's views: drawn by Slicer's own managers, moved by mouse and wheel, seen in one picture."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def ct(slicer_app):
    """A bright block, high in the axial direction, in a dark volume; fitted into the slice views."""
    import slicer

    voxels = np.full((40, 50, 60), -1000, np.int16)
    voxels[10:35, 15:35, 20:40] = 400
    node = slicer.util.addVolumeFromArray(voxels, name="block")
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(1400, -300)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    slicer_app.processEvents()
    return node


def pixels(widget):
    """RGB picture (height, width, 3) of a widget as it is painted."""
    import qt

    image = widget.grab().toImage().convertToFormat(qt.QImage.Format_RGB888)
    data = image.constBits().asstring(image.bytesPerLine() * image.height())
    rows = np.frombuffer(data, np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3)


def test_slice_view_shows_the_volume(ct, slicer_app):
    widget = slicer_app.layoutManager().sliceWidget("Red")
    widget.sliceLogic().SetSliceOffset(20)
    picture = pixels(widget.sliceView())
    assert (picture.max(axis=2) > 200).mean() > 0.05
    assert (picture.max(axis=2) < 20).mean() > 0.3


def test_wheel_browses_slices(ct, slicer_app):
    import qt

    widget = slicer_app.layoutManager().sliceWidget("Red")
    widget.sliceLogic().SetSliceOffset(20)
    event = qt.QWheelEvent(
        qt.QPointF(50, 50),
        qt.QPointF(50, 50),
        qt.QPoint(0, 0),
        qt.QPoint(0, 120),
        qt.Qt.NoButton,
        qt.Qt.NoModifier,
        qt.Qt.NoScrollPhase,
        False,
    )
    slicer_app.sendEvent(widget.sliceView(), event)
    assert widget.sliceLogic().GetSliceOffset() == pytest.approx(21)


def test_offset_slider_and_view_follow_each_other(ct, slicer_app):
    controller = slicer_app.layoutManager().sliceWidget("Red").sliceController()
    controller.sliceLogic().SetSliceOffset(12)
    assert controller.sliceOffsetSlider().value == pytest.approx(12)
    controller.sliceOffsetSlider().value = 30
    assert controller.sliceLogic().GetSliceOffset() == pytest.approx(30)


def test_dragging_turns_the_camera(slicer_app):
    import qt
    from PyQt5.QtTest import QTest

    view = slicer_app.layoutManager().threeDWidget(0).threeDView()
    before = view.cameraNode().GetPosition()
    QTest.mousePress(view, qt.Qt.LeftButton, qt.Qt.NoModifier, qt.QPoint(100, 100))
    left = qt.Qt.LeftButton
    move = qt.QMouseEvent(qt.QEvent.MouseMove, qt.QPointF(160, 120), left, left, qt.Qt.NoModifier)
    slicer_app.sendEvent(view, move)
    QTest.mouseRelease(view, qt.Qt.LeftButton, qt.Qt.NoModifier, qt.QPoint(160, 120))
    assert view.cameraNode().GetPosition() != before


def test_three_d_view_centers_on_what_is_visible(ct, slicer_app):
    import slicer

    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "block")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(ct)
    segment = segmentation.GetSegmentation().AddEmptySegment("block", "block", (1.0, 0.0, 0.0))
    mask = (slicer.util.arrayFromVolume(ct) > 0).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment, ct)
    segmentation.CreateClosedSurfaceRepresentation()
    view = slicer_app.layoutManager().threeDWidget(0).threeDView()
    view.resetFocalPoint()
    assert view.cameraNode().GetFocalPoint() == pytest.approx((29.5, 24.5, 22.0), abs=0.5)
    picture = pixels(view).astype(int)
    assert (picture[..., 0] - picture[..., 2] > 50).mean() > 0.01


def test_one_picture_holds_panel_and_views(ct, slicer_app, screenshots):
    import slicer

    slicer_app.processEvents()
    picture = pixels(slicer.util.mainWindow())
    assert slicer.util.mainWindow().grab().save(str(screenshots / "slicerhost_main_window.png"))
    red = slicer_app.layoutManager().sliceWidget("Red").sliceView()
    import qt

    corner = red.mapTo(slicer.util.mainWindow(), qt.QPoint(0, 0))
    part = picture[corner.y() : corner.y() + red.height, corner.x() : corner.x() + red.width]
    assert np.array_equal(part, pixels(red))


def test_layouts_show_their_views(slicer_app):
    import slicer

    manager = slicer_app.layoutManager()
    told = []
    manager.connect("layoutChanged(int)", told.append)
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUp3DView)
    assert not manager.sliceWidget("Red").visible
    assert manager.threeDWidget(0).visible
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    assert manager.sliceWidget("Red").visible
    assert told == [slicer.vtkMRMLLayoutNode.SlicerLayoutOneUp3DView, slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView]
    with pytest.raises(ValueError, match="no layout"):
        manager.setLayout(99)
