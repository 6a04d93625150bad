#!/usr/bin/env bash
# Train a VLAE on CIFAR-10; options are passed on:  scripts/train_cifar10.sh --trainer.max_epochs 3
set -euo pipefail
cd "$(dirname "$0")/.."
vlae=.venv/bin/vlae
[ -x "$vlae" ] || vlae=vlae

"$vlae" train --config cifar10 "$@"
