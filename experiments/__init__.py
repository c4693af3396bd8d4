"""Command-line programs: thin mains over the library."""
