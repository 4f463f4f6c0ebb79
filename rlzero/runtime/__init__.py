"""How a program runs: settings, devices, hosts, metrics, files."""
