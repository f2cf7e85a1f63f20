"""What the live pages of both services share: their look, their pictures, and how a person comes in.

Everything is rendered here, by the service itself, and nothing is fetched from elsewhere. Needs jinja2, which both
services bring. Knows nothing of teachers, students or web frameworks.
"""
