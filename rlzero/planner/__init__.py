"""Plans: programs compiled or estimated for devices that are not here."""
