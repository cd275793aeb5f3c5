"""External programs that are kept alive between calls and never outlive their worker."""
