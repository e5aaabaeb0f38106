"""tbshare: model weights and files on every machine of a small lab."""

__version__ = "0.1.0"
