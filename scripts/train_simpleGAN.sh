#!/bin/sh
# Train simpleGAN; arguments go on to train.py, for example: scripts/train_simpleGAN.sh --config quick.json
exec python "$(dirname "$0")/../simpleGAN/train.py" "$@"
