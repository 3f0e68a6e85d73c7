"""Stand-ins for Slicer's own widgets that a module panel uses: node selectors, and widgets that hand on the scene."""

from __future__ import annotations

import slicer
import vtk
from PyQt5 import sip
from PyQt5.QtCore import QObject, Qt, pyqtProperty, pyqtSignal
from PyQt5.QtWidgets import QDialog, QHBoxLayout, QInputDialog, QWidget

from slicerhost.ctk_widgets import ctkCollapsibleButton, ctkComboBox, ctkDoubleSpinBox, ctkRangeWidget, ctkSliderWidget
from slicerhost.stand_in import exported_names, stored_properties


def exported():
    """All stand-ins of this file by class name."""
    return exported_names(globals(), ("qMRML", "qSlicer"))


class _SceneHolder:
    """`setMRMLScene` for widgets that only keep the scene and tell their children."""

    def setMRMLScene(self, scene):
        if scene is not getattr(self, "_scene", None):
            self._scene = scene
            if hasattr(self, "mrmlSceneChanged"):
                self.mrmlSceneChanged.emit(scene)


class _SceneReporter(_SceneHolder):
    def mrmlScene(self):
        return getattr(self, "_scene", None)


class qMRMLWidget(_SceneReporter, QWidget):
    mrmlSceneChanged = pyqtSignal(object)
    SIGNALS = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}


class qSlicerWidget(_SceneReporter, QWidget):
    mrmlSceneChanged = pyqtSignal(object)
    SIGNALS = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}


class qMRMLCollapsibleButton(_SceneReporter, ctkCollapsibleButton):
    mrmlSceneChanged = pyqtSignal(object)
    SIGNALS = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}


class qMRMLSliderWidget(_SceneReporter, ctkSliderWidget):
    locals().update(stored_properties(quantity=(str, "")))


class qMRMLSpinBox(_SceneReporter, ctkDoubleSpinBox):
    locals().update(stored_properties(quantity=(str, "")))


class qMRMLRangeWidget(_SceneHolder, ctkRangeWidget):
    locals().update(stored_properties(quantity=(str, "")))


class _SceneObserverMixin:
    """Observes the scene for a widget and stops when the C++ widget is gone."""

    _leaving_id = ""

    def _observe_scene(self, scene, callback):
        for tag in getattr(self, "_scene_tags", ()):
            self._observed_scene.RemoveObserver(tag)
        self._scene_tags, self._observed_scene = [], scene
        if scene is None:
            return
        events = slicer.vtkMRMLScene

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def on_node_leaves(caller, event, node):
            if not sip.isdeleted(self) and not scene.IsClosing() and not scene.IsBatchProcessing():
                self._leaving_id = node.GetID()
                callback()
                self._leaving_id = ""

        def on_scene_changed(caller, event):
            if sip.isdeleted(self):
                for tag in self._scene_tags:
                    scene.RemoveObserver(tag)
                self._scene_tags = []
            elif not scene.IsBatchProcessing() and not scene.IsClosing() and not scene.IsImporting():
                callback()

        def on_import_ended(caller, event):
            on_scene_changed(caller, event)
            if not sip.isdeleted(self) and hasattr(self, "_on_import_ended"):
                self._on_import_ended()

        for event in (events.NodeAddedEvent, events.EndBatchProcessEvent, events.EndCloseEvent):
            self._scene_tags.append(scene.AddObserver(event, on_scene_changed))
        self._scene_tags.append(scene.AddObserver(events.EndImportEvent, on_import_ended))
        # A node's row goes before the node does, but behind everybody else who hears of it.
        self._scene_tags.append(scene.AddObserver(events.NodeAboutToBeRemovedEvent, on_node_leaves, -10.0))


class qMRMLSortFilterProxyModel(QObject):
    """Which nodes a selector lists: here only those that it must not."""

    def __init__(self, selector):
        super().__init__(selector)
        self._hidden, self._refresh = (), selector._refresh

    def setHiddenNodeIDs(self, nodeIDs):
        if tuple(nodeIDs) != self._hidden:
            self._hidden = tuple(nodeIDs)
            self._refresh()

    hiddenNodeIDs = pyqtProperty("QStringList", lambda self: self._hidden, setHiddenNodeIDs)


class qMRMLNodeComboBox(_SceneObserverMixin, QWidget):
    """Combo box of the scene's nodes, with None, Rename, Edit, Create and Delete items as in Slicer."""

    locals().update(stored_properties(
        showHidden=(bool, False), showChildNodeTypes=(bool, True), hideChildNodeTypes=("QStringList", ()),
        noneEnabled=(bool, False), addEnabled=(bool, True), removeEnabled=(bool, True), editEnabled=(bool, False),
        renameEnabled=(bool, False), noneDisplay=(str, "None"), selectNodeUponCreation=(bool, True),
        interactionNodeSingletonTag=(str, "")
    ))
    currentNodeChanged = pyqtSignal(object)
    currentNodeIDChanged = pyqtSignal(str)
    nodeActivated = pyqtSignal(object)
    nodeAdded = pyqtSignal(object)
    nodeAddedByUser = pyqtSignal(object)
    nodeAboutToBeRemoved = pyqtSignal(object)
    nodeAboutToBeEdited = pyqtSignal(object)
    currentNodeRenamed = pyqtSignal(str)
    _validNodeChanged = pyqtSignal(bool)
    SIGNALS = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "_validNodeChanged",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated",
        "nodeAdded(vtkMRMLNode*)": "nodeAdded",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
        "nodeAboutToBeRemoved(vtkMRMLNode*)": "nodeAboutToBeRemoved",
        "nodeAboutToBeEdited(vtkMRMLNode*)": "nodeAboutToBeEdited",
    }

    def __init__(self, parent=None):
        super().__init__(parent)
        self._combo = ctkComboBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._scene, self._requested_id = None, ""
        self._node_types, self._attributes = [], []
        self._base_names, self._labels, self._menu_actions = {}, {}, []
        self._current_id, self._shown_ids, self._node_tags = "", [], {}
        self._proxy_model = qMRMLSortFilterProxyModel(self)
        self._combo.activated[int].connect(self._on_activated)
        self.setEnabled(False)

    # Properties that change what is listed.
    def setNodeTypes(self, nodeTypes):
        self._node_types = [nodeTypes] if isinstance(nodeTypes, str) else list(nodeTypes)
        self._refresh()

    nodeTypes = pyqtProperty("QVariant", lambda self: tuple(self._node_types), setNodeTypes)

    def _refresh_if_set(self):
        self._refresh()

    _showHidden_changed = _showChildNodeTypes_changed = _hideChildNodeTypes_changed = _refresh_if_set
    _noneEnabled_changed = _addEnabled_changed = _removeEnabled_changed = _editEnabled_changed = _refresh_if_set
    _renameEnabled_changed = _noneDisplay_changed = _refresh_if_set

    def setBaseName(self, baseName, nodeType=""):
        for one in [nodeType] if nodeType else ["", *self._node_types]:
            self._base_names[one] = baseName

    baseName = pyqtProperty(str, lambda self: self._base_names.get("", ""), setBaseName)

    def setSizeAdjustPolicy(self, policy):
        self._combo.setSizeAdjustPolicy(policy)

    sizeAdjustPolicy = pyqtProperty(int, lambda self: self._combo.sizeAdjustPolicy, setSizeAdjustPolicy)

    def addAttribute(self, nodeType, attributeName, attributeValue=None):
        self.removeAttribute(nodeType, attributeName)
        self._attributes.append((nodeType, attributeName, attributeValue))
        self._refresh()

    def removeAttribute(self, nodeType, attributeName):
        self._attributes = [one for one in self._attributes if one[:2] != (nodeType, attributeName)]
        self._refresh()

    def setNodeTypeLabel(self, label, nodeType):
        self._labels[nodeType] = label
        self._refresh()

    def nodeTypeLabel(self, nodeType):
        if nodeType in self._labels:
            return self._labels[nodeType]
        node = self._scene.CreateNodeByClass(nodeType) if self._scene and nodeType else None
        if node is None:
            return "Node"
        node.UnRegister(None)
        return node.GetTypeDisplayName() or node.GetNodeTagName()

    def addMenuAction(self, newAction):
        self._menu_actions.append(newAction)
        self._refresh()

    # Scene and nodes.
    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is self._scene:
            return
        had_nodes = self.nodeCount() > 0
        wanted = self._current_id if had_nodes else self._requested_id
        self._scene = scene
        self._observe_scene(scene, self._on_scene_changed)
        self._requested_id = ""
        self.setEnabled(scene is not None)
        self._current_id = ""
        self._list_nodes()
        nodes = self._nodes()
        if not wanted and nodes and not had_nodes and not self.noneEnabled:
            wanted = nodes[0].GetID()
        self.setCurrentNodeID(wanted)

    def sortFilterProxyModel(self):
        return self._proxy_model

    def _accepts(self, node):
        if node.GetID() in self._proxy_model.hiddenNodeIDs:
            return False
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        for node_type in self._node_types:
            if node.GetClassName() != node_type and not (self.showChildNodeTypes and node.IsA(node_type)):
                continue
            if any(node.IsA(hidden) for hidden in self.hideChildNodeTypes):
                return False
            wanted = [one for one in self._attributes if node.IsA(one[0])]
            if all(node.GetAttribute(name) is not None and (value is None or node.GetAttribute(name) == str(value))
                   for _, name, value in wanted):
                return True
        return False

    def _nodes(self):
        if self._scene is None:
            return []
        every = (self._scene.GetNthNode(index) for index in range(self._scene.GetNumberOfNodes()))
        return [node for node in every if self._accepts(node) and node.GetID() != self._leaving_id]

    def nodeCount(self):
        return len(self._nodes())

    def nodeFromIndex(self, index):
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def currentNode(self):
        return self._scene.GetNodeByID(self._current_id) if self._scene is not None and self._current_id else None

    def setCurrentNode(self, node):
        self.setCurrentNodeID(node if isinstance(node, str) else node.GetID() if node is not None else "")

    def setCurrentNodeID(self, nodeID):
        nodeID = nodeID or ""
        if self._scene is None:
            self._requested_id = nodeID
            return
        listed = self._shown_ids if self._scene.IsImporting() else [node.GetID() for node in self._nodes()]
        if nodeID not in listed:
            nodeID = ""
        self._show(nodeID)
        if nodeID != self._current_id:
            self._select(nodeID)

    def setCurrentNodeIndex(self, index):
        self.setCurrentNode(self.nodeFromIndex(index))

    currentNodeID = pyqtProperty(str, lambda self: self._current_id, setCurrentNodeID)

    def addNode(self, nodeType=None):
        nodeType = nodeType or (self._node_types[0] if self._node_types else "")
        if nodeType not in self._node_types:
            return None
        base = self._base_names.get(nodeType) or self._base_names.get("") or self.nodeTypeLabel(nodeType)
        node = self._scene.CreateNodeByClass(nodeType)
        node.UnRegister(None)
        node.SetName(self._scene.GenerateUniqueName(base))
        for owner, name, value in self._attributes:
            if node.IsA(owner):
                node.SetAttribute(name, "" if value is None else str(value))
        node = self._scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self):
        node = self.currentNode()
        if node is not None:
            self.nodeAboutToBeRemoved.emit(node)
            self._scene.RemoveNode(node)

    def editCurrentNode(self):
        self.nodeAboutToBeEdited.emit(self.currentNode())

    def renameCurrentNode(self):
        node = self.currentNode()
        if node is None:
            return
        label = self.nodeTypeLabel(node.GetClassName())
        name, accepted = QInputDialog.getText(self, f"Rename {label}", "New name:", text=node.GetName())
        if accepted and name:
            node.SetName(name)
            self._list_nodes()
            self.currentNodeRenamed.emit(name)

    # Keeping the list in step with the scene.
    def _refresh(self):
        if self._scene is not None:
            self._on_scene_changed()

    def _on_scene_changed(self):
        before, was_empty = list(self._shown_ids), self._combo.count == 0
        self._list_nodes()
        ids = self._shown_ids
        for added in (one for one in ids if one not in before):
            self.nodeAdded.emit(self._scene.GetNodeByID(added))
        if self._current_id in ids:
            self._show(self._current_id)
        elif self._current_id:
            self._select(self._after_removal(before, ids))
        elif ids and was_empty and not before and not self.noneEnabled:
            self._select(ids[0])  # Qt selects the first row ever inserted into an empty combo box

    def _on_import_ended(self):
        """Rows of imported nodes come all at once: a selector that had none of them selected, and must have one, has
        the first then.
        """
        if not self._current_id and self._shown_ids and not self.noneEnabled:
            self._select(self._shown_ids[0])

    def _after_removal(self, before, ids):
        """Qt moves to the neighbor of a removed row; a removed very first row leaves nothing selected."""
        row = before.index(self._current_id) if self._current_id in before else 0
        if not ids or (row == 0 and not self.noneEnabled):
            return ""
        return ids[min(row, len(ids) - 1)]

    def _list_nodes(self):
        nodes = self._nodes()
        self._shown_ids = [node.GetID() for node in nodes]
        self._follow_names(nodes)
        self._combo.blockSignals(True)
        self._combo.clear()
        if self.noneEnabled:
            self._combo.addItem(self.noneDisplay, "")
        for node in nodes:
            self._combo.addItem(node.GetName(), node.GetID())
        actions = self._action_items() if self._scene is not None else []
        if actions:
            self._combo.insertSeparator(self._combo.count)
        for text, action in actions:
            self._combo.addItem(text, action)
        self._show(self._current_id)
        self._combo.blockSignals(False)

    def _follow_names(self, nodes):
        for node_id in [one for one in self._node_tags if one not in self._shown_ids]:
            node, tag = self._node_tags.pop(node_id)
            node.RemoveObserver(tag)
        for node in nodes:
            if node.GetID() not in self._node_tags:
                tag = node.AddObserver("ModifiedEvent", self._on_node_modified)
                self._node_tags[node.GetID()] = node, tag

    def _on_node_modified(self, node, event):
        if sip.isdeleted(self):
            return
        row = self._combo.findData(node.GetID())
        if row >= 0 and self._combo.itemText(row) != node.GetName():
            self._combo.setItemText(row, node.GetName())

    def _action_items(self):
        label = self.nodeTypeLabel(self._node_types[0] if len(self._node_types) == 1 else "")
        items = []
        if self.renameEnabled:
            items.append((f"Rename current {label}", self.renameCurrentNode))
        if self.editEnabled:
            items.append((f"Edit current {label}", self.editCurrentNode))
        if self.addEnabled:
            for node_type in self._node_types:
                items.append((f"Create new {self.nodeTypeLabel(node_type)}", lambda one=node_type: self.addNode(one)))
        if self.removeEnabled:
            items.append((f"Delete current {label}", self.removeCurrentNode))
        return items + [(action.text, action.trigger) for action in self._menu_actions]

    def _show(self, node_id):
        row = self._combo.findData(node_id)
        self._combo.setCurrentIndex(row if row >= 0 else 0 if self.noneEnabled else -1)

    def _select(self, node_id):
        self._current_id = node_id
        self._show(node_id)
        node = self.currentNode()
        self.currentNodeChanged.emit(node)
        self._validNodeChanged.emit(node is not None)
        self.currentNodeIDChanged.emit(node_id)

    def _on_activated(self, row):
        chosen = self._combo.itemData(row)
        if callable(chosen):
            self._show(self._current_id)
            chosen()
        else:
            if chosen != self._current_id:
                self._select(chosen)
            self.nodeActivated.emit(self.currentNode())


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """Node combo box with a check box per node."""

    checkedNodesChanged = pyqtSignal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self._checked_ids = set()

    def setCheckState(self, node, check):
        before = set(self._checked_ids)
        (self._checked_ids.add if check == Qt.Checked else self._checked_ids.discard)(node.GetID())
        if self._checked_ids != before:
            self.checkedNodesChanged.emit()

    def checkState(self, node):
        return Qt.Checked if node.GetID() in self._checked_ids else Qt.Unchecked

    def check(self, node):
        self.setCheckState(node, Qt.Checked)

    def uncheck(self, node):
        self.setCheckState(node, Qt.Unchecked)

    def checkedNodes(self):
        return tuple(node for node in self._nodes() if node.GetID() in self._checked_ids)

    def uncheckedNodes(self):
        return tuple(node for node in self._nodes() if node.GetID() not in self._checked_ids)

    def allChecked(self):
        return bool(self._nodes()) and not self.uncheckedNodes()

    def noneChecked(self):
        return not self.checkedNodes()


class _SubjectHierarchySelector(_SceneObserverMixin):
    """Current item of the subject hierarchy: enough for selectors that are bound to a node."""

    currentItemChanged: pyqtSignal

    def _start(self):
        self._scene, self._item, self._node_types = None, 0, []

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._scene = scene
        self._observe_scene(scene, self._on_scene_changed)

    def _hierarchy(self):
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene) if self._scene else None

    def _on_scene_changed(self):
        node = self.currentNode()
        if self._item and (node is None or node.GetID() == self._leaving_id):
            self.setCurrentItem(0)

    def setNodeTypes(self, nodeTypes):
        self._node_types = list(nodeTypes)

    nodeTypes = pyqtProperty("QVariant", lambda self: tuple(self._node_types), setNodeTypes)

    def currentItem(self):
        return self._item

    def setCurrentItem(self, item):
        if item != self._item:
            self._item = item
            self.currentItemChanged.emit(item)

    def currentNode(self):
        hierarchy = self._hierarchy()
        return hierarchy.GetItemDataNode(self._item) if hierarchy is not None and self._item else None

    def setCurrentNode(self, node):
        hierarchy = self._hierarchy()
        self.setCurrentItem(hierarchy.GetItemByDataNode(node) if hierarchy is not None and node is not None else 0)

    def clearSelection(self):
        self.setCurrentItem(0)


class qMRMLSubjectHierarchyComboBox(_SubjectHierarchySelector, QWidget):
    currentItemChanged = pyqtSignal(object)
    SIGNALS = {"currentItemChanged(vtkIdType)": "currentItemChanged"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._start()


class qMRMLSubjectHierarchyTreeView(_SubjectHierarchySelector, QWidget):
    currentItemChanged = pyqtSignal(object)
    SIGNALS = {"currentItemChanged(vtkIdType)": "currentItemChanged"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._start()


class qMRMLScreenShotDialog(QDialog):
    FullLayout, ThreeD, Red, Yellow, Green = 0, 1, 2, 3, 4


class qMRMLUtils(QObject):
    pass


class qSlicerIO(QObject):
    pass
