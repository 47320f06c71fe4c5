# Set-up shared by run_autoglm_server.sh and run_tests.sh; sourced by them, POSIX sh.
#
# `prepare_environment EXTRA` leaves $ROOT/.venv with the project and that extra installed. A stamp over
# everything that the installation depends on makes the second start fast: nothing changed, nothing done.
# The caller sets ROOT.

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

is_root() { [ "$(id -u)" = 0 ]; }

can_apt() { is_root && command -v apt-get >/dev/null 2>&1; }

# Install Debian packages, quietly; the package lists are fetched once, and only when something is missing.
apt_install() {
    say "Installing $*"
    if [ -z "${apt_lists_fresh:-}" ]; then
        apt-get update -qq >/dev/null 2>&1 || say "warning: the package lists could not be refreshed"
        apt_lists_fresh=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Print the first interpreter that is new enough.
find_python() {
    for candidate in ${AUTOGLM_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# What the installed environment depends on, as one word.
environment_fingerprint() {
    {
        "$1" -c 'import sys; print(sys.version, sys.prefix)'
        cd "$ROOT" && cat pyproject.toml constraints.txt CMakeLists.txt scripts/environment.sh
        cat src/autoglm/patch/native/CMakeLists.txt src/autoglm/patch/native/*.[ch]
        cat src/autoglm/model/native/CMakeLists.txt src/autoglm/model/native/*.[ch]
        find src -name '*.py' | sort # an editable install finds only the modules that it saw
        pwd -P
    } | sha256sum | cut -d ' ' -f 1
}

# Some Pythons come without the means to make an environment; Debian keeps them in a package of their own.
make_venv() {
    "$python" -m venv "$ROOT/.venv" >/dev/null 2>&1 && return 0
    if can_apt; then
        apt_install python3-venv && "$python" -m venv "$ROOT/.venv" && return 0
    fi
    rm -rf "$ROOT/.venv"
    die "this Python cannot make a virtual environment: install its venv package (Debian: apt install python3-venv) and start again"
}

# The patch codec has a core in C. Take the machine's compiler, else install one, else use the one from a wheel.
choose_compiler() {
    [ -n "${CC:-}" ] && return 0
    for candidate in cc gcc clang; do
        command -v "$candidate" >/dev/null 2>&1 && return 0
    done
    if can_apt && apt_install gcc libc6-dev; then
        return 0
    fi
    say "No C compiler here; using the one in the ziglang wheel"
    "$ROOT/.venv/bin/pip" install --quiet --disable-pip-version-check ziglang ||
        die "no C compiler was found and none could be installed: install gcc or clang and start again"
    # The program itself, not `python -m ziglang`: pip builds with a Python path from which the wheel is hidden.
    zig=$("$ROOT/.venv/bin/python" -c 'import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), "zig"))')
    printf '#!/bin/sh\nexec "%s" cc "$@"\n' "$zig" >"$ROOT/.venv/bin/zig-cc"
    chmod +x "$ROOT/.venv/bin/zig-cc"
    CC="$ROOT/.venv/bin/zig-cc"
    export CC
}

install_project() {
    extra=$1
    say "Setting up the environment in $ROOT/.venv (this takes a few minutes the first time)"
    choose_compiler
    cd "$ROOT" || exit 1
    .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt scikit-build-core ||
        die "pip could not install the build tools: see the message above (is the package index reachable?)"
    .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extra]" ||
        die "pip could not install the project: see the message above (is the package index reachable? is the disk full?)"
}

prepare_environment() {
    extra=$1
    python=$(find_python) ||
        die "Python 3.11 or newer is needed and was not found: install it, or name it in AUTOGLM_PYTHON"
    [ -w "$ROOT" ] || [ -x "$ROOT/.venv/bin/autoglm" ] ||
        die "$ROOT is not writable, so the environment cannot be made there: run this once as its owner"

    # Two starts at the same moment must not install into each other's feet.
    if [ -w "$ROOT" ] && command -v flock >/dev/null 2>&1; then
        exec 9>"$ROOT/.stamp"
        flock 9
    fi
    if [ -x "$ROOT/.venv/bin/python" ]; then
        wanted=$(environment_fingerprint "$ROOT/.venv/bin/python")
        for stamp in "$ROOT/.venv/stamp-$extra" "$ROOT/.venv/stamp-test"; do
            if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
                exec 9>&-
                return 0
            fi
        done
    fi
    "$ROOT/.venv/bin/python" -c 'import pip' >/dev/null 2>&1 || { rm -rf "$ROOT/.venv"; make_venv; }
    rm -f "$ROOT"/.venv/stamp-*
    ( install_project "$extra" ) || exit 1
    environment_fingerprint "$ROOT/.venv/bin/python" >"$ROOT/.venv/stamp-$extra"
    exec 9>&-
}
