"""Stand-ins that need no account and no network: the service, and runners for what stands behind an endpoint."""
