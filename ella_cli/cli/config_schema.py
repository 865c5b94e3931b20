"""`ella config-schema`: every setting of a run.yaml, as JSON Schema."""

from __future__ import annotations

from ella_cli.cli.output import Output
from ella_cli.config import RunSettings


def config_schema() -> None:
    """Print the JSON Schema of run.yaml, for editors and for reading.

    [bold]Examples[/]

      ella config-schema > ella.schema.json
    """
    schema = RunSettings.model_json_schema()
    for one in schema["properties"].values():
        # How flags are laid out on the help screen is nobody's business here.
        one.pop("panel", None)
        one.pop("flag", None)
    Output(as_json=True).result(schema)
