"""The `primezero` program. Importing the commands takes a moment, and Ctrl-C may come in it."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the exit code."""
    try:
        from launch.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("primezero: interrupted", file=sys.stderr)
        return 130
