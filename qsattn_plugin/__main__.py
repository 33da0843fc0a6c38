"""``python -m qsattn_plugin``: the command line without the installed script."""

from qsattn_plugin.cli import run

run()
