"""Files: atomic writes, checksums, and other people's tensors as numpy arrays without their libraries.

`wmq_jax.io.orbax` is imported on request, since importing Orbax takes seconds.
"""

from wmq_jax.io.atomic import append_line, object_of, write_bytes, write_json, write_text
from wmq_jax.io.checksum import sha256_of
from wmq_jax.io.safetensors_file import load_safetensors
from wmq_jax.io.torch_file import Module, Opaque, TorchFileError, load_torch
from wmq_jax.io.torch_writer import save_torch
from wmq_jax.io.workdir import CONFIG, adopt_config, check_name, check_new_folder, locked, make_workdir, new_folder

__all__ = [
    "Module",
    "Opaque",
    "TorchFileError",
    "adopt_config",
    "CONFIG",
    "append_line",
    "check_name",
    "check_new_folder",
    "load_safetensors",
    "load_torch",
    "locked",
    "make_workdir",
    "new_folder",
    "object_of",
    "save_torch",
    "sha256_of",
    "write_bytes",
    "write_json",
    "write_text",
]
