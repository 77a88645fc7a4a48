#!/bin/sh
# Train simpleGAN from any directory. Arguments are passed to train.py, for example --config quick.json.
exec python "$(dirname "$0")/../simpleGAN/train.py" "$@"
