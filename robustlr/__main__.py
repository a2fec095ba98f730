"""``python -m robustlr`` is the command line."""

from robustlr.cli import main

main()
