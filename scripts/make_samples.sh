#!/usr/bin/env bash
# Prior samples and reconstructions of the newest run, or of another:  make_samples.sh --run outputs/NAME
set -euo pipefail
cd "$(dirname "$0")/.."
vlae=.venv/bin/vlae
[ -x "$vlae" ] || vlae=vlae

"$vlae" sample prior "$@"
"$vlae" viz recon-grid "$@"
