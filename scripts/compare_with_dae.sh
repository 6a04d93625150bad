#!/usr/bin/env bash
# VAE, VLAE and denoising autoencoder side by side; options are passed on:  scripts/compare_with_dae.sh --data.name mnist
set -euo pipefail
cd "$(dirname "$0")/.."
vlae=.venv/bin/vlae
[ -x "$vlae" ] || vlae=vlae

"$vlae" compare dae "$@"
