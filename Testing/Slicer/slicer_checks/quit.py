"""Quitting while the worker computes; what is left behind is looked at from outside."""

from __future__ import annotations

import os
import sys

from slicer_checks.hand import FAKE_WORKER, PanelCheck, add_ct, output_folder


class TestQuit(PanelCheck):
    def test_quit_in_mid_run(self):
        from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess

        file = output_folder() / "worker.pid"
        code = (
            f"import os, runpy; open({str(file)!r}, 'w').write(str(os.getpid())); "
            f"runpy.run_path({str(FAKE_WORKER)!r}, run_name='__main__')"
        )
        self.widget.logic._worker = WorkerProcess([sys.executable, "-c", code])
        add_ct()
        self.start()
        self.assertNotEqual(int(file.read_text()), os.getpid())

    def tearDown(self):
        """It goes on: the application ends with it."""
