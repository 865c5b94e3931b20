"""A past in the forms that other programs load: a PEFT adapter, a merged model, dense matrices."""

from __future__ import annotations

from ella_cli.past.export.adapter_folder import export_adapter
from ella_cli.past.export.dense_copy import export_dense
from ella_cli.past.export.exported import Exported, ModuleError
from ella_cli.past.export.merged_model import export_merged

__all__ = ["Exported", "ModuleError", "export_adapter", "export_dense", "export_merged"]
