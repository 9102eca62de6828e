"""Families of networks, a file each. The contract is hpo.Network."""
