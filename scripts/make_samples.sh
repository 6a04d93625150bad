#!/usr/bin/env bash
# Prior samples and pictures of the newest run, or of another:  make_samples.sh --run outputs/NAME
set -euo pipefail
cd "$(dirname "$0")/.."
vlae=.venv/bin/vlae
[ -x "$vlae" ] || vlae=vlae

"$vlae" sample prior "$@"
"$vlae" viz recon-grid "$@"
# Last those that need a continuous z: where there is none, they say so.
"$vlae" viz traverse "$@"
"$vlae" sample interpolate "$@"
