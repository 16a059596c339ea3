"""Cancellation: the end of a run for good."""

from __future__ import annotations

from ..core.call import scalar

cancel_run = scalar("cancel_run", run_id="text", reason="text", actor="text", cascade="boolean")
