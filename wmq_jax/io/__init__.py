"""Files: atomic writes and trees of arrays.

`wmq_jax.io.orbax` is imported on request, since importing Orbax takes seconds.
"""

from wmq_jax.io.atomic import append_line, write_bytes, write_json, write_text
from wmq_jax.io.workdir import adopt_config

__all__ = ["adopt_config", "append_line", "write_bytes", "write_json", "write_text"]
