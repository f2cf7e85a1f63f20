"""Verbs of the `stillhouse` command that are single functions: signatures and help, one file a verb.

What a verb does is imported when it runs, so that the help of the whole command stays quick.
"""
