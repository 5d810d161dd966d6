"""What can be fetched, and fetching it."""
