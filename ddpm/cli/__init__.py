"""The command line."""

from ddpm.cli.main import main

__all__ = ["main"]
