"""The command line."""

from shoal.cli.main import main

__all__ = ["main"]
