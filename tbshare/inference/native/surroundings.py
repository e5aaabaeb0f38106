"""Tells CMake, one a line, the directories of mlx and nanobind; or exits with the sentence that says why not.

It runs by itself in the build environment, where tbshare is not installed.
"""

import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
from pathlib import Path

MLX_OLDEST = (0, 32, 4)


def package(name: str) -> Path:
    """Return where a package lies; SystemExit when it is not in the build environment."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{name} is not in the build environment")
    return Path(next(iter(spec.submodule_search_locations)))


def main() -> None:
    """Print the two directories; SystemExit when mlx is too old or was made with another nanobind."""
    mlx, nanobind = package("mlx"), package("nanobind")
    version = importlib.metadata.version("mlx")
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None or tuple(int(number) for number in numbers.groups()) < MLX_OLDEST:
        sys.exit(f"mlx {version} is older than {'.'.join(map(str, MLX_OLDEST))}")
    library = mlx / f"core{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        sys.exit("mlx has no module for this Python")
    wanted = re.search(rb"nanobind_[0-9a-z_]+_v(\d+)", library.read_bytes())
    header = (nanobind / "src" / "nb_internals.h").read_text(encoding="utf-8")
    have = re.search(r"define +NB_INTERNALS_VERSION +(\d+)", header)
    if wanted is None or have is None or wanted[1].decode() != have[1]:
        want = wanted[1].decode() if wanted else "unknown"
        sys.exit(f"mlx was compiled with nanobind's ABI {want}, this nanobind has {have[1] if have else 'none'}")
    sys.stdout.write(f"{mlx}\n{nanobind}\n")


if __name__ == "__main__":
    main()
