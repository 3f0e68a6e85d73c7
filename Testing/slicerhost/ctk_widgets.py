"""Stand-ins for CTK's widgets, the module `ctk`: Qt widgets with CTK's properties, slots and signals."""

from __future__ import annotations

import math
import os

from PyQt5.QtCore import QEvent, QSize, Qt, pyqtProperty, pyqtSignal
from PyQt5.QtGui import QColor
from PyQt5.QtWidgets import (
    QAbstractButton,
    QCheckBox,
    QColorDialog,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QGroupBox,
    QHBoxLayout,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOptionButton,
    QStylePainter,
    QToolButton,
    QWidget,
)

from slicerhost.stand_in import exported_names, stored_properties, text_and_parent


def exported():
    """All stand-ins of this file by class name."""
    return exported_names(globals(), ("ctk",))


def _row(widget, *parts):
    layout = QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    for part in parts:
        layout.addWidget(part)
    return layout


_SHOWN = "visibilityToParent"  # CTK's own name


class ctkCollapsibleButton(QAbstractButton):
    """A heading that hides and shows the widgets laid out in it."""

    locals().update(stored_properties(collapsedHeight=(int, 10)))
    contentsCollapsed = pyqtSignal(bool)

    def __init__(self, *arguments):
        text, parent = text_and_parent(arguments)
        super().__init__(parent)
        self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QSizePolicy.Preferred, QSizePolicy.Preferred)
        self.setContentsMargins(0, self._header, 0, 0)
        self._collapsed = self._forcing = False
        self.toggled.connect(lambda checked: self.setCollapsed(not checked))

    @property
    def _header(self):
        """Height of the heading: as large as its text, as in CTK."""
        return max(24, self.fontMetrics().height() + 4)

    def changeEvent(self, event):
        super().changeEvent(event)
        if event.type() == QEvent.FontChange:
            self.setContentsMargins(0, self._header, 0, 0)
            self.setMaximumHeight(self._header if self._collapsed else 16777215)

    def setCollapsed(self, collapsed):
        collapsed = bool(collapsed)
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        for child in self.children():
            if isinstance(child, QWidget):
                if collapsed:
                    child.setProperty(_SHOWN, not child.isHidden())
                    child.installEventFilter(self)
                self._show_child(child)
        self.setMaximumHeight(self._header if collapsed else 16777215)
        self.setChecked(not collapsed)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    collapsed = pyqtProperty(bool, lambda self: self._collapsed, setCollapsed)

    def eventFilter(self, watched, event):
        """What is hidden or shown while the heading is collapsed is so when it is expanded."""
        if self._collapsed and not self._forcing and event.type() in (QEvent.ShowToParent, QEvent.HideToParent):
            watched.setProperty(_SHOWN, event.type() == QEvent.ShowToParent)
            self._show_child(watched)
        return super().eventFilter(watched, event)

    def _show_child(self, child):
        self._forcing = True
        child.setVisible(not self._collapsed and child.property(_SHOWN) is not False)
        child.setAttribute(Qt.WA_WState_ExplicitShowHide, False)  # or hiding what is hidden would be no event
        self._forcing = False

    def _header_size(self):
        return QSize(self.fontMetrics().horizontalAdvance(self.text) + 2 * self._header, self._header)

    def sizeHint(self):
        layout = self.layout()
        inside = QSize() if layout is None or self._collapsed else layout.totalSizeHint()
        return self._header_size().expandedTo(inside)

    def minimumSizeHint(self):
        layout = self.layout()
        inside = QSize() if layout is None or self._collapsed else layout.totalMinimumSize()
        return self._header_size().expandedTo(inside)

    def hitButton(self, position):
        return position.y() < self._header

    def paintEvent(self, event):
        painter = QStylePainter(self)
        option = QStyleOptionButton()
        option.initFrom(self)
        option.rect = self.rect
        option.rect.setHeight(self._header)
        painter.drawControl(QStyle.CE_PushButtonBevel, option)
        arrow = QStyleOptionButton()
        arrow.initFrom(self)
        arrow.rect = option.rect.adjusted(6, 6, 0, -6)
        arrow.rect.setWidth(self._header - 12)
        painter.drawPrimitive(
            QStyle.PE_IndicatorArrowRight if self._collapsed else QStyle.PE_IndicatorArrowDown, arrow
        )
        painter.drawItemText(
            option.rect.adjusted(self._header, 0, -6, 0), Qt.AlignVCenter | Qt.AlignLeft, self.palette, self.enabled,
            self.text,
        )


class ctkCollapsibleGroupBox(QGroupBox):
    """A group box whose check box hides and shows its children."""

    def __init__(self, *arguments):
        text, parent = text_and_parent(arguments)
        super().__init__(text, parent)
        self.setCheckable(True)
        self.toggled.connect(self._show_children)
        self._hidden_children = []

    def _show_children(self, visible):
        if not visible:
            self._hidden_children = [
                child for child in self.children() if isinstance(child, QWidget) and not child.isHidden()
            ]
        for child in self._hidden_children:
            child.setVisible(visible)

    def setCollapsed(self, collapsed):
        self.setChecked(not collapsed)

    collapsed = pyqtProperty(bool, lambda self: not self.checked, setCollapsed)


class ctkDoubleSpinBox(QWidget):
    """A double spin box; as in CTK it wraps a QDoubleSpinBox and is none itself."""

    valueChanged = pyqtSignal([float], [str])
    decimalsChanged = pyqtSignal(int)
    editingFinished = pyqtSignal()
    SIGNALS = {"valueChanged(double)": "valueChanged"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._spin_box = QDoubleSpinBox(self)
        _row(self, self._spin_box)
        self._spin_box.valueChanged.connect(self.valueChanged)
        self._spin_box.editingFinished.connect(self.editingFinished)

    def setValue(self, value):
        self._spin_box.setValue(float(value))

    def setMinimum(self, value):
        self._spin_box.setMinimum(float(value))

    def setMaximum(self, value):
        self._spin_box.setMaximum(float(value))

    def setRange(self, minimum, maximum):
        self._spin_box.setRange(float(minimum), float(maximum))

    def setSingleStep(self, value):
        self._spin_box.setSingleStep(float(value))

    def setDecimals(self, value):
        if value != self._spin_box.decimals:
            self._spin_box.setDecimals(value)
            self.decimalsChanged.emit(value)

    def setSuffix(self, text):
        self._spin_box.setSuffix(text)

    def setPrefix(self, text):
        self._spin_box.setPrefix(text)

    def stepUp(self):
        self._spin_box.stepUp()

    def stepDown(self):
        self._spin_box.stepDown()

    value = pyqtProperty(float, lambda self: self._spin_box.value, setValue)
    minimum = pyqtProperty(float, lambda self: self._spin_box.minimum, setMinimum)
    maximum = pyqtProperty(float, lambda self: self._spin_box.maximum, setMaximum)
    singleStep = pyqtProperty(float, lambda self: self._spin_box.singleStep, setSingleStep)
    decimals = pyqtProperty(int, lambda self: self._spin_box.decimals, setDecimals)
    suffix = pyqtProperty(str, lambda self: self._spin_box.suffix, setSuffix)
    prefix = pyqtProperty(str, lambda self: self._spin_box.prefix, setPrefix)


class ctkDoubleSlider(QWidget):
    """A slider with real values; the integer slider inside only shows where the value lies."""

    locals().update(stored_properties(
        singleStep=(float, 1.0), pageStep=(float, 10.0), tracking=(bool, True), invertedAppearance=(bool, False)
    ))
    valueChanged = pyqtSignal(float)
    sliderMoved = pyqtSignal(float)
    sliderPressed = pyqtSignal()
    sliderReleased = pyqtSignal()
    rangeChanged = pyqtSignal(float, float)
    SIGNALS = {"valueChanged(double)": "valueChanged", "sliderMoved(double)": "sliderMoved",
               "rangeChanged(double,double)": "rangeChanged"}
    _STEPS = 10000

    def __init__(self, *arguments):
        orientation = next((one for one in arguments if isinstance(one, Qt.Orientation)), Qt.Horizontal)
        super().__init__(text_and_parent(arguments)[1])
        self._minimum, self._maximum, self._value = 0.0, 99.0, 0.0
        self._slider = QSlider(orientation, self)
        self._slider.setRange(0, self._STEPS)
        _row(self, self._slider)
        self._slider.sliderMoved.connect(self._on_slider_moved)
        self._slider.actionTriggered.connect(lambda _: self._on_slider_moved(self._slider.sliderPosition))
        self._slider.sliderPressed.connect(self.sliderPressed)
        self._slider.sliderReleased.connect(self.sliderReleased)

    def _on_slider_moved(self, position):
        value = self._minimum + position * (self._maximum - self._minimum) / self._STEPS
        self.sliderMoved.emit(value)
        self.setValue(value)

    def _show(self):
        span = self._maximum - self._minimum
        if math.isfinite(span) and span > 0:
            self._slider.setValue(round(self._STEPS * (self._value - self._minimum) / span))

    def setValue(self, value):
        value = min(max(float(value), self._minimum), self._maximum)
        changed = value != self._value
        self._value = value
        self._show()
        if changed:
            self.valueChanged.emit(value)

    def setRange(self, minimum, maximum):
        self._minimum, self._maximum = float(minimum), max(float(minimum), float(maximum))
        self.rangeChanged.emit(self._minimum, self._maximum)
        self.setValue(self._value)

    def setMinimum(self, value):
        self.setRange(value, max(float(value), self._maximum))

    def setMaximum(self, value):
        self.setRange(min(float(value), self._minimum), value)

    value = pyqtProperty(float, lambda self: self._value, setValue)
    minimum = pyqtProperty(float, lambda self: self._minimum, setMinimum)
    maximum = pyqtProperty(float, lambda self: self._maximum, setMaximum)


class ctkSliderWidget(QWidget):
    """A double slider and a double spin box that show the same value."""

    locals().update(stored_properties(pageStep=(float, 1.0), tracking=(bool, True), synchronizeSiblings=(int, 0)))
    valueChanged = pyqtSignal(float)
    valueIsChanging = pyqtSignal(float)
    SIGNALS = {"valueChanged(double)": "valueChanged", "valueIsChanging(double)": "valueIsChanging"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider, self._spin_box = ctkDoubleSlider(Qt.Horizontal, self), ctkDoubleSpinBox(self)
        self._spin_box.setRange(0.0, 99.0)
        _row(self, self._slider, self._spin_box).setStretch(0, 1)
        self._slider.sliderMoved.connect(self.valueIsChanging)
        self._slider.valueChanged.connect(self._spin_box.setValue)
        self._spin_box.valueChanged.connect(self._on_value_changed)

    def _on_value_changed(self, value):
        self._slider.setValue(value)
        self.valueChanged.emit(value)

    def slider(self):
        return self._slider

    def spinBox(self):
        return self._spin_box

    def setValue(self, value):
        self._spin_box.setValue(value)

    def setMinimum(self, value):
        self.setRange(value, max(float(value), self.maximum))

    def setMaximum(self, value):
        self.setRange(min(float(value), self.minimum), value)

    def setRange(self, minimum, maximum):
        self._spin_box.setRange(minimum, maximum)
        self._slider.blockSignals(True)
        self._slider.setRange(self._spin_box.minimum, self._spin_box.maximum)
        self._slider.setValue(self._spin_box.value)
        self._slider.blockSignals(False)

    def setSingleStep(self, value):
        self._slider.setSingleStep(value)
        self._spin_box.setSingleStep(value)

    def setDecimals(self, value):
        self._spin_box.setDecimals(value)

    def setSuffix(self, text):
        self._spin_box.setSuffix(text)

    def setPrefix(self, text):
        self._spin_box.setPrefix(text)

    def setSpinBoxVisible(self, visible):
        self._spin_box.setVisible(visible)

    def reset(self):
        self.setValue(0.0)

    value = pyqtProperty(float, lambda self: self._spin_box.value, setValue)
    minimum = pyqtProperty(float, lambda self: self._spin_box.minimum, setMinimum)
    maximum = pyqtProperty(float, lambda self: self._spin_box.maximum, setMaximum)
    singleStep = pyqtProperty(float, lambda self: self._spin_box.singleStep, setSingleStep)
    decimals = pyqtProperty(int, lambda self: self._spin_box.decimals, setDecimals)
    suffix = pyqtProperty(str, lambda self: self._spin_box.suffix, setSuffix)
    prefix = pyqtProperty(str, lambda self: self._spin_box.prefix, setPrefix)
    spinBoxVisible = pyqtProperty(bool, lambda self: not self._spin_box.isHidden(), setSpinBoxVisible)


class _RangeEditor(QWidget):
    """Two ordered values within a range: what CTK's range widgets have in common."""

    locals().update(stored_properties(singleStep=(float, 1.0), tracking=(bool, True)))
    valuesChanged = pyqtSignal(float, float)
    minimumValueChanged = pyqtSignal(float)
    maximumValueChanged = pyqtSignal(float)
    rangeChanged = pyqtSignal(float, float)
    SIGNALS = {"valuesChanged(double,double)": "valuesChanged", "minimumValueChanged(double)": "minimumValueChanged",
               "maximumValueChanged(double)": "maximumValueChanged", "rangeChanged(double,double)": "rangeChanged"}

    def __init__(self, *arguments):
        super().__init__(text_and_parent(arguments)[1])
        self._range, self._values = (0.0, 99.0), (0.0, 99.0)
        self._editors = QDoubleSpinBox(self), QDoubleSpinBox(self)
        _row(self, *self._editors)
        for editor in self._editors:
            editor.setRange(*self._range)
            editor.valueChanged.connect(self._on_edited)
        self._show()

    def _show(self):
        for editor, value in zip(self._editors, self._values):
            editor.blockSignals(True)
            editor.setValue(value)
            editor.blockSignals(False)

    def _on_edited(self, _):
        first, second = (editor.value for editor in self._editors)
        self.setValues(first, second)

    def setValues(self, minimum, maximum):
        low, high = self._range
        new = tuple(sorted(min(max(float(value), low), high) for value in (minimum, maximum)))
        old, self._values = self._values, new
        self._show()
        if new[0] != old[0]:
            self.minimumValueChanged.emit(new[0])
        if new[1] != old[1]:
            self.maximumValueChanged.emit(new[1])
        if new != old:
            self.valuesChanged.emit(*new)

    def setRange(self, minimum, maximum):
        self._range = float(minimum), max(float(minimum), float(maximum))
        for editor in self._editors:
            editor.blockSignals(True)
            editor.setRange(*self._range)
            editor.blockSignals(False)
        self.rangeChanged.emit(*self._range)
        self.setValues(*self._values)

    def setMinimum(self, value):
        self.setRange(value, max(float(value), self._range[1]))

    def setMaximum(self, value):
        self.setRange(min(float(value), self._range[0]), value)

    def setMinimumValue(self, value):
        self.setValues(value, max(float(value), self._values[1]))

    def setMaximumValue(self, value):
        self.setValues(min(float(value), self._values[0]), value)

    minimum = pyqtProperty(float, lambda self: self._range[0], setMinimum)
    maximum = pyqtProperty(float, lambda self: self._range[1], setMaximum)
    minimumValue = pyqtProperty(float, lambda self: self._values[0], setMinimumValue)
    maximumValue = pyqtProperty(float, lambda self: self._values[1], setMaximumValue)


class ctkRangeWidget(_RangeEditor):
    def setDecimals(self, value):
        for editor in self._editors:
            editor.setDecimals(value)

    def setSuffix(self, text):
        for editor in self._editors:
            editor.setSuffix(text)

    decimals = pyqtProperty(int, lambda self: self._editors[0].decimals, setDecimals)
    suffix = pyqtProperty(str, lambda self: self._editors[0].suffix, setSuffix)


class ctkDoubleRangeSlider(_RangeEditor):
    pass


class ctkCheckBox(QCheckBox):
    pass


class ctkComboBox(QComboBox):
    locals().update(stored_properties(
        defaultText=(str, ""), forceDefault=(bool, False), scrollWheelEnabled=(bool, True)
    ))


class ctkPushButton(QPushButton):
    pass


class ctkCheckablePushButton(ctkPushButton):
    """A push button with a check box in it."""

    checkBoxToggled = pyqtSignal(bool)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._check_state = Qt.Unchecked

    def setCheckState(self, state):
        if state != self._check_state:
            self._check_state = state
            self.checkBoxToggled.emit(state == Qt.Checked)

    checkState = pyqtProperty(int, lambda self: self._check_state, setCheckState)


class ctkMenuButton(QPushButton):
    pass


class ctkSearchBox(QLineEdit):
    locals().update(stored_properties(alwaysShowClearIcon=(bool, False), showSearchIcon=(bool, False)))


class ctkPathLineEdit(QWidget):
    """A line with a path and a button to browse for it."""

    locals().update(stored_properties(
        filters=(int, 0x001 | 0x002), nameFilters=("QStringList", ()), label=(str, ""), settingKey=(str, ""),
        showBrowseButton=(bool, True), showHistoryButton=(bool, True)
    ))
    Dirs, Files, Drives, NoSymLinks = 0x001, 0x002, 0x004, 0x008
    Readable, Writable, Executable, Hidden, System = 0x010, 0x020, 0x040, 0x100, 0x200
    currentPathChanged = pyqtSignal(str)
    validInputChanged = pyqtSignal(bool)

    def __init__(self, *arguments):
        super().__init__(text_and_parent(arguments)[1])
        self._line, self._button = QLineEdit(self), QToolButton(self)
        self._button.setText("…")
        _row(self, self._line, self._button).setStretch(0, 1)
        self._has_valid_input = False
        self._line.textChanged.connect(self._on_text)
        self._button.clicked.connect(lambda _: self.browse())

    def _on_text(self, path):
        """An empty line is no valid input: `currentPathChanged` does not tell of it."""
        had_valid_input, self._has_valid_input = self._has_valid_input, bool(path)
        if path:
            self.currentPathChanged.emit(path)
        if self._has_valid_input != had_valid_input:
            self.validInputChanged.emit(self._has_valid_input)

    def _showBrowseButton_changed(self):
        self._button.setVisible(self.showBrowseButton)

    def browse(self):
        if self.filters & self.Files:
            path = QFileDialog.getOpenFileName(self, "Select a file", self.currentPath, ";;".join(self.nameFilters))
        else:
            path = QFileDialog.getExistingDirectory(self, "Select a folder", self.currentPath)
        if path:
            self.setCurrentPath(path)

    def setCurrentPath(self, path):
        self._line.setText(path)

    def addCurrentPathToHistory(self):
        pass

    currentPath = pyqtProperty(str, lambda self: self._line.text, setCurrentPath)


class ctkDirectoryButton(QWidget):
    """A button that shows a directory's absolute path and lets one choose another."""

    locals().update(stored_properties(caption=(str, ""), acceptMode=(int, 0)))
    directoryChanged = pyqtSignal(str)
    directorySelected = pyqtSignal(str)

    def __init__(self, *arguments):
        text, parent = text_and_parent(arguments)
        super().__init__(parent)
        self._directory = text or "."
        self._button = QPushButton(self._directory, self)
        _row(self, self._button)
        self._button.clicked.connect(lambda _: self.browse())

    def browse(self):
        path = QFileDialog.getExistingDirectory(self, self.caption, self.directory)
        if path:
            self.setDirectory(path)
            self.directorySelected.emit(path)

    def setDirectory(self, path):
        path = os.path.abspath(path) if path not in ("", ".") else path
        if path != self._directory:
            self._directory = path
            self._button.setText(path)
            self.directoryChanged.emit(path)

    directory = pyqtProperty(str, lambda self: self._directory, setDirectory)


class ctkColorPickerButton(QPushButton):
    locals().update(stored_properties(displayColorName=(bool, True)))
    colorChanged = pyqtSignal(QColor)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._color = QColor(0, 0, 0)
        self.clicked.connect(lambda _: self.changeColor())

    def changeColor(self):
        chosen = QColorDialog.getColor(self._color, self)
        if chosen.isValid():
            self.setColor(chosen)

    def setColor(self, color):
        if QColor(color) != self._color:
            self._color = QColor(color)
            self.colorChanged.emit(self._color)

    color = pyqtProperty(QColor, lambda self: self._color, setColor)


class ctkMessageBox(QMessageBox):
    locals().update(stored_properties(dontShowAgainVisible=(bool, False), dontShowAgainSettingsKey=(str, "")))


class ctkWidgetsUtils:
    @staticmethod
    def grabWidget(widget, rectangle=None):
        return widget.grab().toImage()


class ctkAxesWidget(QWidget):
    _none, Right, Left, Superior, Inferior, Anterior, Posterior = range(7)
