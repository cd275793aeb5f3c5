"""What reaches into Parsl's workers; loaded only where a config switches it on."""
