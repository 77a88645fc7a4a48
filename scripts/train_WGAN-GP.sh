#!/bin/sh
# Train WGAN-GP; arguments go on to train.py, for example: scripts/train_WGAN-GP.sh --config quick.json
cd "$(dirname "$0")/../WGAN-GP" && exec python train.py "$@"
