"""What `rlzero.plan` knows of programs for devices that are not here."""
