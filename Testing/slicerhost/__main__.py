"""`python -m slicerhost`: start the embedded Slicer with Slicer's own options."""

from __future__ import annotations

import logging
import multiprocessing.util
import os
import sys
import weakref

if __name__ == "__main__":  # processes that multiprocessing starts from a script here import this file too
    from slicerhost.command_line import main

    status = main(sys.argv[1:])
    # Not all that is registered for the end: what libraries do there while others still live crashes at times.
    weakref.finalize._exitfunc()  # temporary folders
    multiprocessing.util._exit_function()  # child processes
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Qt and VTK objects that Python still holds may not be torn down in a safe order
