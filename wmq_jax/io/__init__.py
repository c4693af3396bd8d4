"""Files: atomic writes and trees of arrays.

`wmq_jax.io.orbax` is imported on request, since importing Orbax takes seconds.
"""

from wmq_jax.io.atomic import append_line, write_bytes, write_json, write_text

__all__ = ["append_line", "write_bytes", "write_json", "write_text"]
