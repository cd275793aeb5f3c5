"""Former name of `gc_warm.local.daemon`."""

from gc_warm._renamed import redirect

redirect(__name__, "gc_warm.local.daemon")
