"""The table of a result: what was found, measured, compared, and the way to each organ."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.measures import result_table
from FlareSegmentLib.organs import organ_by_key
from FlareSegmentSlicerLib.scene import display, segmentation_nodes
from FlareSegmentSlicerLib.scene.organ_names import organ_name

_NAME, _NOTE = "name", "note"
_TITLE_PADDING, _NAME_PADDING = 8, 6


@dataclass(frozen=True)
class _Column:
    key: str
    title: str
    tool_tip: str
    optional: bool = False


def _columns() -> tuple[_Column, ...]:
    return (
        _Column(_NAME, _("Organ"), _("Click an organ to see it in all views")),
        _Column("volume_ml", _("mL"), _("Volume as it was segmented, in mL; ≥ for an organ that the scan cuts")),
        _Column("hu", _("HU"), _("Mean ± standard deviation of the CT in the organ, in Hounsfield units")),
        _Column("dice", _("Dice"), _("Overlap with the reference, 0 to 1"), True),
        _Column("nsd", _("NSD"), _("Normalized Surface Dice at FLARE22's tolerance, 0 to 1"), True),
        _Column("hd95_mm", _("HD95"), _("95th percentile of the distance between the surfaces, in mm"), True),
        _Column("extent_mm", _("Extent (mm)"), _("Left to right × front to back × head to foot, in millimeters")),
        _Column(_NOTE, _("Note"), _("What to know before a number is used"), True),
    )


class OrganTable:
    """Fills a QTableWidget with the organs of a segmentation node.

    A click or Enter on an organ shows it in all views; the check box shows or hides it. The names stand in a view of
    their own beside the table, so that they stay where they are when the numbers are scrolled; neither is ever a reason
    for the panel to become wider.
    """

    def __init__(self, names: qt.QTableView, table: qt.QTableWidget, onJump: Callable[[str], None]) -> None:
        """
        :param names: shows the names of the table's rows
        :param table: holds everything and shows the numbers
        :param onJump: called with the key of the organ that was clicked
        """
        self._names = names
        self._table = table
        self._onJump = onJump
        self._columns = _columns()
        self._keys: list[str] = []
        self._texts: list[list[str]] = []
        self._organs: dict[str, dict[str, Any]] = {}
        self._scores: dict[str, dict[str, Any]] = {}
        self._node: slicer.vtkMRMLSegmentationNode | None = None
        self._filling = False
        table.setColumnCount(len(self._columns))
        for position, column in enumerate(self._columns):
            item = qt.QTableWidgetItem(column.title)
            item.setToolTip(column.tool_tip)
            table.setHorizontalHeaderItem(position, item)
        names.setModel(table.model())
        names.setSelectionModel(table.selectionModel())
        for position in range(1, len(self._columns)):
            names.setColumnHidden(position, True)
        table.setColumnHidden(0, True)
        for view in (names, table):
            view.horizontalHeader().setMinimumSectionSize(20)
            view.verticalHeader().setVisible(False)
        names.horizontalHeader().setSectionResizeMode(qt.QHeaderView.Fixed)
        table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        table.horizontalHeader().setStretchLastSection(True)
        names.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        names.verticalHeader().connect("sectionResized(int,int,int)", self._onRowResized)
        names.connect("clicked(QModelIndex)", self._onName)
        names.connect("activated(QModelIndex)", self._onName)
        table.connect("cellClicked(int,int)", self._onCell)
        table.connect("cellActivated(int,int)", self._onCell)
        table.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)

    @property
    def isEmpty(self) -> bool:
        """Whether there is no organ to show."""
        return not self._keys

    def show(self, segmentationNode: slicer.vtkMRMLSegmentationNode | None, edited: Collection[str] = ()) -> None:
        """Show what is known of a result, of which the organs with these keys were edited since."""
        description = segmentation_nodes.read_description(segmentationNode)
        organs = description.get(segmentation_nodes.ORGAN_TABLE, {})
        scores = description.get(segmentation_nodes.COMPARISON, {}).get("organs", {})
        segments = segmentation_nodes.organ_segments(segmentationNode) if segmentationNode else {}
        self._node = segmentationNode
        self._keys, self._organs, self._scores = list(organs), organs, scores
        self._texts = [
            [_text(column.key, key, facts, scores.get(key, {}), edited) for column in self._columns]
            for key, facts in organs.items()
        ]
        self._filling = True
        self._table.setRowCount(len(organs))
        for row, key in enumerate(self._keys):
            for position, text in enumerate(self._texts[row]):
                self._table.setItem(row, position, self._item(position, text, key, segments.get(key)))
        for position in range(1, len(self._columns)):
            self._table.setColumnHidden(position, not self._isShown(position))
        self._filling = False
        self._names.resizeRowsToContents()
        self._fit()

    def rows(self) -> list[list[str]]:
        """Titles, then the organs, without columns that are not shown."""
        shown = [position for position in range(len(self._columns)) if self._isShown(position)]
        titles = [column.title for column in self._columns]
        return [[line[position] for position in shown] for line in [titles, *self._texts]]

    def copy(self) -> None:
        """Put the table into the clipboard, as spreadsheets take it."""
        text = "\n".join("\t".join(line) for line in self.rows())
        qt.QApplication.clipboard().setText(text)

    def csv(self) -> str:
        """The organs as comma-separated values: plain numbers, the same as the headless script writes."""
        return result_table.csv_text(result_table.organ_rows(self._organs, self._scores or None))

    def _isShown(self, position: int) -> bool:
        return not self._columns[position].optional or any(texts[position] for texts in self._texts)

    def _onRowResized(self, row: int, before: int, now: int) -> None:
        self._table.setRowHeight(row, now)
        self._fitSize()

    def _fit(self) -> None:
        """Make the numbers' rows as high as the names', and both views as large as what is in them."""
        heights = [self._names.rowHeight(row) for row in range(self._table.rowCount)]
        if heights:  # a size of its own: Qt takes rows back to the style's size when the font changes
            self._table.verticalHeader().setDefaultSectionSize(max(heights))
        for row, height in enumerate(heights):
            self._table.setRowHeight(row, height)
        self._fitSize()

    def _fitSize(self) -> None:
        """Give both views the height of all rows, the titles and a scroll bar, and the names the width they need: a
        narrow panel must not cut organs off.
        """
        rows = sum(self._table.rowHeight(row) for row in range(self._table.rowCount))
        titles = qt.QFontMetrics(self._table.font).height() + _TITLE_PADDING
        bar = self._table.style().pixelMetric(qt.QStyle.PM_ScrollBarExtent)
        for view in (self._names, self._table):
            view.horizontalHeader().setFixedHeight(titles)
            view.setFixedHeight(rows + titles + bar + 2 * view.frameWidth)
        self._names.resizeColumnToContents(0)
        width = self._names.columnWidth(0) + _NAME_PADDING
        self._names.setColumnWidth(0, width)
        self._names.setFixedWidth(width + 2 * self._names.frameWidth)

    def _item(self, position: int, text: str, key: str, segmentID: str | None) -> qt.QTableWidgetItem:
        item = qt.QTableWidgetItem(text)
        if self._columns[position].key != _NAME:
            item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            return item
        swatch = qt.QPixmap(12, 12)
        swatch.fill(qt.QColor(*organ_by_key(key).color))
        item.setIcon(qt.QIcon(swatch))
        if segmentID and self._node.GetDisplayNode():
            item.setFlags(item.flags() | qt.Qt.ItemIsUserCheckable)
            visible = self._node.GetDisplayNode().GetSegmentVisibility(segmentID)
            item.setCheckState(qt.Qt.Checked if visible else qt.Qt.Unchecked)
        return item

    def _onName(self, index: qt.QModelIndex) -> None:
        self._onJump(self._keys[index.row()])

    def _onCell(self, row: int, column: int) -> None:
        self._onJump(self._keys[row])

    def _onItemChanged(self, item: qt.QTableWidgetItem) -> None:
        if self._filling or item.column() != 0:
            return
        segmentID = segmentation_nodes.organ_segments(self._node).get(self._keys[item.row()])
        if segmentID:
            display.set_organ_visible(self._node, segmentID, item.checkState() == qt.Qt.Checked)


def _text(column: str, key: str, facts: dict[str, Any], scores: dict[str, Any], edited: Collection[str]) -> str:
    found = bool(facts.get("volume_ml"))
    if column == _NAME:
        return organ_name(organ_by_key(key))
    if column == _NOTE:
        notes = [] if found else [_("not found")]
        notes += [_("cut by the edge")] if facts.get("touches_border") else []
        notes += [_("edited since")] if key in edited else []
        return ", ".join(notes)
    if column in ("dice", "nsd"):
        return "" if scores.get(column) is None else f"{scores[column]:.3f}"
    if column == "hd95_mm":
        if not scores:
            return ""
        return "∞" if scores.get(column) is None else f"{scores[column]:.1f}"
    if not found:
        return "–"
    if column == "volume_ml":
        return result_table.volume_text(facts[column], bool(facts.get("touches_border")))
    if column == "hu":
        deviation = facts.get("sd_hu")
        return f"{facts['mean_hu']:.0f}" + ("" if deviation is None else f" ± {deviation:.0f}")
    extent = facts.get("extent_mm")
    return " × ".join(f"{value:.0f}" for value in extent) if extent else ""
