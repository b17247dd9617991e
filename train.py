#!/usr/bin/env python3
"""A recipe in, trained weights out: parses the command line, runs the training. No logic."""

import argparse
import sys
from pathlib import Path

from common.options import OptionParser

EXAMPLES = """\
examples:
  train.py --config configs/train/higher_hrnet_w32_512.yaml
  train.py --config configs/train/higher_hrnet_w32_512.yaml --resume        after any kind of end
  train.py --config configs/train/default.yaml --output runs/mine --minutes 120
  torchrun --nproc-per-node 4 train.py --config configs/train/higher_hrnet_w48_640.yaml
  tensorboard --logdir runs                                                 curves and pictures

every setting has a name in training/config.py:
  train.py --config configs/train/default.yaml --set optimiser.rate=1e-4 --set batch=8

exit codes: 0 done, or as far as --minutes or --limit-steps say, 1 the loss is not finite,
2 bad input (one line says what and what to do), 130 or 143 stopped by Ctrl-C or SIGTERM (resumable)
"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from common.redaction import hide_arguments

    hide_arguments()  # the weights may be a URL with a password
    # Imported here so that --help answers at once.
    from training.config import load_recipe
    from training.trainer import DivergedError, StopLimits, train

    try:
        stopped_by = train(
            load_recipe(options.config, options.set),
            output=options.output or Path("runs") / options.config.stem,
            resume=options.resume,
            limits=StopLimits(steps=options.limit_steps, minutes=options.minutes),
            quiet=options.quiet,
        )
    except ValueError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: stopped", file=sys.stderr)
        return 130
    except DivergedError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    # As shells have it, so that a script does not take a stopped training for a trained net.
    return 0 if stopped_by is None else 128 + stopped_by


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="train.py",
        description="Trains a pose network.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="recipe, see configs/train/")
    add("--output", type=Path, metavar="FOLDER", help="default: runs/ and the recipe's name")
    add("--resume", action="store_true", help="go on from the folder's last.pt")
    add("--limit-steps", type=int, metavar="N", help="stop after N steps in all")
    add("--minutes", type=float, metavar="M", help="stop after so long; goes on with --resume")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, by its name")
    add("--quiet", action="store_true", help="warnings and errors only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
