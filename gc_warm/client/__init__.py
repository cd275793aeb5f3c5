"""The client's side: executors, warm-up, reports and function books, where tasks are submitted."""
