"""The Slicer API lint: does every name of Slicer, Qt and CTK that the modules use exist in a real Slicer?

* `facts.py` answers for one class or name; its knowledge is slicer_api.json (made by `make_facts.py` from Slicer's and
  CTK's headers), PyQt5 for Qt's own classes, and slicer-core for MRML, VTK and slicer.util.
* `python_check.py` walks Python files, `ui_check.py` the .ui files, `import_check.py` looks at what runs at start.

`python -m apilint [FOLDER ...]` prints one finding a line, FILE:LINE: MESSAGE; status 1 where there is any.
"""
