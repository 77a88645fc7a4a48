#!/bin/sh
# Train WGAN-GP; arguments go on to train.py, for example: scripts/train_WGAN-GP.sh --config quick.json
exec python "$(dirname "$0")/../WGAN-GP/train.py" "$@"
