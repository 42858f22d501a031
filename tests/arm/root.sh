#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# usage: root.sh DIRECTORY -- makes DIRECTORY an arm64 root: Debian's Python with its headers, and the Python packages that
# the fingerprints need. Nothing of it is installed on this machine; no root rights, no container. Mirrors and package
# index are those that this machine's apt and pip are set up for.
set -euo pipefail
root=$1
[ -e "$root/complete" ] && exit
mkdir -p "$root"
root=$(realpath "$root")
apt=$root.apt
mkdir -p "$apt"/{lists/partial,cache/archives/partial,etc/apt.conf.d,etc/preferences.d,etc/trusted.gpg.d,state}
: > "$apt/state/status"

# This machine's own archives, for the other architecture.
keys=$(find /usr/share/keyrings -name '*archive-keyring.gpg' | paste -sd,)
apt-get indextargets --format '$(CREATED_BY) $(REPO_URI) $(RELEASE) $(COMPONENT)' | sed -n 's/^Packages //p' | sort -u |
    while read -r uri release component; do
        echo "deb [arch=arm64 signed-by=$keys] $uri $release $component"
    done > "$apt/etc/sources.list"
options=(-o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::Etc="$apt/etc"
    -o Dir::Etc::sourcelist="$apt/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State="$apt/state"
    -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/state/status" -o Dir::Cache="$apt/cache"
    -o APT::Get::List-Cleanup=0 -o Acquire::Languages=none -o APT::Sandbox::User= -o Debug::NoLocking=1)
apt-get "${options[@]}" -q update > "$apt/log"
(cd "$apt/cache/archives" && apt-get "${options[@]}" -q -y --no-install-recommends --download-only install \
    python3-minimal libpython3-dev libpython3-stdlib libgcc-s1 libstdc++6 > "$apt/log")
for package in "$apt"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
done

version=$(basename "$(readlink "$root/usr/bin/python3")")
"${PYTHON:-python3}" -m pip download -q -d "$apt/wheels" --only-binary=:all: --no-deps \
    --python-version "${version#python}" --implementation cp --platform manylinux2014_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    numpy ml_dtypes tokenizers safetensors
mkdir -p "$root/site"
for wheel in "$apt"/wheels/*.whl; do
    "${PYTHON:-python3}" -m zipfile -e "$wheel" "$root/site"
done
touch "$root/complete"
