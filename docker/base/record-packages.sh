#!/bin/sh
# mmdebstrap's extract hook: notes which packages were unpacked, one file each, where scanners of distroless images look.
set -eu
root=$1
mkdir -p "$root/var/lib/dpkg/status.d"
for package in "$root"/var/cache/apt/archives/*.deb; do
    name=$(dpkg-deb --field "$package" Package)
    dpkg-deb --field "$package" >"$root/var/lib/dpkg/status.d/$name"
done
