"""The command line of every semester: flags or two data files alone, or `train` and `generate` before the flags."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rhapsode.course.data import TOKENIZER_FOLDER
from rhapsode.course.program import OUTPUTS, SIZES, generate, main, train_mod
from rhapsode.terminal import prepare_streams, told

Program = Callable[[Any], None]

OTHER_FORMS = "rnn.py train --help and rnn.py generate --help describe the form of autumn 2025 and later."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists what there is\n")


def parse_arguments(argv: Sequence[str]) -> tuple[Program, argparse.Namespace]:
    """What the command line asks for: one of main, train_mod and generate, and its arguments."""
    first = argv[0] if argv else ""
    # A data file may bear the name of a subcommand: `rnn.py train valid`.
    if first in ("train", "generate") and not (Path(first).is_file() and len(argv) > 1 and argv[1][:1] != "-"):
        return (train_mod, _train_mod(argv[1:])) if first == "train" else (generate, _generate(argv[1:]))
    description = "Train the course's recurrent language model with self-attention; writes model.pt here."
    return main, _training(_Parser(prog="rnn.py", description=description, epilog=OTHER_FORMS), argv)


def _train_mod(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="rnn.py train", description="Train the course's language model.")
    parser.add_argument(
        "--model_path", metavar="FILE", help="write the model to this file; by default it is not written"
    )
    return _training(parser, argv)


def _training(parser: _Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of training; the two data files are named by flags or by position."""
    parser.add_argument("data", nargs="*", metavar="DATA", help="training file, validation file", default=[])
    for name in ("train_data", "val_data"):
        parser.add_argument(f"--{name}", metavar="FILE", help="JSON: sequences of token ids, or texts")
    for name, (file, help) in OUTPUTS.items():
        parser.add_argument(f"--{name}", metavar="FILE", default=file, help=f"{help} ({file})")
    for name, (size, help) in SIZES.items():
        parser.add_argument(f"--{name}", metavar="N", type=int, default=size, help=f"{help} ({size:,})")
    _add_tokenizer(parser)
    args = parser.parse_intermixed_args(argv)
    for name in ("train_data", "val_data"):
        if getattr(args, name) is None:
            if not args.data:
                parser.error(f"--{name} is missing")
            setattr(args, name, args.data.pop(0))
    if args.data:
        parser.error(f"unexpected argument {args.data[0]}")
    return args


def _generate(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="rnn.py generate", description="Continue a text with a model of `rnn.py train`.")
    parser.add_argument("--model_path", metavar="FILE", required=True, help="the model's file")
    parser.add_argument("--prefix", metavar="TEXT", required=True, help="the text to continue")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 is greedy (0.0)")
    parser.add_argument("--num_tokens", metavar="N", type=float, default=64, help="length of the completion (64)")
    _add_tokenizer(parser)
    return parser.parse_args(argv)


def _add_tokenizer(parser: _Parser) -> None:
    parser.add_argument("--tokenizer", metavar="DIR", help=f"tokenizer folder, unless {TOKENIZER_FOLDER}/ is here")


def command(argv: Sequence[str]) -> int:
    """The program itself: one line on stderr and exit code 2 for what is wrong, 130 after Ctrl-C."""
    prepare_streams()
    try:
        program, args = parse_arguments(argv)
        program(args)
    except (ValueError, OSError) as error:
        print(f"rnn.py: {told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rnn.py: stopped; no file was written", file=sys.stderr)
        return 130
    return 0
