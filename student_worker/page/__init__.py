"""A worker's live page: how the run goes, where its time goes, and what the student says. Knows nothing of training."""
