"""Save, load, export: safetensors and JSON, written atomically, nothing unpickled."""

from shoal.store.export import Exported, export_onnx, export_program
from shoal.store.folder import RunFolder, write_atomically, write_text
from shoal.store.load import Opened, load, open_model, read_folder_plan, read_record
from shoal.store.save import save

__all__ = [
    "Exported",
    "Opened",
    "RunFolder",
    "export_onnx",
    "export_program",
    "load",
    "open_model",
    "read_folder_plan",
    "read_record",
    "save",
    "write_atomically",
    "write_text",
]
