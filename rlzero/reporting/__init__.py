"""Reports: reading a run's folder, its figures, its page."""
