#!/usr/bin/env bash
# Asks whether system packages may be installed: `ask-to-install.sh WHAT` ends with 0 for yes and 1 for no.
#
# It asks only root (nobody else can install), and only on a terminal. If CI is set, if BUNDLER_REQUIRE_ENGINE=1
# demands the engine, or if there is no terminal to ask on, the answer is yes.
set -euo pipefail

if [[ $EUID -ne 0 || ${BUNDLER_NO_SYSTEM:-} == 1 ]]; then exit 0; fi # nothing is installed in any case
if [[ ${CI:-false} != false || ${BUNDLER_REQUIRE_ENGINE:-} == 1 ]]; then exit 0; fi
if [[ ! -t 0 || ! -t 2 ]]; then exit 0; fi
read -r -p "Missing on this machine: $1. Install with apt-get? [y/N] " answer
[[ $answer == [yY]* ]]
