"""Stand-ins for the SDK's client and executor that need no account and no network."""
