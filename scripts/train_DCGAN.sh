#!/bin/sh
# Train DCGAN; arguments go on to train.py, for example: scripts/train_DCGAN.sh --config quick.json
cd "$(dirname "$0")/../DCGAN" && exec python train.py "$@"
