#!/bin/sh
# Start the AutoGLM-Phone service: set up what is missing, then `autoglm serve`.
#
#   sh run_autoglm_server.sh [--host H] [--port P] [--data DIR] [--config FILE]
#
# It may be started from any directory, also through a link in /usr/local/bin.
set -eu

self=$0
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in
        /*) self=$link ;;
        *) self=$(dirname "$self")/$link ;;
    esac
done
ROOT=$(cd "$(dirname "$self")" && pwd -P)

. "$ROOT/scripts/environment.sh"
prepare_environment service

case " $* " in
    *" --config "* | *" --config="*) exec "$ROOT/.venv/bin/autoglm" serve "$@" ;;
    *) exec "$ROOT/.venv/bin/autoglm" serve --config "$ROOT/config.yaml" "$@" ;;
esac
