#!/usr/bin/env bash
# Set up .venv for this checkout: everything `make demo` and `make test` need. Run again, it does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=.venv
STAMP=$VENV/.installed

say() { printf '%s\n' "$*"; }

# Step 0: what is missing, and the command that installs it. As root, or in CI, it is run; else it is asked for once.
missing=()
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  say "missing: Python 3.11 or newer (tried '$PYTHON'); name another with: make PYTHON=python3.12 …"
  exit 1
}
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ "$(uname -s)" = Linux ]; then
  # The compiler builds the extension that maps weights; without one, run loads them instead and says so.
  command -v c++ >/dev/null || missing+=(g++)
  "$PYTHON" - <<'PY' || missing+=(python3-dev)
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))
PY
  if [ -n "${CI:-}" ] || [ "$(id -u)" = 0 ]; then # what only some tests need
    command -v fusermount3 >/dev/null || missing+=(fuse3)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    pkg-config --exists fuse3 2>/dev/null || missing+=(libfuse3-dev)
    command -v strace >/dev/null || missing+=(strace)
    command -v mkfs.xfs >/dev/null || missing+=(xfsprogs)
    command -v ip >/dev/null || missing+=(iproute2)
  fi
fi
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || { say "missing: ${missing[*]}"; exit 1; }
  command="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" = 0 ]; then
    say "missing: ${missing[*]}; running: $command"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $command >/dev/null
  else
    say "missing: ${missing[*]}"
    say "this installs them: sudo apt-get update && sudo $command"
    [ -t 0 ] || exit 1
    read -r -p "run it now? [y/N] " answer
    [ "$answer" = y ] || exit 1
    sudo apt-get update -qq
    sudo DEBIAN_FRONTEND=noninteractive $command
  fi
fi

[ ${#missing[@]} -gt 0 ] || say "step 0: nothing is missing on this machine"
if [ -f "$STAMP" ] && [ "$STAMP" -nt pyproject.toml ] && [ "$STAMP" -nt .ci/constraints.txt ]; then
  exit 0
fi
say "setting up .venv (some hundred MB: MLX, transformers, pyarrow; once)"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@"; }
pip install -c .ci/constraints.txt --upgrade pip
# pip reads dependency groups from 25.1 on; MLX first, so that the extension is built against it.
pip install -c .ci/constraints.txt scikit-build-core nanobind cmake ninja
pip install -c .ci/constraints.txt --group dev
# The second front of the mount, where libfuse's headers are: it is built here, with tools of its own.
if pkg-config --exists fuse3 2>/dev/null; then pip install -c .ci/constraints.txt pyfuse3; fi
case "$(uname -s)" in
  Linux) pip install -c .ci/constraints.txt 'mlx[cpu]' mlx-lm ;;
  Darwin) pip install -c .ci/constraints.txt mlx mlx-lm ;;
esac
pip install -c .ci/constraints.txt --no-build-isolation -e '.[run]'
touch "$STAMP"
