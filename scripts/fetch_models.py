"""python scripts/fetch_models.py PAIR [PAIR ...]: fetch the checkpoints of pairs ahead of a run and print their commits.

PAIR is a file name of configs/model_pair without .yaml. A later run with HF_HUB_OFFLINE=1 then needs no network.
"""

import argparse
import sys
from pathlib import Path

from omegaconf import OmegaConf

from gammatune.config import PairConfig
from gammatune.errors import UserError
from gammatune.models import sources

FOLDER = Path(__file__).resolve().parent.parent / "gammatune" / "configs" / "model_pair"


def read_pair(name: str) -> PairConfig:
    """The shipped config of that name. Raises UserError when there is none."""
    path = FOLDER / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"There is no pair {name}: choose from {', '.join(sorted(p.stem for p in FOLDER.glob('*.yaml')))}.")
    settings = OmegaConf.load(path)
    settings.pop("defaults")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PairConfig), settings))


def fetch(config: PairConfig) -> None:
    if config.source == "tiny-random":
        return
    for role, checkpoint in (("target", config.target), ("draft", config.draft)):
        files = sources.locate(role, checkpoint, config.source)
        sources.fetch_weights(files)
        commit = f" commit {files.commit}" if files.commit else ""
        print(f"{config.name}: {role} {files.name}{commit} in {files.folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="PAIR")
    try:
        for name in parser.parse_args().pairs:
            fetch(read_pair(name))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
