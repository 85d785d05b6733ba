"""Loading the models of a worker."""

import os
import subprocess
import sys

LOAD = """
from skyheed.broker import config, worker_models
worker_models.load_models(config.load(overrides={"survey": "ztf"}, environ={}))
"""


def display(**environ: str) -> str:
    """What libgomp says of its settings when torch loads it, in a process that loads the default model."""
    kept = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_DISPLAY_ENV": "true", **environ}
    done = subprocess.run([sys.executable, "-c", LOAD], env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_threads_of_torch_sleep_while_they_wait() -> None:
    """Spinning, they took twice the computation's own CPU time from ingest and servers on the same two cores."""
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in display()


def test_an_operator_may_let_them_spin() -> None:
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in display(OMP_WAIT_POLICY="ACTIVE")
