"""The same code in several processes that find each other, as a launcher starts them."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path


def start(code, count, *arguments):
    """The same code in so many processes that find each other."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    processes = []
    for rank in range(count):
        own = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **own}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return processes


def outputs(processes):
    """What each has printed, and its errors, once all have ended."""
    return [process.communicate(timeout=300) for process in processes]
