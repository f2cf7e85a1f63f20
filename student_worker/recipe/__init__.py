"""The recipe: its schema, where its values come from, what is wrong with them, and the verbs that show it."""
