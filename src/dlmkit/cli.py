"""The `dlmkit` command. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from dlmkit import __version__
from dlmkit.commands.streams import BROKEN_PIPE, is_lost_output, prepare_streams
from dlmkit.runs.stopping import Stopped

USAGE_ERROR = 2
TAKE_SETTINGS = ("train", "plan")
"""Commands with key=value settings of a run."""
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (check: a law is broken), or 2 with one line on what to mend."""
    prepare_streams()
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    parser = build_parser()
    options, rest = parser.parse_known_args([argument for argument in arguments if argument != "--debug"])
    if rest and options.command not in TAKE_SETTINGS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = dispatch(options, rest)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        hint = f": {interrupt}" if str(interrupt) else ""
        print(f"dlmkit {options.command}: interrupted{hint}", file=sys.stderr)
        return interrupt.code if isinstance(interrupt, Stopped) else INTERRUPTED
    except Exception as error:  # turned into one line, or raised again
        if options.command != "train" and is_lost_output(error):
            if isinstance(error, BrokenPipeError):  # as of `| head`, which has what it wanted
                return BROKEN_PIPE
            print(f"dlmkit {options.command}: the output could not be written ({error.strerror})", file=sys.stderr)
            return USAGE_ERROR
        from dlmkit.config import explain

        line = explain(error, rest)
        if debug or line is None:
            raise
        print(f"dlmkit {options.command}: {line}", file=sys.stderr)
        return USAGE_ERROR


def dispatch(options: argparse.Namespace, rest: list[str]) -> int:
    """Call the command that was named and return its exit code."""
    if options.command == "train":
        from dlmkit.commands.train import main as train

        train(rest + (["--multirun"] if options.multirun else []))
    elif options.command == "report":
        from dlmkit.commands.report import main as report

        report(options.runs, html=options.html, json=options.json)
    elif options.command == "sample":
        from dlmkit.commands.sample import main as sample

        sample(options)
    elif options.command in ("export", "import"):
        from dlmkit.commands import convert

        (convert.export_main if options.command == "export" else convert.import_main)(options)
    elif options.command == "check":
        from dlmkit.commands.check.run import main as check

        return check(options.parts, options.json)
    elif options.command == "plan":
        from dlmkit.commands.plan import main as plan

        plan(options, rest)
    elif options.command == "doctor":
        from dlmkit.commands.doctor import main as doctor

        doctor()
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="dlmkit",
        description="Experiments with diffusion language models, on equal terms with autoregressive ones.",
    )
    parser.add_argument("--version", action="version", version=f"dlmkit {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_report(commands)
    _add_sample(commands)
    _add_convert(commands)
    _add_check(commands)
    _add_plan(commands)
    commands.add_parser("doctor", help="what this machine has, and whether one training step works")
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def _add_train(commands: argparse._SubParsersAction[Any]) -> None:
    train = commands.add_parser(
        "train",
        help="train one run, or a sweep with -m",
        usage="dlmkit train [experiment=NAME] [key=value ...] [-m]",
        description="Anything in conf/train.yaml can be given as key=value; groups (schedule, objective, ...) by name."
        " With -m, comma-separated values make a sweep.",
        epilog="example: dlmkit train family=absorbing schedule=linear,cosine budget.tokens=200000 -m",
    )
    train.add_argument("-m", "--multirun", action="store_true", help="run a sweep")


def _add_report(commands: argparse._SubParsersAction[Any]) -> None:
    report = commands.add_parser("report", help="table and HTML page of finished runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, or folders that hold some")
    report.add_argument("--html", type=Path, metavar="FILE", help="where the page goes (default: RUN_DIR/report.html)")
    report.add_argument("--json", type=Path, metavar="FILE", help="also write the tables as JSON")


def _add_sample(commands: argparse._SubParsersAction[Any]) -> None:
    sample = commands.add_parser("sample", help="generate text, or fill in the middle")
    sample.add_argument(
        "checkpoint", type=Path, metavar="CKPT", help="a run folder, a checkpoint in it, or a Hugging Face folder"
    )
    given = sample.add_mutually_exclusive_group()
    given.add_argument("--prompt", metavar="TEXT", help="text to continue")
    given.add_argument(
        "--infill",
        metavar="TEXT",
        help='text with gaps of n tokens or at most n, such as "In the [MASK:12] God [MASK:<=9]."',
    )
    given.add_argument(
        "--prompts", type=Path, metavar="FILE", help='JSON lines: {"id": ID, "prompt": TEXT} or {"infill": TEXT}'
    )
    given.add_argument("--infill-file", type=Path, metavar="FILE", help='JSON lines with {"infill": TEXT} alone')
    sample.add_argument(
        "--out", type=Path, metavar="FILE", help="where the lines of --prompts go; a killed command goes on with it"
    )
    sample.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts at a time (default 64)")
    sample.add_argument("--length", type=int, metavar="N", help="tokens in all (default: the run's block length)")
    sample.add_argument("--num-samples", type=int, default=1, metavar="N", help="how many texts (default 1)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    _add_decoding(sample)
    sample.add_argument("--watch", action="store_true", help="show the texts in the terminal while they form")
    sample.add_argument(
        "--trace", type=Path, metavar="FILE", help="write how they formed: a page (.html) or a record (.json)"
    )
    _add_trust(sample)
    sample.add_argument("--json", action="store_true", help="print JSON, with what the texts cost, instead of text")


def _add_decoding(sample: argparse.ArgumentParser) -> None:
    decoding = sample.add_argument_group("how texts are decoded (docs/decoding.md)")
    decoding.add_argument("--steps", type=int, metavar="N", help="reverse steps (default 64)")
    decoding.add_argument("--sampler", metavar="NAME", help="a sampler of conf/sampler (default: the run's)")
    decoding.add_argument(
        "--block-length", type=int, metavar="N", help="decide N tokens before later ones (default: all together)"
    )
    decoding.add_argument(
        "--guidance", type=float, default=0.0, metavar="X", help="lean towards what is given (default 0, not at all)"
    )
    decoding.add_argument("--stop-at-eos", action="store_true", help="end a text at its first end of document")
    decoding.add_argument(
        "--temperature", type=float, metavar="T", help="0 for the most likely token (default: the run's)"
    )
    decoding.add_argument("--top-k", type=int, metavar="K", help="keep the K most likely tokens")
    decoding.add_argument("--top-p", type=float, metavar="P", help="keep the smallest set of tokens with probability P")
    decoding.add_argument(
        "--min-p", type=float, metavar="P", help="keep tokens with P times the probability of the most likely one"
    )
    decoding.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1 for fewer repetitions (default: the run's)"
    )
    decoding.add_argument("--score", metavar="NAME", help="which position first: prob, margin, entropy, random, drawn")
    decoding.add_argument("--token", metavar="NAME", help="draw a token, or take the argmax")
    decoding.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting of the sampler, such as threshold=0.8, gamma=0.2 or eta=0.5 (repeat for several)",
    )


def _add_convert(commands: argparse._SubParsersAction[Any]) -> None:
    export = commands.add_parser("export", help="write a run's model as a folder that transformers opens")
    export.add_argument("checkpoint", type=Path, metavar="CKPT", help="a run folder or a checkpoint in it")
    export.add_argument("folder", type=Path, metavar="DIR", help="where it goes; must not exist yet")
    _add_trust(export)
    released = commands.add_parser("import", help="bring in a released DiffuGPT or DiffuLLaMA checkpoint")
    released.add_argument("source", metavar="NAME_OR_DIR", help="diffugpt-s, diffugpt-m, diffullama, or a local copy")
    released.add_argument("folder", type=Path, metavar="DIR", help="where it goes; must not exist yet")


def _add_trust(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package, module or class of your own that the folder's configuration may name (repeat for several)",
    )


def _add_check(commands: argparse._SubParsersAction[Any]) -> None:
    check = commands.add_parser(
        "check",
        help="whether a schedule, process, corruption, objective, time sampler, sampler or backbone is correct",
        usage="dlmkit check [part=name ...] [part.key=value ...] [--json FILE]",
        description="Runs the laws on the parts that are named, or on all: alpha falls from 1 to 0, posteriors are"
        " Bayes', with the exact predictor the bound is -log p(x) and samples have the data's distribution, and more."
        " The exit code is 0 when every law holds and 1 when one does not.",
        epilog="example: dlmkit check schedule=my_package.my_module.MySchedule schedule.power=3",
    )
    check.add_argument(
        "parts",
        nargs="*",
        metavar="part=name",
        help="schedule, process, corruption, objective, t_sampler, sampler or backbone, by its name in conf/ or its"
        " class's import path; several with commas",
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="also write the findings as JSON")


def _add_plan(commands: argparse._SubParsersAction[Any]) -> None:
    plan = commands.add_parser(
        "plan",
        help="memory, operations, time and money of a run, before anything is spent",
        usage="dlmkit plan [experiment=NAME] [key=value ...] [--devices N] [--on NAME] [--json]",
        description="Settings are those of `dlmkit train`. No weight is made, and nothing is downloaded or written: the"
        " network is built without memory, and a step of it runs on tensors that have sizes alone.",
        epilog="example: dlmkit plan experiment=diffugpt_s --devices 8 --on h100 --utilisation 0.4 --price 2.5",
    )
    plan.add_argument(
        "--devices", type=int, metavar="N", help="devices of one machine (default: trainer.devices x num_nodes)"
    )
    plan.add_argument(
        "--on",
        default="h100",
        metavar="NAME",
        help="b200, h200, h100, a100, a100-40, l40s, l4, rtx4090, v100 or cpu (default h100)",
    )
    plan.add_argument("--memory", type=float, metavar="GIB", help="of a device (default: the named one's)")
    plan.add_argument(
        "--peak", type=float, metavar="TFLOPS", help="peak rate of a device, TFLOP/s (default: the named one's)"
    )
    plan.add_argument(
        "--utilisation", type=float, default=0.4, metavar="X", help="of the peak, in (0, 1] (default 0.4)"
    )
    plan.add_argument("--price", type=float, metavar="X", help="of an hour of one device, in any currency")
    plan.add_argument("--vocab-size", type=int, metavar="N", help="ids of the tokenizer, where only the data has them")
    plan.add_argument("--json", action="store_true", help="print JSON instead of text")


if __name__ == "__main__":
    sys.exit(main())
