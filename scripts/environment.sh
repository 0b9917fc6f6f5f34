# Sourced by every script here: where things are, how many jobs fit this machine, how progress is printed.
# It installs and builds nothing.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the variables are for the scripts that source this
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export CMAKE_GENERATOR=Ninja CMAKE_COLOR_DIAGNOSTICS=OFF

venv=$PWD/.venv
python=$venv/bin/python

# A translation unit of the kernels takes up to 2 GB to compile.
memory_kb=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo 2>/dev/null || echo 4000000)
jobs=$((memory_kb / 2000000))
cores=$(nproc 2>/dev/null || echo 2)
((jobs < cores)) || jobs=$cores
((jobs > 1)) || jobs=1
export CMAKE_BUILD_PARALLEL_LEVEL=$jobs

if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache
  # So that another clone, in another folder, finds the same objects.
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
fi

# say TEXT: one line of progress, with the seconds since the script began.
say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# quietly LOG COMMAND...: runs the command with its output in LOG, and shows the end of LOG if it fails.
quietly() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  "$@" >"$log" 2>&1 </dev/null || {
    tail -n 60 "$log" >&2
    fail "'$*' failed; all of its output is in $log"
  }
}

# digest PATH...: one hash of the names and contents of these files and of the files below these folders.
digest() {
  find "$@" -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum |
    sha256sum | cut -d' ' -f1
}
