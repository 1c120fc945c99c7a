"""The main job: python run.py model_pair=vicuna-68m-7b policy=gammatune_plus; see gammatune/commands/run.py."""

import sys

from gammatune.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
