#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# usage: build.sh ROOT SITE -- cross-compiles the package of this source tree for the arm64 root of root.sh, into SITE.
# setup.py says what is built, as for any other machine; the compiler and Python's headers are the other ones.
# SOURCE=DIRECTORY builds another source tree: a commit to compare with.
set -euo pipefail
root=$(realpath "$1")
mkdir -p "$2"
site=$(realpath "$2")
cd "${SOURCE:-$(dirname "$0")/../..}"
suffix=.cpython-$(basename "$(readlink "$root/usr/bin/python3")" | tr -dc 0-9)-aarch64-linux-gnu.so
headers="-I$root/usr/include/$(readlink "$root/usr/bin/python3") -idirafter $root/usr/include"
copy=$site.source
rm -rf "$copy" "$site"
mkdir -p "$copy" "$site"
tar -c --exclude='*.so' --exclude='selfattn/**/*.c' --exclude='selfattn/*.c' setup.py pyproject.toml README.md LICENSE csrc selfattn | tar -x -C "$copy"
cd "$copy"
"${PYTHON:-python3}" -m venv "$site.venv"
"$site.venv/bin/python" -m pip install -q 'setuptools>=77' 'Cython>=3.1'
export CC="${CROSS:-aarch64-linux-gnu-gcc}" LDSHARED="${CROSS:-aarch64-linux-gnu-gcc} -shared" CFLAGS="$headers"
export SETUPTOOLS_EXT_SUFFIX="$suffix" SELFATTN_CFLAGS="${SELFATTN_CFLAGS:--O2}"
"$site.venv/bin/python" setup.py -q build --build-lib "$site"
