"""The examples under each command's help."""


def examples(*commands: str) -> str:
    """Return an epilogue that typer does not wrap; `tbshare` is put in front where another program is not."""
    shown = [command if "tbshare" in command else f"tbshare {command}" for command in commands]
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in shown)])
