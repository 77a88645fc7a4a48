#!/bin/sh
# Train simpleGAN; arguments go on to train.py, for example: scripts/train_simpleGAN.sh --config quick.json
cd "$(dirname "$0")/../simpleGAN" && exec python train.py "$@"
