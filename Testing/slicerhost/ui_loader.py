"""Reads Qt Designer's `.ui` files: the `qt.QUiLoader` that PyQt5 does not have.

Stricter than Qt's own loader, which turns a misspelled property into a dynamic one: an unknown widget class, property,
signal, slot or value type raises `UiError`. Dynamic properties (`stdset="0"`: SlicerParameterName, say) are kept.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PyQt5 import QtCore, QtGui, QtWidgets

stand_ins: dict[str, type] = {}
"""ctk and qMRML classes by name, filled at boot."""

_SET_LAST = ("currentIndex", "collapsed", "checked")  # they need the children or the range to be there
_MARGINS = ("leftMargin", "topMargin", "rightMargin", "bottomMargin")


class UiError(RuntimeError):
    """The `.ui` file names something that Slicer's loader would not know."""


class QUiLoader(QtCore.QObject):
    """`load(device, parent=None)` returns the top widget of an open QFile (or of a path)."""

    def load(self, device, parent=None):
        data = bytes(device.readAll()) if hasattr(device, "readAll") else Path(device).read_bytes()
        root = ElementTree.fromstring(data)
        self._objects, self._buddies = {}, []
        widget = self._widget(root.find("widget"), parent)
        for label, name in self._buddies:
            label.setBuddy(self._object(name))
        for connection in root.findall("./connections/connection"):
            self._connect(*(connection.findtext(tag) for tag in ("sender", "signal", "receiver", "slot")))
        return widget

    def _object(self, name):
        if name not in self._objects:
            raise UiError(f".ui refers to {name}, which is not in the file")
        return self._objects[name]

    def _connect(self, sender, signal, receiver, slot):
        target = getattr(self._object(receiver), slot.split("(")[0], None)
        if not callable(target):
            raise UiError(f".ui connects to {receiver}.{slot}, which does not exist")
        self._object(sender).connect(signal, target)

    def _class(self, name):
        if name == "Line":
            return QtWidgets.QFrame
        found = stand_ins.get(name) or getattr(QtWidgets, name, None)
        if found is None:
            raise UiError(f".ui names the class {name}, which this host does not know")
        return found

    def _widget(self, element, parent):
        class_name, name = element.get("class"), element.get("name")
        widget = self._class(class_name)(parent) if parent is not None else self._class(class_name)()
        widget.setObjectName(name)
        self._objects[name] = widget
        if class_name == "Line":
            widget.setFrameShape(QtWidgets.QFrame.HLine)
            widget.setFrameShadow(QtWidgets.QFrame.Sunken)
        self._items(element, widget)
        properties = element.findall("property")
        for one in properties:
            if one.get("name") not in _SET_LAST:
                self._set_property(widget, one, class_name)
        for child in element:
            if child.tag == "layout":
                self._layout(child, widget)
            elif child.tag == "widget":
                self._attach(widget, self._widget(child, widget), child)
            elif child.tag == "action":
                self._action(child, widget)
            elif child.tag == "addaction" and child.get("name") in self._objects:
                widget.addAction(self._objects[child.get("name")])
        for one in properties:
            if one.get("name") in _SET_LAST:
                self._set_property(widget, one, class_name)
        return widget

    def _items(self, element, widget):
        if isinstance(widget, QtWidgets.QTableWidget):
            columns, rows = element.findall("column"), element.findall("row")
            widget.setColumnCount(len(columns))
            widget.setRowCount(len(rows))
            widget.setHorizontalHeaderLabels([self._text(column) for column in columns])
            if rows:
                widget.setVerticalHeaderLabels([self._text(row) for row in rows])
        elif isinstance(widget, QtWidgets.QTreeWidget):
            columns = element.findall("column")
            if columns:
                widget.setHeaderLabels([self._text(column) for column in columns])
        elif hasattr(widget, "addItem"):
            for item in element.findall("item"):
                widget.addItem(self._text(item))

    def _text(self, element):
        text = element.find("property[@name='text']")
        return "" if text is None else self._value(text)

    def _action(self, element, parent):
        action = QtWidgets.QAction(parent)
        action.setObjectName(element.get("name"))
        self._objects[element.get("name")] = action
        for one in element.findall("property"):
            self._set_property(action, one, "QAction")

    def _attach(self, parent, child, element):
        attributes = {one.get("name"): self._value(one) for one in element.findall("attribute")}
        if isinstance(parent, QtWidgets.QTabWidget):
            parent.addTab(child, attributes.get("title", ""))
        elif isinstance(parent, QtWidgets.QToolBox):
            parent.addItem(child, attributes.get("label", ""))
        elif isinstance(parent, (QtWidgets.QStackedWidget, QtWidgets.QSplitter)):
            parent.addWidget(child)
        elif isinstance(parent, QtWidgets.QScrollArea):
            parent.setWidget(child)

    def _layout(self, element, parent, nested=False):
        layout = self._class(element.get("class"))() if nested else self._class(element.get("class"))(parent)
        if element.get("name"):
            layout.setObjectName(element.get("name"))
            self._objects[element.get("name")] = layout
        margins = list(layout.getContentsMargins())
        for one in element.findall("property"):
            name = one.get("name")
            if name in _MARGINS:
                margins[_MARGINS.index(name)] = self._value(one)
            elif name == "margin":
                margins = [self._value(one)] * 4
            else:
                self._set_property(layout, one, element.get("class"))
        layout.setContentsMargins(*margins)
        for item in element.findall("item"):
            self._add_to_layout(layout, item, parent)
        for attribute, setter in (("stretch", "setStretch"), ("columnstretch", "setColumnStretch"),
                                  ("rowstretch", "setRowStretch")):
            if element.get(attribute):
                for index, stretch in enumerate(element.get(attribute).split(",")):
                    getattr(layout, setter)(index, int(stretch))
        return layout

    def _add_to_layout(self, layout, item, parent):
        content = item[0]
        if content.tag == "widget":
            kind, added = "Widget", self._widget(content, parent)
        elif content.tag == "layout":
            kind, added = "Layout", self._layout(content, parent, nested=True)
        else:
            kind, added = "Item", self._spacer(content)
        row, column = int(item.get("row", 0)), int(item.get("column", 0))
        row_span, column_span = int(item.get("rowspan", 1)), int(item.get("colspan", 1))
        if isinstance(layout, QtWidgets.QFormLayout):
            roles = QtWidgets.QFormLayout
            role = roles.SpanningRole if column_span > 1 else roles.LabelRole if column == 0 else roles.FieldRole
            getattr(layout, "set" + kind)(row, role, added)
        elif isinstance(layout, QtWidgets.QGridLayout):
            getattr(layout, "add" + kind)(added, row, column, row_span, column_span)
        else:
            getattr(layout, "add" + kind)(added)

    def _spacer(self, element):
        values = {one.get("name"): self._value(one) for one in element.findall("property")}
        size = values.get("sizeHint", QtCore.QSize(20, 40))
        grows, stays = values.get("sizeType", QtWidgets.QSizePolicy.Expanding), QtWidgets.QSizePolicy.Minimum
        if values.get("orientation") == QtCore.Qt.Horizontal:
            return QtWidgets.QSpacerItem(size.width(), size.height(), grows, stays)
        return QtWidgets.QSpacerItem(size.width(), size.height(), stays, grows)

    def _set_property(self, target, element, class_name):
        name, value = element.get("name"), self._value(element)
        if name == "buddy":
            self._buddies.append((target, element[0].text))
        elif element.get("stdset") == "0":
            target.setProperty(name, value)
        elif class_name == "Line" and name == "orientation":
            target.setFrameShape(
                QtWidgets.QFrame.HLine if value == QtCore.Qt.Horizontal else QtWidgets.QFrame.VLine
            )
        elif name == "geometry" and target.parent() is None:
            target.resize(value.size())
        elif name in ("horizontalSpacing", "verticalSpacing") and isinstance(target, QtWidgets.QLayout):
            getattr(target, "set" + name[0].upper() + name[1:])(value)
        elif target.metaObject().indexOfProperty(name) < 0:
            raise UiError(f".ui sets the unknown property {name} of {class_name} {target.objectName}")
        else:
            setter = getattr(target, "set" + name[0].upper() + name[1:], None)
            if setter is not None:
                setter(value)
            else:
                target.setProperty(name, value)

    def _enum(self, text):
        scope, _, name = text.rpartition("::")
        first = scope.split("::")[0]
        for owner in (getattr(QtCore, first, None), getattr(QtWidgets, first, None), getattr(QtGui, first, None),
                      stand_ins.get(first)):
            if owner is not None and hasattr(owner, name):
                return getattr(owner, name)
        raise UiError(f".ui uses the unknown enum value {text}")

    def _value(self, element):
        node = element[0]
        text = node.text or ""
        kind = node.tag
        if kind in ("string", "cstring"):
            return text
        if kind == "bool":
            return text.strip() == "true"
        if kind in ("number", "uint", "longlong"):
            return int(text)
        if kind in ("double", "float"):
            return float(text)
        if kind == "enum":
            return self._enum(text)
        if kind == "set":
            values = [self._enum(one) for one in text.split("|")]
            combined = values[0]
            for value in values[1:]:
                combined = combined | value
            return combined
        if kind == "stringlist":
            return [one.text or "" for one in node.findall("string")]
        if kind == "size":
            return QtCore.QSize(int(node.findtext("width")), int(node.findtext("height")))
        if kind == "rect":
            return QtCore.QRect(*(int(node.findtext(tag)) for tag in ("x", "y", "width", "height")))
        if kind == "color":
            return QtGui.QColor(*(int(node.findtext(tag)) for tag in ("red", "green", "blue")))
        if kind == "sizepolicy":
            policies = QtWidgets.QSizePolicy
            policy = policies(
                getattr(policies, node.get("hsizetype", "Preferred")),
                getattr(policies, node.get("vsizetype", "Preferred")),
            )
            policy.setHorizontalStretch(int(node.findtext("horstretch", "0")))
            policy.setVerticalStretch(int(node.findtext("verstretch", "0")))
            return policy
        if kind == "font":
            font = QtGui.QFont()
            if node.findtext("pointsize"):
                font.setPointSize(int(node.findtext("pointsize")))
            if node.findtext("bold"):
                font.setBold(node.findtext("bold") == "true")
            if node.findtext("italic"):
                font.setItalic(node.findtext("italic") == "true")
            return font
        if kind == "iconset":
            return QtGui.QIcon(text.strip())
        if kind == "cursorShape":
            return getattr(QtCore.Qt, text)
        raise UiError(f".ui value type {kind} is not known")
