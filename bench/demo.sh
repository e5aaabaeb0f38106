#!/usr/bin/env bash
# `make demo`: the main job on this machine alone, with three nodes of its own. Leaves nothing behind but .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
bash bench/install.sh
exec .venv/bin/python -P bench/demo.py
