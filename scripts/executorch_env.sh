#!/bin/sh
# Make build/executorch, an environment with ExecuTorch beside the packages of .venv. Usage:
#   sh scripts/executorch_env.sh [DIRECTORY] [PYTHON]
# ExecuTorch's own requirements name tools for other targets that are not needed here, so it is installed without
# them; torch and all else come from the environment of PYTHON, by default .venv/bin/python.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$root/build/executorch}
python=${2:-$root/.venv/bin/python}
mkdir -p "$target"
target=$(cd "$target" && pwd)
wanted=$(sha256sum < "$root/scripts/executorch-constraints.txt")
[ "$(cat "$target/stamp" 2> /dev/null || true)" = "$wanted" ] && exit 0

"$python" -m venv --clear "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    -r "$root/scripts/executorch-constraints.txt"
packages=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sys; print("\n".join(path for path in sys.path if path))' > "$packages/beside.pth"
echo "$root/src" >> "$packages/beside.pth"
printf '#!/bin/sh\nexec %s/bin/python -m autoglm.cli "$@"\n' "$target" > "$target/bin/autoglm"
chmod +x "$target/bin/autoglm"
echo "$wanted" > "$target/stamp"
