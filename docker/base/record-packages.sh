#!/bin/sh
# Extract hook of mmdebstrap: writes one file for each unpacked package to the directory that scanners of distroless images read.
set -eu
root=$1
mkdir -p "$root/var/lib/dpkg/status.d"
for package in "$root"/var/cache/apt/archives/*.deb; do
    name=$(dpkg-deb --field "$package" Package)
    dpkg-deb --field "$package" >"$root/var/lib/dpkg/status.d/$name"
done
