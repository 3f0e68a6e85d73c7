"""`slicer.parameterNodeWrapper`: typed access to a vtkMRMLScriptedModuleNode, and its two-way connection to widgets.

Written for the host from Slicer's documentation of parameter nodes (developer guide), and compared with Slicer's own
package: a list, dict or pack that is read is a copy that writes itself into the node when it changes, and what was read
last is kept until the node is modified.

`annotations`: what stands in `Annotated[...]`. `serializers`: how a type is kept in the node. `parameterPack` and
`wrapper`: the two decorators. `guiConnectors` and `guiCreation`: the widgets.
"""

from .annotations import *
from .guiConnectors import *
from .guiCreation import *
from .parameterPack import *
from .serializers import *
from .type_tools import *
from .types import *
from .wrapper import *
