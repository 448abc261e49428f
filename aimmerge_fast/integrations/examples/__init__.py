"""Loops to copy from, each runnable on CPUs as it stands; see the README for the commands."""
