"""Starts workers: `local` as processes of this machine."""
