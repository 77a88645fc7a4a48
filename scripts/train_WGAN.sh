#!/bin/sh
# Train WGAN; arguments go on to train.py, for example: scripts/train_WGAN.sh --config quick.json
cd "$(dirname "$0")/../WGAN" && exec python train.py "$@"
