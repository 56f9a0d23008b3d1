"""Results that are made once: an interrupted experiment goes on where it stopped."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def once(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON result at `path`: read where it exists, else made and written, with the seconds that it took."""
    if not path.exists():
        start = time.perf_counter()
        result = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"seconds": time.perf_counter() - start, "result": result}, indent=1) + "\n")
        partial.rename(path)
    return json.loads(path.read_text())["result"]
