"""What `rlzero.report` reads of a run, looks for in it, draws and tells."""
