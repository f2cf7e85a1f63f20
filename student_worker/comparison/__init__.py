"""The same student trained several ways from one recipe: with cross-entropy alone, and by each chosen encoding.

`arms` makes the recipes, `running` trains them, `outcome` reads what came out and checks that they can be compared,
`table`, `curves` and `page` show it.
"""
