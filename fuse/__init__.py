"""The mount: one core of operations behind several fronts."""

assert __name__ == "tbshare.fuse", "import this package as tbshare.fuse"
