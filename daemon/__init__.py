"""The service of one node: it wires the rooms together."""

assert __name__ == "tbshare.daemon", "import this package as tbshare.daemon"
