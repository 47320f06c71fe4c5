#!/bin/sh
# Set up what is missing, then run every check: lint, types, tests.
#
#   sh run_tests.sh              the checks of every day
#   sh run_tests.sh --all        also the long forms of torture, fuzzing and fault sweeps
#   sh run_tests.sh tests/patch  any other argument goes to pytest
set -eu

ROOT=$(cd "$(dirname "$0")" && pwd -P)
. "$ROOT/scripts/environment.sh"

# Speech synthesis, a Chinese and a Latin font, a browser and a build tool, which some tests use for real.
install_system_packages() {
    missing=""
    command -v espeak-ng >/dev/null 2>&1 || missing="$missing espeak-ng"
    command -v cmake >/dev/null 2>&1 || missing="$missing cmake"
    command -v make >/dev/null 2>&1 || missing="$missing make"
    command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
    command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
    [ -n "$(find /usr/share/fonts -name 'wqy-zenhei*' 2>/dev/null | head -n 1)" ] || missing="$missing fonts-wqy-zenhei"
    [ -n "$(find /usr/share/fonts -name 'DejaVuSansCondensed.ttf' 2>/dev/null | head -n 1)" ] || missing="$missing fonts-dejavu"
    [ -n "$missing" ] || return 0
    if can_apt; then
        # shellcheck disable=SC2086 # a list of package names
        apt_install $missing || say "warning: not installed:$missing"
    else
        say "warning: not root, so these stay missing and the tests that need them are deselected:$missing"
    fi
}

# Compilers and emulators of a phone and of a big-endian machine, on which the codec's core must make the same bytes.
install_other_machines() {
    missing=""
    command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 || missing="$missing gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    command -v s390x-linux-gnu-gcc >/dev/null 2>&1 || missing="$missing gcc-s390x-linux-gnu libc6-dev-s390x-cross"
    command -v qemu-s390x >/dev/null 2>&1 || missing="$missing qemu-user"
    [ -n "$missing" ] && can_apt || return 0
    # shellcheck disable=SC2086 # a list of package names
    apt_install $missing || say "warning: not installed, so the tests that need them are deselected:$missing"
}

# A database server and a web server, which tests start for themselves, and what shows them the kernel's side.
install_servers() {
    missing=""
    command -v nginx >/dev/null 2>&1 || [ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
    command -v strace >/dev/null 2>&1 || missing="$missing strace"
    [ -n "$(find /usr/lib/postgresql -name initdb 2>/dev/null | head -n 1)" ] || missing="$missing postgresql"
    [ -n "$missing" ] && can_apt || return 0
    # shellcheck disable=SC2086 # a list of package names
    apt_install $missing || say "warning: not installed, so the tests that need them are deselected:$missing"
}

# The everyday selection stands in pyproject.toml; an empty one selects everything.
if [ "${1:-}" = "--all" ]; then
    shift
    set -- -m "" "$@"
fi

install_system_packages
install_other_machines
install_servers
prepare_environment test

cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
say "ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
say "pyright"
.venv/bin/pyright
say "pytest"
exec .venv/bin/python -m pytest "$@"
