#!/usr/bin/env bash
# Builds the sdist and the wheel, and checks that they work from an empty environment, away from the repository.
#
#   scripts/check_release.sh              # installs all dependencies: minutes, and a gigabyte
#   scripts/check_release.sh --reuse      # takes those of the environment that runs it ($PYTHON), installs vlae alone
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

echo "== the sdist, a wheel of it, and a wheel of the repository"
"$PYTHON" -m venv "$work/build"
"$work/build/bin/pip" install -q build
"$work/build/bin/python" -m build --sdist --outdir "$work/dist" . >/dev/null
"$work/build/bin/pip" wheel -q --no-deps --wheel-dir "$work/dist" .
"$work/build/bin/pip" wheel -q --no-deps --wheel-dir "$work/of-sdist" "$work"/dist/*.tar.gz
wheel="$(echo "$work"/dist/*.whl)"

"$PYTHON" - "$wheel" "$(echo "$work"/of-sdist/*.whl)" <<'PY'
import pathlib, sys, zipfile
first, second = (
    {name: archive.read(name) for name in archive.namelist()} for archive in map(zipfile.ZipFile, sys.argv[1:])
)
other = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
assert not other, f"the sdist makes another wheel: {other}"
roots = {pathlib.Path("src/vlae"): "vlae", pathlib.Path("configs"): "vlae/configs"}
wanted = {
    f"{place}/{path.relative_to(root).as_posix()}"
    for root, place in roots.items()
    for path in root.rglob("*")
    if path.is_file() and path.suffix not in (".pyc", ".tmp")
}
assert not (missing := sorted(wanted - first.keys())), f"the wheel lacks {missing[:5]}"
assert {"vlae/py.typed", "vlae/configs/digits.yaml", "vlae/pretrained/mnist-dynamic/model.safetensors"} <= wanted
stray = [n for n in first if not n.startswith("vlae") or "__pycache__" in n or n.endswith((".pyc", ".tmp"))]
assert not stray, f"the wheel holds {stray[:3]}"
print(f"{len(first)} files, {sum(map(len, first.values())) / 1e6:.1f} MB unpacked")
PY

echo "== an empty environment"
"$PYTHON" -m venv "$work/venv"
if [ "${1:-}" = "--reuse" ]; then
  "$PYTHON" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
    >"$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth"
  "$work/venv/bin/pip" install -q --no-deps --force-reinstall "$wheel"
else
  # shellcheck disable=SC2086  # options, several words
  "$work/venv/bin/pip" install -q ${PIP_ARGS:-} "$wheel"
fi

mkdir "$work/elsewhere"
cd "$work/elsewhere"
unset PYTHONPATH
vlae="$work/venv/bin/vlae"
"$work/venv/bin/python" -c 'import sys, vlae; assert vlae.__file__.startswith(sys.argv[1]), vlae.__file__' "$work/venv"
"$vlae" --version
"$vlae" models
"$vlae" verify
"$vlae" train --config digits --trainer.max_epochs 1 --trainer.progress_bar false --data.limit 400 >train.log
tail -2 train.log
"$vlae" eval outputs/digits --only bound --data.limit 50 >eval.log
"$vlae" sample prior --count 4
echo "== the wheel works: $(basename "$wheel")"
