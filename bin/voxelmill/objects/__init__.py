"""Objects: found, linked across blocks, measured, put into tables and compared."""
