"""``python -m controller.cli``: the same as ``linewright``."""

from controller.cli import main

main()
