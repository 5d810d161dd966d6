"""Runs: stages in order, what they made, answers."""
