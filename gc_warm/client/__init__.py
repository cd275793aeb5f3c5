"""What runs where tasks are submitted."""
