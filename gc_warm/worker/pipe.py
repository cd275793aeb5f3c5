"""Former name of `gc_warm.programs.pipe`."""

from gc_warm._renamed import redirect

redirect(__name__, "gc_warm.programs.pipe")
