#!/bin/sh
# Train WGAN-GP from any directory. Arguments are passed to train.py, for example --config quick.json.
exec python "$(dirname "$0")/../WGAN-GP/train.py" "$@"
