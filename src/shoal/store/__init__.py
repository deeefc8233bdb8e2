"""Save, load, export: safetensors and JSON, written atomically, nothing unpickled."""

from shoal.deprecated import former_names
from shoal.store.export import ExportConfig, export, export_finished, open_finished
from shoal.store.folder import RunFolder, check_output_file
from shoal.store.hub import Pushed, push
from shoal.store.load import (
    OpenedFolder,
    check_reload,
    load,
    load_folder,
    open_model,
    original_of,
    read_folder_plan,
    read_record,
)
from shoal.store.model_card import CardFigures
from shoal.store.program import Exported, export_onnx, export_program
from shoal.store.save import check_savable, restore_weights, save, save_weights

__all__ = [
    "CardFigures",
    "ExportConfig",
    "Exported",
    "OpenedFolder",
    "Pushed",
    "RunFolder",
    "check_output_file",
    "check_reload",
    "check_savable",
    "export",
    "export_finished",
    "export_onnx",
    "export_program",
    "load",
    "load_folder",
    "open_finished",
    "open_model",
    "original_of",
    "push",
    "read_folder_plan",
    "read_record",
    "restore_weights",
    "save",
    "save_weights",
]

__getattr__ = former_names(
    __name__,
    {
        "Lines": "shoal.files.jsonl:JsonlFile",
        "Opened": "shoal.store:OpenedFolder",
        "write_atomically": "shoal.files.writing:write_atomically",
        "write_text": "shoal.files.writing:write_text",
    },
)
