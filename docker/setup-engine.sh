#!/usr/bin/env bash
# Sets up a container engine, and QEMU for the CPUs of the targets.
#
#   docker/setup-engine.sh           install and start what is missing (as root on Debian or Ubuntu), else print the commands
#   docker/setup-engine.sh --check   only report
#
# Exit codes: 0 everything works; 1 a step failed, the end of its log is printed; 3 something is missing and was not changed.
# BUNDLER_NO_SYSTEM=1 forbids every change to the system.
set -euo pipefail

readonly LOGS=/var/log/edge-bundler
readonly BINFMT=/proc/sys/fs/binfmt_misc
readonly BACKPORTS=/etc/apt/sources.list.d/edge-bundler-backports.sources
readonly PORTABLE_QEMU="docker run --privileged --rm tonistiigi/binfmt --install"

case "$(uname -m)" in
x86_64)
    readonly NATIVE=x86_64 FOREIGN=aarch64 FOREIGN_OCI=arm64 ELF_MACHINE='\xb7'
    ;;
aarch64 | arm64)
    readonly NATIVE=aarch64 FOREIGN=x86_64 FOREIGN_OCI=amd64 ELF_MACHINE='\x3e'
    ;;
*)
    echo "setup-engine: $(uname -s) on $(uname -m) is neither x86_64 nor aarch64" >&2
    exit 1
    ;;
esac

say() { echo "  $*" >&2; }
fail() {
    echo "setup-engine: $1" >&2
    if [[ -n ${2:-} && -r $2 ]]; then
        echo "--- the end of $2" >&2
        tail -n 25 "$2" >&2
    fi
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }
# The highest emulator_minimum of the target profiles, which are beside this script's folder in the repository and in a wheel.
qemu_minimum() {
    sed -n 's/^emulator_minimum *= *"\([0-9.]*\)".*/\1/p' "$(dirname "$(readlink -f "$0")")"/../targets/*.toml 2>/dev/null | sort -V | tail -n 1
}
running() { grep -qsE "^[0-9]+ \($1\) [^ZX]" /proc/[0-9]*/stat; } # neither a zombie nor dead
at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]; }

QEMU_MINIMUM=$(qemu_minimum) || true
[[ -n $QEMU_MINIMUM ]] || fail "no emulator_minimum in the target profiles (targets/*.toml): install edge-bundler again"
readonly QEMU_MINIMUM

# --- What works already -------------------------------------------------------------------------------------------------

engine_version() {
    if has docker; then
        timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null
    else # Podman's socket, or an engine whose command line is not installed
        local socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
        [[ $socket == unix://* ]] && has curl &&
            curl --silent --fail --max-time 5 --unix-socket "${socket#unix://}" http://engine/_ping
    fi
}

# A copy of it runs in containers without its libraries: it must be static.
qemu_program() { command -v "qemu-$1-static" || command -v "qemu-$1"; }

qemu_version() {
    local program
    program=$(qemu_program "$1") && "$program" --version | sed -n 's/.* version \([0-9.]*\).*/\1/p'
}

qemu_works() {
    local version
    version=$(qemu_version "$1") && [[ -n $version ]] && at_least "$version" "$QEMU_MINIMUM"
}

# With flag F the kernel keeps the interpreter open: after an upgrade of QEMU it still runs the old one.
# The modification time of an entry is the time of its registration.
handler_works() {
    local entry=$BINFMT/qemu-$FOREIGN interpreter
    [[ -r $entry && $(head -n 1 "$entry") == enabled ]] || return 1
    grep -q '^flags:.*F' "$entry" || return 1
    interpreter=$(sed -n 's/^interpreter //p' "$entry")
    if [[ ! -e $interpreter ]]; then # registered from inside a container, as tonistiigi/binfmt does
        if may_change; then return 1; fi
        return 0 # its version is checked in the container
    fi
    interpreter=$(readlink -f "$interpreter")
    [[ $interpreter == "$(readlink -f "$(qemu_program "$FOREIGN")")" ]] || return 1
    [[ -z $(find "$interpreter" -newercm "$entry") ]]
}

emulation_works() { handler_works && { qemu_works "$FOREIGN" || ! qemu_program "$FOREIGN" >/dev/null; }; }

missing() {
    engine_version >/dev/null || echo engine
    emulation_works || echo emulation
    qemu_works "$NATIVE" || echo user-mode
    has mmdebstrap || echo mmdebstrap
}

report() {
    local version
    if version=$(engine_version); then say "engine: version $version"; else say "engine: none answers"; fi
    if emulation_works; then
        say "emulation: $FOREIGN_OCI with QEMU $(qemu_version "$FOREIGN" || echo "of another installation")"
    else
        say "emulation: no handler for $FOREIGN_OCI with QEMU $QEMU_MINIMUM or newer (installed: $(qemu_version "$FOREIGN" || echo none))"
    fi
    if qemu_works "$NATIVE"; then
        say "user mode: $(qemu_program "$NATIVE"), $(qemu_version "$NATIVE")"
    else
        say "user mode: no qemu-$NATIVE-static $QEMU_MINIMUM or newer (installed: $(qemu_version "$NATIVE" || echo none))"
    fi
    if has mmdebstrap; then say "base image: $(mmdebstrap --version)"; else say "base image: mmdebstrap is not installed"; fi
}

# --- Which changes are possible -------------------------------------------------------------------------------------------

# shellcheck source=/dev/null
os_release() { (. /etc/os-release 2>/dev/null && echo "${!1:-}"); }
is_debian_like() { has apt-get && [[ " $(os_release ID) $(os_release ID_LIKE) " =~ \ (debian|ubuntu)\  ]]; }
has_systemd() { [[ -d /run/systemd/system ]]; }
may_change() { [[ $EUID -eq 0 && ${BUNDLER_NO_SYSTEM:-} != 1 && -z ${ONLY_CHECK:-} ]] && is_debian_like; }

backports_source() {
    cat <<END
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
}
needs_backports() { [[ $(os_release VERSION_CODENAME) == bookworm ]]; }

print_debian_commands() {
    local needed=" $* " to_install
    mapfile -t to_install < <(packages "$@")
    echo "    sudo $(readlink -f "$0")" >&2
    echo "  or, by hand:" >&2
    if [[ ${#to_install[@]} -gt 0 ]]; then
        if [[ " ${to_install[*]} " == *" qemu-user-static "* ]] && needs_backports; then
            printf '    %s\n' "printf '%s\\n' $(backports_source | sed "s/.*/'&'/" | xargs -d '\n') | sudo tee $BACKPORTS" >&2
        fi
        echo "    sudo apt-get update && sudo apt-get install --no-install-recommends $(from_backports "${to_install[@]}" | xargs)" >&2
    fi
    if [[ $needed == *" engine "* ]]; then echo "    sudo systemctl enable --now docker    # or, without systemd: sudo service docker start" >&2; fi
    if [[ $needed == *" emulation "* ]]; then
        echo "    sudo systemctl restart systemd-binfmt    # or, without systemd: $PORTABLE_QEMU $FOREIGN_OCI" >&2
    fi
}

# Each line can be pasted into a shell.
print_commands() {
    local needed=" $* "
    echo "To set up what is missing, run:" >&2
    if [[ $needed == *" engine "* && -n ${DOCKER_HOST:-} ]]; then
        echo "    unset DOCKER_HOST    # or start the engine at $DOCKER_HOST: it does not answer" >&2
    elif [[ $needed == *" engine "* && -S /var/run/docker.sock && ! -w /var/run/docker.sock ]]; then
        echo "    sudo usermod -aG docker $(id -un) && newgrp docker    # this user has no access to /var/run/docker.sock" >&2
    fi
    if is_debian_like; then
        print_debian_commands "$@"
        return
    fi
    if [[ $needed == *" engine "* ]]; then
        echo "    curl -fsSL https://get.docker.com | sudo sh    # or another engine with the Docker API (DOCKER_HOST)" >&2
    fi
    if [[ $needed == *" emulation "* ]]; then echo "    $PORTABLE_QEMU $FOREIGN_OCI" >&2; fi
    if [[ $needed == *" user-mode "* ]]; then
        echo "    # install QEMU's static user emulation, $QEMU_MINIMUM or newer: qemu-$NATIVE-static on the PATH" >&2
    fi
    if [[ $needed == *" mmdebstrap "* ]]; then
        echo "    # install mmdebstrap, or build with a base image: --base-image python:3.11-slim-bookworm" >&2
    fi
}

from_backports() { # bookworm's own QEMU is too old
    if needs_backports; then printf '%s\n' "${@/%qemu-user-static/qemu-user-static/bookworm-backports}"; else printf '%s\n' "$@"; fi
}

packages() {
    local part
    for part in "$@"; do
        case $part in
        engine) has dockerd || echo docker.io ;;
        emulation | user-mode) qemu_works "$FOREIGN" && qemu_works "$NATIVE" || echo qemu-user-static ;;
        mmdebstrap) printf '%s\n' mmdebstrap debian-archive-keyring ;; # Ubuntu does not include Debian's keys
        esac
    done | sort -u
}

apt() { # its output goes to the log
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" >>"$LOGS/apt.log" 2>&1 </dev/null ||
        fail "apt-get $* failed" "$LOGS/apt.log"
}

can_install() { apt-cache policy "$1" | grep -q "Candidate: [0-9]"; }

install_packages() {
    local wanted=("$@")
    [[ ${#wanted[@]} -gt 0 ]] || return 0
    if [[ " ${wanted[*]} " == *" qemu-user-static "* ]] && needs_backports && [[ ! -e $BACKPORTS ]]; then
        say "adding Debian's backports for QEMU: $BACKPORTS"
        backports_source >"$BACKPORTS"
    fi
    say "reading the package lists (apt-get update)"
    apt update
    say "installing ${wanted[*]}"
    if [[ " ${wanted[*]} " == *" docker.io "* ]] && can_install docker-cli; then
        wanted+=(docker-cli) # a separate package since Debian 13
    fi
    mapfile -t wanted < <(from_backports "${wanted[@]}")
    apt install --yes --no-install-recommends "${wanted[@]}"
}

# --- Starting the engine -------------------------------------------------------------------------------------------------

# Without an init system, the daemon must not end with the shell that runs this script.
start_daemon() { # name, command…
    local name=$1
    shift
    running "$name" && return
    say "starting $name, log in $LOGS/$name.log"
    setsid nohup "$@" >>"$LOGS/$name.log" 2>&1 </dev/null 9>&- & # 9: the lock of this set-up
}

wait_for() { # seconds, what, log, test…
    local seconds=$1 what=$2 log=$3
    shift 3
    for ((tenth = 0; tenth < seconds * 10; tenth++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    fail "$what did not start within $seconds s" "$log"
}

mount_cgroups() { # an init system does this on other machines
    mountpoint -q /sys/fs/cgroup && return
    say "mounting the control groups"
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
}

start_engine() {
    if [[ -n ${DOCKER_HOST:-} && $DOCKER_HOST != unix:///var/run/docker.sock && $DOCKER_HOST != unix:///run/docker.sock ]]; then
        fail "the engine at DOCKER_HOST=$DOCKER_HOST does not answer: start it, or unset DOCKER_HOST"
    fi
    if has_systemd; then
        say "starting docker (systemctl)"
        systemctl enable --now docker >>"$LOGS/systemctl.log" 2>&1 || fail "docker did not start" "$LOGS/systemctl.log"
        wait_for 60 "the engine" "$LOGS/systemctl.log" engine_version
        return
    fi
    mount_cgroups
    if ! running dockerd; then rm -f /var/run/docker.pid /run/docker/containerd/containerd.pid; fi
    if has containerd; then
        start_daemon containerd "$(command -v containerd)"
        wait_for 30 containerd "$LOGS/containerd.log" test -S /run/containerd/containerd.sock
        start_daemon dockerd "$(command -v dockerd)" --containerd=/run/containerd/containerd.sock
    else
        start_daemon dockerd "$(command -v dockerd)"
    fi
    wait_for 60 dockerd "$LOGS/dockerd.log" engine_version
}

# --- Registering the emulation -------------------------------------------------------------------------------------------

register_emulation() {
    local interpreter entry=$BINFMT/qemu-$FOREIGN class magic mask
    interpreter=$(qemu_program "$FOREIGN")
    if [[ ! -e $BINFMT/register ]]; then
        say "mounting binfmt_misc"
        modprobe binfmt_misc 2>/dev/null || true # built in, or the mount below fails
        mount -t binfmt_misc binfmt_misc "$BINFMT" || fail "this kernel has no binfmt_misc"
    fi
    if [[ -e $entry ]]; then
        say "removing the old registration of qemu-$FOREIGN"
        echo -1 >"$entry"
    fi
    say "registering $interpreter for $FOREIGN_OCI programs"
    # ELF, 64 bits, little endian, any ABI of Linux, executable or shared object, the machine's number.
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00'"$ELF_MACHINE"'\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    class=OPF # O: pass an open descriptor, P: keep argv[0], F: open the interpreter now, so that containers find it
    printf '%s' ":qemu-$FOREIGN:M::$magic:$mask:$(readlink -f "$interpreter"):$class" >"$BINFMT/register"
}

set_up() {
    local needed=("$@") to_install
    mapfile -t to_install < <(packages "${needed[@]}")
    install_packages "${to_install[@]}"
    engine_version >/dev/null || start_engine
    if qemu_works "$FOREIGN"; then
        handler_works || register_emulation
    else
        say "QEMU is still older than $QEMU_MINIMUM: no emulation of $FOREIGN_OCI"
    fi
}

main() {
    case "${1:-}" in
    "") ;;
    --check) ONLY_CHECK=1 ;;
    *)
        sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    esac
    local needed
    mapfile -t needed < <(missing)
    if [[ -n ${ONLY_CHECK:-} ]]; then
        report
        [[ ${#needed[@]} -eq 0 ]] || exit 3
        return
    fi
    [[ ${#needed[@]} -gt 0 ]] || return 0
    if ! may_change; then
        report
        echo "Nothing was changed." >&2
        print_commands "${needed[@]}"
        exit 3
    fi
    echo "Setting up the container engine and the emulation (missing: ${needed[*]})" >&2
    mkdir -p "$LOGS"
    exec 9>"$LOGS/setup.lock"
    flock --timeout 600 9 || fail "another set-up has been running for 10 minutes"
    mapfile -t needed < <(missing) # another set-up may have finished meanwhile
    set_up "${needed[@]}"
    mapfile -t needed < <(missing)
    report
    if [[ ${#needed[@]} -gt 0 ]]; then
        print_commands "${needed[@]}"
        exit 3
    fi
}

main "$@"
