"""``python -m qsattn_plugin.cli``: the command line where no script is installed."""

from qsattn_plugin.cli import run

run()
