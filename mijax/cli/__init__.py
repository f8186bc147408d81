"""The command line: `mijax --help`."""

from mijax.cli._main import main as main
