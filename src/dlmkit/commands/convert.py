"""`dlmkit export` and `dlmkit import`: to and from Hugging Face folders."""

from __future__ import annotations

import argparse
import sys

from dlmkit.checkpoints.export import export
from dlmkit.checkpoints.released import import_released
from dlmkit.commands.messages import silence_libraries
from dlmkit.config import register_resolvers


def export_main(options: argparse.Namespace) -> None:
    """Export and print the folder."""
    register_resolvers()
    silence_libraries(progress=sys.stderr.isatty())
    export(options.checkpoint, options.folder, options.trust)
    sys.stdout.write(f'{options.folder}\ntransformers: AutoModelForCausalLM.from_pretrained("{options.folder}")\n')


def import_main(options: argparse.Namespace) -> None:
    """Import and print the folder."""
    register_resolvers()
    silence_libraries(progress=sys.stderr.isatty())
    import_released(options.source, options.folder)
    sys.stdout.write(f"{options.folder}\ndlmkit sample {options.folder} --prompt TEXT\n")
