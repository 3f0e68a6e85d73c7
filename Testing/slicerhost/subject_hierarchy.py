"""Subject hierarchy items for nodes.

In Slicer Qt plug-ins give every displayable node its item; here observers do, enough for `GetItemByDataNode`,
`SetItemParent` and `GetItemParent`. It does not decide icons, owners or types: rest no test on those.
"""

from __future__ import annotations

import slicer
import vtk

_SHOWN_CLASSES = ("vtkMRMLDisplayableNode", "vtkMRMLTableNode", "vtkMRMLTextNode", "vtkMRMLPlotChartNode")


class SubjectHierarchyItems:
    """Keeps one item per shown data node of the scene."""

    def __init__(self, scene):
        self._scene = scene
        events = slicer.vtkMRMLScene
        scene.AddObserver(events.NodeAddedEvent, self._on_node_added)
        scene.AddObserver(events.NodeAboutToBeRemovedEvent, self._on_node_about_to_be_removed)
        scene.AddObserver(events.EndImportEvent, self._on_end_import)

    def _hierarchy(self):
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)

    def _add_item(self, node):
        if node.GetHideFromEditors() or not any(node.IsA(name) for name in _SHOWN_CLASSES):
            return
        hierarchy = self._hierarchy()
        if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_added(self, caller, event, node):
        if not self._scene.IsImporting():
            self._add_item(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_about_to_be_removed(self, caller, event, node):
        if self._scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
            return
        hierarchy = self._hierarchy()
        item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
        if item:
            hierarchy.RemoveItem(item, False, False)

    def _on_end_import(self, caller, event):
        for index in range(self._scene.GetNumberOfNodes()):
            self._add_item(self._scene.GetNthNode(index))
