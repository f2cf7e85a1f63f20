"""What can be trained: one file a kind, each a `StudentLogitsProvider` and each a `Student` of the trainer."""
