"""The command line: a client of the control socket, and the only place that prints."""

assert __name__ == "tbshare.cli", "import this package as tbshare.cli"
