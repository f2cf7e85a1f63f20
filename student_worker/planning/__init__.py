"""What is checked and reckoned before any weight is loaded."""
