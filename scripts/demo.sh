#!/usr/bin/env bash
# From nothing to pictures in a few minutes on a laptop, on the handwritten digits shipped with scikit-learn.
set -euo pipefail
cd "$(dirname "$0")/.."
vlae=.venv/bin/vlae
[ -x "$vlae" ] || vlae=vlae

run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

run "$vlae" train --config digits --run.name demo --run.overwrite true
run "$vlae" eval --run outputs/demo
run "$vlae" sample prior --run outputs/demo
run "$vlae" viz recon-grid --run outputs/demo
run "$vlae" viz samples --run outputs/demo
run "$vlae" compress --data.name digits --run outputs/demo outputs/demo/digits.vlae
run "$vlae" info outputs/demo/digits.vlae
run "$vlae" decompress outputs/demo/digits.vlae outputs/demo/restored --run outputs/demo --overwrite

printf '\nDone. Look at the pictures, the reports and the compressed file:\n'
find outputs/demo -type f \( -name '*.png' -o -name '*.html' -o -name '*.vlae' \
  -o -path '*/restored/*' -o -path '*/reports/*' \) | sort | sed 's/^/  /'
