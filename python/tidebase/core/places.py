"""Where a run lies: its bucket, one of 65,536, which is the same in the database (``tidebase_private.bucket_of``)."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

_GENERATED = re.compile(r"run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@lru_cache(maxsize=1024)
def bucket_of(run_id: str) -> int:
    """The bucket of a run: the last four digits of a generated id, else the first 16 bits of the SHA-256 of the id, or
    of what stands in its first {braces}.
    """
    if _GENERATED.fullmatch(run_id):
        return int(run_id[-4:], 16)
    tag = re.search(r"\{([^}]*)\}", run_id)
    return int.from_bytes(
        hashlib.sha256((tag[1] if tag and tag[1] else run_id).encode(errors="surrogatepass")).digest()[:2], "big"
    )


def place_of_queue(queue: str) -> str:
    """In whose bucket a queue lies, and what belongs to it."""
    return f"{{queue:{queue}}}"
