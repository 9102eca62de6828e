"""Families of networks, one per file. The contract is hpo.Network."""
