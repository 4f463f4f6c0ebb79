"""Published claims about training, put to the test on a small model."""
