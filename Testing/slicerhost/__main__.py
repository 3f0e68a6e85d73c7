"""`python -m slicerhost`: start the embedded Slicer with Slicer's own options."""

from __future__ import annotations

import atexit
import os
import sys

if __name__ == "__main__":  # processes that multiprocessing starts from a script here import this file too
    from slicerhost.command_line import main

    status = main(sys.argv[1:])
    atexit._run_exitfuncs()  # temporary folders
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Qt and VTK objects that Python still holds may not be torn down in a safe order
