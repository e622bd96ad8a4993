"""Version 1 of the interface. Generated; see the .proto files for what everything means."""
