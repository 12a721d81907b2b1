#!/usr/bin/env bash
# Installs the independent clients that the end-to-end tests use, pinned, under target/test-clients:
# Python's `websockets` in a virtual environment, Node's `ws` by its lock file. Does nothing when
# they are there already. Needs python3 with venv, node and npm (tests/run.sh installs them).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
from=tests/clients
to=target/test-clients
mkdir -p "$to"

if ! cmp -s "$from/requirements.txt" "$to/venv/installed"; then
  rm -rf "$to/venv"
  python3 -m venv "$to/venv"
  "$to/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$from/requirements.txt"
  cp "$from/requirements.txt" "$to/venv/installed"
fi

if ! cmp -s "$from/package-lock.json" "$to/node/installed"; then
  rm -rf "$to/node"
  mkdir -p "$to/node"
  cp "$from/package.json" "$from/package-lock.json" "$to/node/"
  npm ci --prefix "$to/node" --no-audit --no-fund --loglevel=error
  cp "$from/package-lock.json" "$to/node/installed"
fi

"$to/venv/bin/python" -c 'import websockets; print("Python websockets", websockets.__version__)'
NODE_PATH="$to/node/node_modules" node -p '"Node ws " + require("ws/package.json").version'
