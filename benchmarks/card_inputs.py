"""Adds to a checkpoint's card what its training stamps look like, for the status page's comparison with the stream.

    python benchmarks/card_inputs.py CHECKPOINT ARCHIVE [--objects 400]

`skyheed train` does it by itself; this is for checkpoints that were trained before it did. The archive may be a smaller
one of the same command: the card says how many objects were looked at, and which archive they came from.
"""

import argparse
import json

from skyheed.classifier.models import checkpoint
from skyheed.classifier.training import input_sample


def main() -> None:
    """Describe an archive in a card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("archive")
    parser.add_argument("--objects", type=int, default=input_sample.MOST_OBJECTS)
    asked = parser.parse_args()
    found = input_sample.of_archive(asked.archive, asked.objects)
    info = checkpoint.describe_training(checkpoint.resolve(asked.checkpoint), inputs=found)
    print(json.dumps({"model": info.name, "digest": info.digest, "inputs": found}))


if __name__ == "__main__":
    main()
