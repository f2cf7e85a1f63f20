"""What the cost of each part grows with: measured, and by a formula."""
