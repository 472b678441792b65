"""A worker that is lost while it writes a file of the corpus."""

from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

_write = pyarrow.parquet.write_table


class Writes:
    """pyarrow's `write_table`: counts its calls, and leaves half a file at one of them, where it raises."""

    def __init__(self, lost_at: int | None = None) -> None:
        """`lost_at`: the call, from 1, at which the worker is lost; None for none."""
        self.count = 0
        self._lost_at = lost_at

    def __call__(self, table: pa.Table, where: Any, **named: Any) -> None:
        self.count += 1
        if self.count == self._lost_at:
            pa.fs.LocalFileSystem().open_output_stream(str(where)).close()  # half of a file
            raise ConnectionError
        _write(table, where, **named)
