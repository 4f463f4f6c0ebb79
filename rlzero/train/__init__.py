"""What every stage that learns shares."""
