"""The panel's section "Review": the doubtful places of a result, one after another, worst first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.organs import organ_by_key
from FlareSegmentSlicerLib.panel import segment_editor
from FlareSegmentSlicerLib.scene import confidence, review, segmentation_nodes
from FlareSegmentSlicerLib.scene.kept_display import make_visible
from FlareSegmentSlicerLib.scene.organ_names import organ_name

_SHOWN_ROWS = 6
_COLUMNS = 3
_TITLE_PADDING = 8


class ReviewSection:
    """Leads from place to place, and keeps which of them looked right.

    The table's arrow keys go from row to row as in any table, and the views follow.
    """

    def __init__(
        self,
        ui: Any,
        output: Callable[[], slicer.vtkMRMLSegmentationNode | None],
        keptConfidence: Callable[[slicer.vtkMRMLSegmentationNode], confidence.KeptConfidence | None],
    ) -> None:
        """output: gives the result; keptConfidence: gives that of a result, as long as it is known."""
        self._ui, self._output, self._keptConfidence = ui, output, keptConfidence
        self._shown: list[dict[str, Any]] = []
        self._filling = False
        self._nowhere = ""
        self._node: slicer.vtkMRMLSegmentationNode | None = None
        table = ui.reviewTable
        table.setColumnCount(_COLUMNS)
        table.setHorizontalHeaderLabels([_("Organ"), _("Look at"), _("mL")])
        table.horizontalHeaderItem(2).setToolTip(_("How much may be wrong there"))
        table.verticalHeader().setVisible(False)
        table.horizontalHeader().setMinimumSectionSize(20)
        table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        table.horizontalHeader().setSectionResizeMode(1, qt.QHeaderView.Stretch)
        table.connect("currentCellChanged(int,int,int,int)", self._onRow)
        table.connect("cellClicked(int,int)", self._onClick)
        table.connect("itemChanged(QTableWidgetItem*)", self._onItem)
        ui.reviewCollapsibleButton.connect("contentsCollapsed(bool)", self._onCollapsed)
        ui.previousPlaceButton.connect("clicked(bool)", self._onPrevious)
        ui.nextPlaceButton.connect("clicked(bool)", self._onNext)
        ui.looksRightButton.connect("clicked(bool)", self._onLooksRight)
        ui.editButton.connect("clicked(bool)", self._onEdit)
        ui.confidenceCheckBox.connect("toggled(bool)", self._onConfidence)

    def update(self, running: bool = False) -> None:
        """Show the result's places and what can be done: nothing while a run is about to replace them."""
        node = self._output()
        found = review.places(node)
        if node is not self._node or found != self._shown:
            self._fill(node, found)
        ui = self._ui
        ui.reviewCollapsibleButton.setVisible(bool(found))
        ui.reviewCollapsibleButton.enabled = not running
        done = sum(1 for place in found if place.get(review.REVIEWED))
        progress = _("{done} of {count} looked at").format(done=done, count=len(found))
        ui.reviewProgressLabel.text = f"{progress}\n{self._nowhere}" if self._nowhere else progress
        row = ui.reviewTable.currentRow()
        ui.previousPlaceButton.enabled = row > 0
        ui.nextPlaceButton.enabled = row < len(found) - 1
        ui.looksRightButton.enabled = 0 <= row < len(found)
        self._updateEdit(node)
        self._updateConfidence(node)

    def _updateConfidence(self, node: slicer.vtkMRMLSegmentationNode | None) -> None:
        box, shown = self._ui.confidenceCheckBox, confidence.overlay(node) is not None
        reason = ""
        if not shown and (node is None or self._keptConfidence(node) is None):
            reason = _("Segment again to see it: the confidence is not saved with the scene.")
        elif not shown and segmentation_nodes.reference_volume(node) is None:
            reason = _("The CT of this result is gone.")
        box.enabled = not reason
        box.toolTip = reason or _(
            "Show over the CT how sure the model is, red (50 % and less) to blue (95 %), nothing where it is surer."
        )
        blocked = box.blockSignals(True)
        box.checked = shown
        box.blockSignals(blocked)

    def _updateEdit(self, node: slicer.vtkMRMLSegmentationNode | None) -> None:
        reason = segment_editor.missing_reason()
        if not reason and (node is None or segmentation_nodes.reference_volume(node) is None):
            reason = _("The CT of this result is gone.")
        self._ui.editButton.enabled = not reason
        self._ui.editButton.toolTip = reason or _("Correct this place with Slicer's Segment Editor.")

    def _fill(self, node: slicer.vtkMRMLSegmentationNode | None, found: list[dict[str, Any]]) -> None:
        table = self._ui.reviewTable
        row = table.currentRow() if node is self._node and len(found) == len(self._shown) else -1
        self._node, self._shown, self._nowhere = node, found, ""
        self._filling = True
        table.setRowCount(len(found))
        for number, place in enumerate(found):
            for column, item in enumerate(_items(place)):
                table.setItem(number, column, item)
        if found:
            table.setCurrentCell(row, 0)
        self._filling = False
        table.resizeRowsToContents()
        titles = qt.QFontMetrics(table.font).height() + _TITLE_PADDING
        table.horizontalHeader().setFixedHeight(titles)
        heights = [table.rowHeight(number) for number in range(len(found))][:_SHOWN_ROWS]
        table.setFixedHeight(sum(heights) + titles + 2 * table.frameWidth)

    def _go(self, row: int) -> None:
        if not 0 <= row < len(self._shown):
            return
        self._ui.reviewTable.setCurrentCell(row, 0)
        self._ui.reviewTable.setFocus()
        self.update()

    def _onRow(self, row: int, column: int, previousRow: int, previousColumn: int) -> None:
        if not self._filling and row != previousRow and 0 <= row < len(self._shown):
            self._jump(row)

    def _jump(self, row: int) -> None:
        """Lead the views to a place, or say why they stay where they are."""
        self._nowhere = ""
        if not review.jump_to(self._node, self._shown[row]):
            gone = segmentation_nodes.reference_volume(self._node) is None
            self._nowhere = _("The CT of this result is gone.") if gone else _("This has no place in the scan.")
        self.update()

    def _onClick(self, row: int, column: int) -> None:
        if row == self._ui.reviewTable.currentRow():
            self._jump(row)
        else:  # Qt does not go to the row of a box that is clicked
            self._go(row)

    def _onItem(self, item: qt.QTableWidgetItem) -> None:
        if not self._filling and item.column() == 0:
            self._keep(item.row(), item.checkState() == qt.Qt.Checked)

    def _onCollapsed(self, collapsed: bool) -> None:
        if not collapsed:
            qt.QTimer.singleShot(0, self._scroll)  # once what is in it has its place

    def _scroll(self) -> None:
        """Bring all of the section into view: on a small screen its buttons would be hidden."""
        area = self._ui.reviewCollapsibleButton.parent()
        while area is not None and not hasattr(area, "ensureWidgetVisible"):
            area = area.parent()
        if area is not None:
            area.ensureWidgetVisible(self._ui.confidenceCheckBox)

    def _onPrevious(self) -> None:
        self._go(self._ui.reviewTable.currentRow() - 1)

    def _onNext(self) -> None:
        self._go(self._ui.reviewTable.currentRow() + 1)

    def _onLooksRight(self) -> None:
        """Tick the place off and go on to the next that nobody has looked at."""
        row = self._ui.reviewTable.currentRow()
        self._keep(row, True)
        left = [number for number, place in enumerate(self._shown) if not place.get(review.REVIEWED)]
        self._go(next((number for number in left if number > row), left[0] if left else row))

    def _keep(self, row: int, reviewed: bool) -> None:
        review.set_reviewed(self._node, row, reviewed)
        self.update()

    def _onEdit(self) -> None:
        node, row = self._output(), self._ui.reviewTable.currentRow()
        segments = segmentation_nodes.organ_segments(node)
        organ = self._shown[row]["organ"] if 0 <= row < len(self._shown) else None
        if organ is None:
            segment = next(iter(segments.values()), "")
        elif organ in segments:
            segment = segments[organ]
        else:  # what is drawn there must not become another organ's
            segment = segmentation_nodes.add_empty_organ(node, organ_by_key(organ))
        make_visible(node, [segment] if segment else [])  # what is hidden would be drawn blindly
        segment_editor.edit(node, segmentation_nodes.reference_volume(node), segment)

    def _onConfidence(self, checked: bool) -> None:
        node = self._output()
        kept = self._keptConfidence(node) if node is not None else None
        if checked and kept is not None:
            confidence.show(node, kept)
        else:
            confidence.hide(node)
        self.update()


def _items(place: dict[str, Any]) -> list[qt.QTableWidgetItem]:
    """The row of a place."""
    organ = organ_by_key(place["organ"]) if place["organ"] else None
    name = organ_name(organ) if organ else _("Scan")
    if place["side"] and organ is not None and not organ.modifier_code:
        name = _("{organ}, {side}").format(organ=name, side=_("left") if place["side"] == "left" else _("right"))
    first = qt.QTableWidgetItem(name)
    first.setFlags(first.flags() | qt.Qt.ItemIsUserCheckable)
    first.setCheckState(qt.Qt.Checked if place.get(review.REVIEWED) else qt.Qt.Unchecked)
    if organ is not None:
        swatch = qt.QPixmap(12, 12)
        swatch.fill(qt.QColor(*organ.color))
        first.setIcon(qt.QIcon(swatch))
    text = {
        "doubtful": _("not sure"),
        "missing": _("not found"),
        "cut": _("cut by the edge"),
        "remark": place["text"],
    }[place["kind"]]
    amount = qt.QTableWidgetItem(f"{place['ml']:.1f}" if place["ml"] else "")
    amount.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    items = [first, qt.QTableWidgetItem(text), amount]
    tip = text
    if place.get(review.REVIEWED):
        tip = _("Looked right on {day}").format(day=place[review.REVIEWED])
    for item in items:
        item.setToolTip(tip)
    return items
