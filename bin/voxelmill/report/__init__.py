"""The report of a run: one HTML file that opens without network, and the list of what was published."""
