"""External programs that are kept alive between calls, supervised, and never outlive their worker."""
