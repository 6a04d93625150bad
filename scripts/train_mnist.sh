#!/usr/bin/env bash
# Train a VLAE on MNIST; options are passed on:  scripts/train_mnist.sh --trainer.max_epochs 3
set -euo pipefail
cd "$(dirname "$0")/.."
vlae=.venv/bin/vlae
[ -x "$vlae" ] || vlae=vlae

"$vlae" train --config mnist "$@"
