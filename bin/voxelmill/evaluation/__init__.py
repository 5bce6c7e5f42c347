"""Labels compared with the truth: what is counted, and the pages that show it."""
