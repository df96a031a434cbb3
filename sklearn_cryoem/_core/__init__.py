"""What every layer leans on: errors, validation, workers, progress, memory statements."""
