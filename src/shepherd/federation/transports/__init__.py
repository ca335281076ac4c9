"""What carries the bytes of a federation: one file for each engine behind the protocol of federation/transport.py."""
