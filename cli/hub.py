"""`push hf://org/name[@rev]`: the hub's own library fetches into its own cache, and that is pushed.

The token comes from `HF_TOKEN` or the library's file; it is never looked at here.
"""

from typing import Any

from tbshare.errors import InputRefused, UsageError

PREFIX = "hf://"


def fetched(address: str) -> str:
    """Return the directory of a model of the hub in this user's cache, fetching what is missing.

    UsageError when the `hf` extra is not installed or the address names no model; InputRefused when the hub does
    not give it.
    """
    model, _, revision = address.removeprefix(PREFIX).partition("@")
    if model.count("/") != 1 or not all(model.split("/")):
        raise UsageError(f"{address} names no model", cure="tbshare push hf://org/name[@rev]")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise UsageError("fetching from the hub needs an extra", cure="pip install 'tbshare[hf]'") from error
    library: Any = hub
    try:
        return str(library.snapshot_download(model, revision=revision or None))
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise InputRefused(
            f"{model} could not be fetched from the hub: {words}", cure=f"hf download {model}"
        ) from error
