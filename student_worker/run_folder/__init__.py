"""The folder of a run: whose it is, its lines, and the receipt of what was done."""
