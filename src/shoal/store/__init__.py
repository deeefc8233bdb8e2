"""Save, load, export: safetensors and JSON, written atomically, nothing unpickled."""

from shoal.store.export import Exported, export_onnx, export_program
from shoal.store.folder import RunFolder
from shoal.store.lines import JsonlFile
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
from shoal.store.lock import FolderLock, lock_folder
from shoal.store.save import check_savable, restore_weights, save, save_weights
from shoal.store.writing import remove_partial, write_atomically, write_text

__all__ = [
    "Exported",
    "FolderLock",
    "JsonlFile",
    "OpenedFolder",
    "RunFolder",
    "check_reload",
    "check_savable",
    "export_onnx",
    "export_program",
    "load",
    "load_folder",
    "lock_folder",
    "open_model",
    "original_of",
    "read_folder_plan",
    "read_record",
    "remove_partial",
    "restore_weights",
    "save",
    "save_weights",
    "write_atomically",
    "write_text",
]
