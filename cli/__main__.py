"""``python -m qsattn_plugin.cli``: the command line without the installed script."""

from qsattn_plugin.cli import run

run()
