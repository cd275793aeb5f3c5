"""The name under which programs of all versions import `gc_warm.programs.serve`."""

from __future__ import annotations

from gc_warm.programs.serve import serve

__all__ = ["serve"]
