"""`slicer.parameterNodeWrapper`: typed access to a vtkMRMLScriptedModuleNode, and its two-way connection to widgets.

Written for the host from Slicer's documentation of parameter nodes (developer guide). Values live in the node alone: a
list, dict or pack that is read is a view that writes through, so there is no cache that could go stale.

`annotations`: what stands in `Annotated[...]`. `serializers`: how a type is kept in the node. `parameterPack` and
`wrapper`: the two decorators. `guiConnectors` and `guiCreation`: the widgets.
"""

from .annotations import *
from .guiConnectors import *
from .guiCreation import *
from .parameterPack import *
from .serializers import *
from .type_tools import *
from .wrapper import *
