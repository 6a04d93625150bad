#!/usr/bin/env bash
# Draws the pictures of docs/tutorial.md and docs/explanation.md, each by the command that the page names.
# MNIST is needed (in $VLAE_DATA, or it is fetched). What is not there yet is trained: a minute for the digits, three for the code
# that is dying. To do a training again, remove its directory.
set -euo pipefail
cd "$(dirname "$0")/.."
vlae=.venv/bin/vlae
[ -x "$vlae" ] || vlae=vlae
images=docs/images
digits=outputs/digits
dying=outputs/family/runs/mnist-vlae-local-transformer-bernoulli

[ -d "$digits/model" ] || "$vlae" train --config digits
[ -d "$dying/model" ] || .venv/bin/python benchmarks/family.py --only mnist-vlae-local-transformer

tutorial() { "$vlae" "$1" "$2" --run "$digits" --output "$images/tutorial-$3.png"; }
tutorial viz training-curves training-curves
tutorial viz recon-grid recon-grid
tutorial viz decompressions decompressions
tutorial sample prior samples
tutorial viz bits bits
tutorial viz traverse traverse
tutorial viz latent-scatter latent-scatter
tutorial sample complete completions
rm -f "$images"/tutorial-*.npz # the same pixels as arrays

explain() { "$vlae" viz "$1" "${@:3}" --output "$images/explanation-$2.png"; }
explain rate-distortion rate-distortion mnist-pixelcnn mnist-vae-mlp mnist-dynamic
explain receptive-field receptive-field --model mnist-dynamic
explain bits bits --model mnist-dynamic
explain aggregate-posterior aggregate-posterior --model mnist-dynamic
explain traverse traverse-healthy --model mnist-dynamic --count 4 --image 7
explain traverse traverse-dying --model "$dying/model" --count 4 --image 7
